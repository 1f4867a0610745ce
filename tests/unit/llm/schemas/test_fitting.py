"""What is sent instead of a schema, and what is said to be lost: keyword by keyword, for each dialect."""

from copy import deepcopy
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from app.llm.schemas import Misfit, SchemaDialect, fit
from app.llm.schemas.fitting import MAX_NODES
from app.llm.schemas.patterns import is_plain

FORMAT, OLLAMA_TOOLS, JSON_SCHEMA, OPENAPI, GEMINI_TOOLS, ANTHROPIC = SchemaDialect
TOLD = (OLLAMA_TOOLS, JSON_SCHEMA, OPENAPI, GEMINI_TOOLS, ANTHROPIC)
ANYTHING = {"anyOf": [{"type": name} for name in ("string", "number", "boolean", "null", "object", "array")]}
TEXT, WHOLE, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
Json = dict[str, Any]


def record(**properties: Any) -> Json:
    return {"type": "object", "properties": properties}


def within(schema: Any, dialect: SchemaDialect) -> tuple[Any, list[tuple[str, str]]]:
    """Return what a property becomes, and what is lost of it, by its path below."""
    fitted = fit(record(a=schema), dialect)
    lost = [(misfit.path.removeprefix("/properties/a"), misfit.keyword) for misfit in fitted.misfits]
    return fitted.schema["properties"]["a"], lost


@pytest.mark.parametrize(
    ("schema", "dialect", "sent"),
    [
        ({"const": "x", "type": "string"}, JSON_SCHEMA, {"type": "string", "enum": ["x"]}),
        ({"const": "x"}, FORMAT, {"type": "string", "enum": ["x"]}),
        ({"type": ["string", "null"], "minLength": 2}, FORMAT, {"anyOf": [{**TEXT, "minLength": 2}, NULL]}),
        ({"type": ["string"]}, OPENAPI, TEXT),
        ({"enum": [1, "x", None]}, FORMAT, {"anyOf": [{**WHOLE, "enum": [1]}, {**TEXT, "enum": ["x"]}, NULL]}),
        ({"anyOf": [TEXT, {"anyOf": [NULL, TEXT]}]}, OPENAPI, {"anyOf": [TEXT, NULL]}),
        ({"anyOf": [TEXT]}, OPENAPI, TEXT),
        ({"allOf": [TEXT], "description": "d"}, OPENAPI, {**TEXT, "description": "d"}),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9}, JSON_SCHEMA,
         {"type": "integer", "minimum": 1, "maximum": 8}),
        ({"type": "integer", "minimum": 0.5}, FORMAT, {"type": "integer", "minimum": 1}),
        ({"type": "array", "prefixItems": [TEXT], "minItems": 1, "items": False}, JSON_SCHEMA,
         {"type": "array", "prefixItems": [TEXT], "minItems": 1, "maxItems": 1}),
        ({"type": "array", "prefixItems": [TEXT, TEXT], "minItems": 2, "maxItems": 2}, OPENAPI,
         {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}),
        ({"type": "array", "items": [TEXT], "minItems": 1, "additionalItems": False}, FORMAT,
         {"type": "array", "prefixItems": [TEXT], "minItems": 1, "maxItems": 1}),
        ({"type": "object", "additionalProperties": {}}, FORMAT, {"type": "object", "additionalProperties": True}),
        ({**record(b=TEXT), "additionalProperties": False}, GEMINI_TOOLS, record(b=TEXT)),
        ({}, JSON_SCHEMA, {}),
        ({}, OLLAMA_TOOLS, {}),
        ({}, FORMAT, ANYTHING),
        (True, JSON_SCHEMA, {}),
        ({"title": "T", "default": 1, "examples": [1], "type": "integer", "x-y": 1}, GEMINI_TOOLS, WHOLE),
        ({"type": "string", "format": "password"}, FORMAT, TEXT),
    ],
)  # fmt: skip
def test_what_can_be_said_in_other_words_is_no_misfit(schema: Any, dialect: SchemaDialect, sent: Json):
    assert within(schema, dialect) == (sent, [])


@pytest.mark.parametrize(
    ("schema", "dialect", "sent", "lost"),
    [
        ({**TEXT, "pattern": r"^\d$"}, FORMAT, TEXT, ["pattern"]),
        ({**TEXT, "pattern": "^[a-z]+$", "minLength": 2}, FORMAT, {**TEXT, "pattern": "^[a-z]+$"}, ["minLength"]),
        ({**TEXT, "format": "date", "maxLength": 10}, FORMAT, {**TEXT, "format": "date"}, ["maxLength"]),
        ({**TEXT, "minLength": 1, "maxLength": 2000}, FORMAT, {**TEXT, "minLength": 1}, ["maxLength"]),
        ({**TEXT, "format": "email"}, FORMAT, TEXT, ["format"]),
        ({**WHOLE, "maximum": 10**15}, FORMAT, WHOLE, ["maximum"]),
        ({"type": "number", "minimum": 1}, FORMAT, {"type": "number"}, ["minimum"]),
        ({"type": "number", "exclusiveMinimum": 1, "minimum": 0}, JSON_SCHEMA,
         {"type": "number", "minimum": 1, "description": "(exclusiveMinimum: 1)"}, ["exclusiveMinimum"]),
        ({**WHOLE, "multipleOf": 5, "description": "d"}, GEMINI_TOOLS,
         {**WHOLE, "description": "d (multipleOf: 5)"}, ["multipleOf"]),
        ({**WHOLE, "enum": [1, 2]}, GEMINI_TOOLS, {**WHOLE, "description": "(enum: [1, 2])"}, ["enum"]),
        ({**TEXT, "enum": ["", "a"]}, OPENAPI, {**TEXT, "description": '(enum: ["", "a"])'}, ["enum"]),
        ({"type": "boolean", "const": True}, JSON_SCHEMA,
         {"type": "boolean", "description": "(enum: [true])"}, ["enum"]),
        ({"type": "array", "items": TEXT, "uniqueItems": True}, FORMAT, {"type": "array", "items": TEXT}, ["uniqueItems"]),
        ({"type": "array", "prefixItems": [TEXT, WHOLE]}, FORMAT,
         {"type": "array", "items": ANYTHING}, ["prefixItems"]),
        ({"type": "array", "prefixItems": [TEXT, WHOLE], "maxItems": 2}, FORMAT,
         {"type": "array", "items": {"anyOf": [TEXT, WHOLE]}, "maxItems": 2}, ["prefixItems"]),
        ({"type": "object", "additionalProperties": TEXT}, GEMINI_TOOLS, {"type": "object"}, ["additionalProperties"]),
        ({"type": "object", "patternProperties": {"^a": TEXT}, "additionalProperties": False}, FORMAT,
         {"type": "object", "additionalProperties": True}, ["patternProperties"]),
        ({**record(b=TEXT), "required": ["b", "c"]}, FORMAT, {**record(b=TEXT), "required": ["b"]}, ["required"]),
        ({**record(b=TEXT), "anyOf": [{"required": ["b"]}]}, OPENAPI, record(b=TEXT), ["anyOf"]),
        ({"oneOf": [TEXT, WHOLE]}, FORMAT, {"anyOf": [TEXT, WHOLE]}, ["oneOf"]),
        ({**TEXT, "not": {"enum": ["x"]}}, FORMAT, TEXT, ["not"]),
        ({"allOf": [{**WHOLE, "minimum": 1}, {"minimum": 3, "type": "number"}]}, FORMAT,
         {**WHOLE, "minimum": 3}, ["allOf"]),
        ({"$ref": "https://example.org/s"}, JSON_SCHEMA, {"description": '($ref: "https://example.org/s")'}, ["$ref"]),
        ({"$ref": "#/nowhere"}, FORMAT, ANYTHING, ["$ref"]),
        (False, JSON_SCHEMA, {}, ["false"]),
        ({"minimum": 3}, JSON_SCHEMA, {"description": "(minimum: 3)"}, ["minimum"]),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_left_out_and_named(
    schema: Any, dialect: SchemaDialect, sent: Json, lost: list[str]
):
    assert within(schema, dialect) == (sent, [("", keyword) for keyword in lost])


def test_a_misfit_has_the_json_pointer_of_its_place():
    deep = record(**{"a/b~c": {"anyOf": [{"type": "array", "items": {**TEXT, "format": "email"}}, NULL]}})
    assert fit(deep, FORMAT).misfits == (Misfit("/properties/a~1b~0c/anyOf/0/items", "format"),)


def test_properties_named_like_keywords_stay():
    odd = record(title=TEXT, default=WHOLE, examples=TEXT, **{"properties": TEXT, "$defs": TEXT})
    for dialect in SchemaDialect:
        assert fit(odd, dialect) == (odd, ())


def test_a_property_that_litellm_would_drop_goes_with_its_requirement_and_that_is_said():
    for name, dialect in (("strict", JSON_SCHEMA), ("strict", GEMINI_TOOLS), ("$ref", OPENAPI)):
        schema = {**record(**{name: TEXT, "a": TEXT}), "required": [name, "a"]}
        assert fit(schema, dialect) == ({**record(a=TEXT), "required": ["a"]}, (Misfit("", "properties"),))
        assert fit(schema, FORMAT) == (schema, ())


@pytest.mark.parametrize("dialect", [FORMAT, JSON_SCHEMA])
def test_definitions_stay_where_references_may(dialect: SchemaDialect):
    schema = {**record(a={"$ref": "#/$defs/A"}), "$defs": {"A": TEXT, "Unused": WHOLE}}
    assert fit(schema, dialect) == ({**record(a={"$ref": "#/$defs/A"}), "$defs": {"A": TEXT}}, ())


@pytest.mark.parametrize("dialect", [OLLAMA_TOOLS, OPENAPI, GEMINI_TOOLS])
def test_definitions_are_copied_where_references_may_not_stay(dialect: SchemaDialect):
    schema = {
        **record(a={"$ref": "#/$defs/A", "description": "d"}, b={"$ref": "#/$defs/A"}),
        "$defs": {"A": TEXT},
    }
    assert fit(schema, dialect) == (record(a={**TEXT, "description": "d"}, b=TEXT), ())


def test_a_reference_with_a_description_stands_alone_for_gemini():
    schema = {**record(a={"$ref": "#/$defs/A", "description": "d"}), "$defs": {"A": TEXT}}
    sent = fit(schema, JSON_SCHEMA).schema["properties"]["a"]
    assert sent == {"description": "d", "anyOf": [{"$ref": "#/$defs/A"}]}


def test_a_constraint_beside_a_reference_counts():
    schema = {**record(a={"$ref": "#/$defs/A", "maxLength": 3}), "$defs": {"A": {**TEXT, "minLength": 1}}}
    for dialect in (FORMAT, OPENAPI):
        assert fit(schema, dialect) == (record(a={**TEXT, "maxLength": 3, "minLength": 1}), ())


def test_definitions_whose_names_make_one_rule_of_a_grammar_get_two():
    names = ("A-B", "A_B", "A[int]", "A int ")
    schema = {
        **record(**{f"p{n}": {"$ref": f"#/$defs/{name}"} for n, name in enumerate(names)}),
        "$defs": {name: {**TEXT, "enum": [name]} for name in names},
    }
    sent = fit(schema, FORMAT).schema
    told = [sent["$defs"][each["$ref"].removeprefix("#/$defs/")] for each in sent["properties"].values()]
    assert [each["enum"] for each in told] == [[name] for name in names]
    assert list(sent["$defs"]) == ["A-B", "A_B-2", "A-int", "A-int-2"]


def test_pointers_to_anywhere_are_followed():
    schema = record(
        a=record(b={**TEXT, "maxLength": 2}), c={"$ref": "#/properties/a/properties/b"}, d={"$ref": "#"}
    )
    for dialect in SchemaDialect:
        fitted = fit(schema, dialect)
        assert Draft202012Validator(fitted.schema).is_valid({"c": "x", "d": {"c": "y"}})
    sent = fit(schema, FORMAT).schema
    assert sent["$defs"]["b"] == {**TEXT, "maxLength": 2}
    assert sent["$defs"]["root"]["properties"]["c"] == {"$ref": "#/$defs/b"}


# -- cycles, depth, size


def tree(*required: str) -> Json:
    node = {**record(children={"type": "array", "items": {"$ref": "#/$defs/T"}}), "required": [*required]}
    return {"$defs": {"T": node}, "$ref": "#/$defs/T"}


def test_a_grammar_takes_cycles():
    assert fit(tree("children"), FORMAT) == (tree("children") | {}, ())


def test_gemini_takes_a_cycle_through_a_property_that_may_be_left_out():
    assert fit(tree(), JSON_SCHEMA).misfits == ()
    fitted = fit(tree("children"), JSON_SCHEMA)
    assert fitted.misfits == (Misfit("/$defs/T", "required"),)
    assert "required" not in fitted.schema["$defs"]["T"]


def test_of_a_cycle_through_two_definitions_one_property_may_be_left_out():
    defs = {
        "A": {**record(b={"$ref": "#/$defs/B"}), "required": ["b"]},
        "B": {**record(a={"anyOf": [{"$ref": "#/$defs/A"}, NULL]}, c=TEXT), "required": ["a", "c"]},
    }
    fitted = fit({"$defs": defs, "$ref": "#/$defs/A"}, JSON_SCHEMA)
    left = [fitted.schema["$defs"][name].get("required") for name in ("A", "B")]
    assert left in ([None, ["a", "c"]], [["b"], ["c"]])
    assert len(fitted.misfits) == 1


def test_a_cycle_without_properties_ends_at_its_type():
    nested = {
        "$defs": {"N": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/N"}}, WHOLE]}},
        "$ref": "#/$defs/N",
    }
    fitted = fit(nested, JSON_SCHEMA)
    assert fitted.misfits == (Misfit("/$defs/N/anyOf/0/items", "$ref"),)
    assert fitted.schema["$defs"]["N"] == {"anyOf": [{"type": "array", "items": {}}, WHOLE]}


def test_a_copied_cycle_ends_at_its_type():
    fitted = fit(tree("children"), GEMINI_TOOLS)
    assert fitted.misfits == (Misfit("/$defs/T/properties/children/items", "$ref"),)
    once = {**record(children={"type": "array", "items": {"type": "object"}}), "required": ["children"]}
    assert fitted.schema == {**record(children={"type": "array", "items": once}), "required": ["children"]}


def test_a_cycle_of_several_types_ends_as_anything():
    node = {**record(a={"$ref": "#/$defs/T"}), "type": ["object", "null"]}
    fitted = fit({"$defs": {"T": node}, **record(a={"$ref": "#/$defs/T"})}, OLLAMA_TOOLS)
    assert [misfit.keyword for misfit in fitted.misfits] == ["$ref"]
    assert "'a': {}" in str(fitted.schema)


@pytest.mark.parametrize("dialect", SchemaDialect)
def test_a_definition_that_is_nothing_but_itself_ends(dialect: SchemaDialect):
    for itself in (
        {"$ref": "#/$defs/A"},
        {"allOf": [{"$ref": "#/$defs/A"}]},
        {"anyOf": [{"$ref": "#/$defs/A"}]},
    ):
        asked = {"$defs": {"A": itself}, "type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}
        assert fit(asked, dialect).schema["type"] == "object"


@pytest.mark.parametrize("dialect", SchemaDialect)
def test_a_schema_deeper_than_anybody_takes_keeps_its_types(dialect: SchemaDialect):
    schema: Json = record(a=TEXT)
    for _ in range(150):
        schema = record(a=schema)
    fitted = fit(schema, dialect)
    assert {misfit.keyword for misfit in fitted.misfits} == {"nesting"}
    levels, sent = 0, fitted.schema
    while sent.get("properties"):
        levels, sent = levels + 1, sent["properties"]["a"]
    assert levels == (30 if dialect in {OPENAPI, GEMINI_TOOLS} else 60)
    assert sent == {"type": "object"}


@pytest.mark.parametrize("dialect", [OLLAMA_TOOLS, OPENAPI, GEMINI_TOOLS])
def test_copies_do_not_grow_without_limit(dialect: SchemaDialect):
    defs: Json = {"D0": TEXT}
    for n in range(1, 25):
        defs[f"D{n}"] = record(a={"$ref": f"#/$defs/D{n - 1}"}, b={"$ref": f"#/$defs/D{n - 1}"})
    fitted = fit({"$defs": defs, **record(a={"$ref": "#/$defs/D24"})}, dialect)
    assert "$ref" in {misfit.keyword for misfit in fitted.misfits}
    assert str(fitted.schema).count("type") < 2 * MAX_NODES


# -- any value, parameters


@pytest.mark.parametrize("dialect", [OPENAPI, GEMINI_TOOLS])
def test_where_any_value_has_no_word_less_is_accepted_and_that_is_said(dialect: SchemaDialect):
    fitted = fit(record(a={"description": "d"}), dialect)
    assert fitted.misfits == (Misfit("/properties/a", "type", narrowed=True),)
    accepts = Draft202012Validator(fitted.schema).is_valid
    assert all(accepts({"a": value}) for value in (1, 1.5, "x", None, True, {"b": [[1]]}, [1, {"c": 1}]))
    assert not accepts({"a": [[1]]})
    assert fitted.schema["properties"]["a"]["description"] == "d"


@pytest.mark.parametrize("dialect", [OLLAMA_TOOLS, GEMINI_TOOLS])
def test_parameters_are_an_object(dialect: SchemaDialect):
    fitted = fit({"anyOf": [record(a=TEXT), NULL], "description": "d"}, dialect)
    assert fitted.schema.items() >= {"type": "object", "description": "d"}.items()
    assert fitted.misfits == (Misfit("", "type", narrowed=True),)
    assert fit({"type": "object", "properties": {}}, dialect) == ({"type": "object", "properties": {}}, ())


def test_only_where_the_model_sees_the_schema_a_lost_constraint_is_told():
    for dialect in SchemaDialect:
        sent = fit(record(a={**WHOLE, "multipleOf": 2}), dialect).schema["properties"]["a"]
        assert ("description" in sent) is (dialect in TOLD)


def test_the_original_is_left_alone_and_shared_with_nobody():
    inner = {**TEXT, "enum": ["a"]}
    schema = {**record(a=inner, b={"$ref": "#/$defs/A"}), "required": ["a"], "$defs": {"A": record(c={})}}
    before = repr(schema)
    for dialect in SchemaDialect:
        sent = fit(schema, dialect).schema
        sent["required"].append("x")
        sent["properties"]["a"]["enum"].append("x")
        sent["properties"].clear()
        again = fit(schema, dialect).schema
        assert again["properties"]["a"]["enum"] == ["a"]
    assert repr(schema) == before


def test_what_is_made_of_one_schema_is_no_part_of_another():
    for dialect in SchemaDialect:
        first = fit(record(a={}, b={}), dialect).schema["properties"]
        before = deepcopy(first["b"])
        for choice in first["a"].get("anyOf", []):
            choice["type"] = "spoilt"
        first["a"].setdefault("anyOf", []).append({})
        assert first["b"] == fit(record(a={}), dialect).schema["properties"]["a"] == before


@pytest.mark.parametrize(
    ("pattern", "plain"),
    [
        ("^[A-Z]{2}-[0-9]+$", True), ("^(?:a|b)*c?$", True), (r"^a\.b$", True), ("^$", True), ("^[a-z0-9_]{1,9}$", True),
        ("a", False), ("^a", False), ("a$", False), (r"^a\$", False), ("^a|b$", False), (r"^\d$", False),
        ("^(?=a)a$", False), ("^[^a]$", False), ("^a{2000}$", False), ("^a{1,2000}$", False), ("^(a$", False),
        ("^a)$", False), ("^*$", False), ('^"$', False), ("^.$", False), ("^(|a)$", False), ("^[a$", False),
        ("^a**$", False), ("^()$", False), (r"^[\w]$", False), ("^$$", False),
    ],
)  # fmt: skip
def test_a_pattern_is_sent_only_if_the_grammar_means_the_same(pattern: str, plain: bool):  # noqa: FBT001  # as listed
    assert is_plain(pattern) is plain

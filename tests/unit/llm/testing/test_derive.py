"""Derived answers: valid for every schema of the supported subset, with values of the prompt, always the same."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.llm.testing.derive import Ask, Tool, derive, tokens_in
from app.llm.testing.prompt import Prompt
from app.llm.testing.scalars import sample
from app.llm.testing.schema import value_for

INVOICE = (
    "Extract the data: Invoice INV-2026-017 from Acme Supplies Ltd, 3 chairs, total 1,249.50 EUR, "
    "due 2026-03-31, questions to billing@acme.example. Status: open"
)
names = st.text("abcdefgh_", min_size=1, max_size=8)
small = st.integers(0, 6)


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    whole = draw(st.booleans())
    schema: dict[str, Any] = {"type": "integer" if whole else "number"}
    low = draw(st.none() | st.integers(-1_000, 1_000))
    high = draw(st.none() | st.integers(0, 1_000).map(lambda gap: (low or 0) + 40 + gap))
    if low is not None:
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if high is not None:
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high
    if step := draw(st.none() | st.sampled_from([1, 3, 7, 0.5, 0.25, 0.01])):
        schema["multipleOf"] = step
    return schema


@st.composite
def texts(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["plain", "length", "enum", "const", "format", "pattern"]))
    if kind == "length":
        least = draw(st.integers(0, 30))
        return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 20))}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": draw(st.sampled_from(["^[A-Z]{3}$", r"^\d{4}-\d{2}$", "^[a-z]+$", "^a+b?$"])),
        }
    return {
        "plain": {"type": "string"},
        "enum": {"enum": draw(st.lists(names, min_size=1, max_size=4, unique=True))},
        "const": {"const": draw(names | st.integers() | st.none())},
        "format": {
            "type": "string",
            "format": draw(st.sampled_from(["date", "date-time", "email", "uuid", "ipv4"])),
        },
    }[kind]


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    schema = {"type": "object", "properties": properties, "required": required}
    return schema | {"additionalProperties": False} if draw(st.booleans()) else schema


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    least = draw(small)
    schema = {"type": "array", "items": draw(inner), "minItems": least}
    return schema | {"maxItems": least + draw(small)} if draw(st.booleans()) else schema


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    unions = st.builds(
        lambda key, parts: {key: parts}, st.just("anyOf"), st.lists(inner, min_size=1, max_size=3)
    )
    nullable = inner.map(
        lambda part: {"oneOf": [{"type": "null"}, {"type": "object", "properties": {"v": part}}]}
    )
    both = st.builds(lambda one, two: {"allOf": [one, two]}, objects(inner), objects(inner)).filter(_separate)
    return objects(inner) | arrays(inner) | unions | nullable | both


def _separate(schema: dict[str, Any]) -> bool:
    one, two = schema["allOf"]
    open_ended = "additionalProperties" not in one and "additionalProperties" not in two
    return open_ended and not one["properties"].keys() & two["properties"].keys()


leaves = numbers() | texts() | st.just({"type": "boolean"}) | st.just({"type": "null"}) | st.just({})
leaves |= st.just({"type": ["string", "null"]})
schemas = st.recursive(leaves, _nested, max_leaves=8)
prompts = st.sampled_from([INVOICE, "", "7", "a b c 12 3.5 -4"]) | st.text(max_size=80)


def check(value: Any, schema: Any) -> None:
    json.dumps(value, allow_nan=False)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(schema=schemas, prompt=prompts)
def test_a_derived_value_is_valid_for_its_schema_and_always_the_same(schema, prompt):
    value = value_for(schema, Prompt(prompt))
    check(value, schema)
    assert value == value_for(schema, Prompt(prompt))


@settings(max_examples=100, deadline=None)
@given(
    schema=numbers() | texts().filter(lambda each: not {"const", "enum", "pattern"} & each.keys()),
    least=small,
)
def test_items_are_distinct_where_the_schema_wants_them_distinct(schema, least):
    assume(schema.get("maxLength", 9) >= 1)  # else too few values exist, as below
    assume(schema.get("multipleOf", 1) <= 1)
    wanted = {"type": "array", "items": schema, "minItems": least, "uniqueItems": True}
    check(value_for(wanted, Prompt(INVOICE)), wanted)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True, "minItems": 3, "items": {"enum": ["a", "b", "c"]}},
        {"type": "array", "uniqueItems": True, "minItems": 2, "items": {"type": "boolean"}},
        {
            "type": "array",
            "uniqueItems": True,
            "minItems": 4,
            "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
        {"type": "array", "maxItems": 0, "items": {"type": "string"}},
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
        {"type": "object", "maxProperties": 1, "properties": {"a": {}, "b": {}}, "required": ["b"]},
        {"type": "object", "required": ["unlisted"]},
        {"allOf": [{"type": "integer", "minimum": 5}, {"minimum": 2, "maximum": 9}]},
        {"minimum": 3},
        {"items": {"type": "null"}},
        {"enum": [None]},
        {"type": "string", "pattern": r"^\+?[0-9]{2,5}\.x$", "minLength": 5},
        True,
    ],
)
def test_rules_that_random_schemas_rarely_meet_hold_as_well(schema):
    check(value_for(schema, Prompt(INVOICE)), schema)


def test_references_are_followed_and_recursion_ends():
    node = {
        "type": "object",
        "properties": {
            "name": {"$ref": "#/$defs/Name"},
            "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        },
        "required": ["name", "next"],
    }
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node, "Name": {"type": "string", "maxLength": 9}}}
    check(value_for(schema, Prompt(INVOICE)), schema)


def test_a_schema_that_no_number_satisfies_is_refused():
    with pytest.raises(ValueError, match="no number fits"):
        value_for({"type": "integer", "minimum": 5, "maximum": 4}, Prompt("1 2 3"))


@pytest.mark.parametrize(
    ("name", "rules", "expected"),
    [
        ("vendor", {"type": "string"}, "Acme Supplies Ltd"),
        ("total", {"type": "number"}, 1249.5),
        ("grossAmount", {"type": "number"}, 1249.5),
        ("quantity", {"type": "integer"}, 3),
        ("currency", {"type": "string"}, "EUR"),
        ("due_date", {"type": "string"}, "2026-03-31"),
        ("due", {"type": "string", "format": "date"}, "2026-03-31"),
        ("invoice_number", {"type": "string"}, "INV-2026-017"),
        ("email", {"type": "string"}, "billing@acme.example"),
        ("contact", {"type": "string", "format": "email"}, "billing@acme.example"),
        ("status", {"type": "string"}, "open"),
        ("status", {"enum": ["closed", "open"]}, "open"),
        ("item", {"type": "string"}, "chairs"),
        ("confidence", {"type": "number", "minimum": 0, "maximum": 1}, 0.9),
        ("summary", {"type": "string", "maxLength": 16}, "Extract the data"),
    ],
)
def test_the_name_of_a_property_finds_its_value_in_the_prompt(name, rules, expected):
    schema = {"type": "object", "properties": {name: rules}}
    assert value_for(schema, Prompt(INVOICE)) == {name: expected}


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Pay 1.234,50 now", "amount", 1234.5),
        ("Pay 42,50 now", "price", 42.5),
        ("We sold 1,200 units in version 1.2.3", "units", 1200),
        ("year: 1999, 2 pages", "year", 1999),
        ("on 2024-05-01 with 2 pages", "year", 2024),
    ],
)
def test_numbers_are_read_in_the_usual_spellings(text, name, expected):
    assert next(Prompt(text).numbers(name)) == expected


def test_dates_and_references_are_no_numbers():
    assert list(Prompt("INV-2026-017 of 2026-02-30x and 2026-03-31").numbers("count")) == []


@pytest.mark.parametrize("text", ["$5", "5 USD"])
def test_a_currency_sign_counts_as_its_code(text):
    assert next(Prompt(text).strings("currency")) == "USD"


def test_formats_keep_what_the_prompt_holds():
    prompt = Prompt("At 2026-02-01 10:30 see https://x.example/a, not 2026-02-31")
    assert prompt.formatted("date-time") == "2026-02-01T10:30:00Z"
    assert prompt.formatted("uri") == "https://x.example/a"
    assert prompt.formatted("unheard-of") is None


def test_a_pattern_beyond_the_simple_ones_falls_back_to_filler():
    assert sample("^(cat|dog)$", 3) == "xxx"


def tool(name: str) -> Tool:
    return Tool(name=name, parameters={"type": "object", "properties": {"city": {"type": "string"}}})


@pytest.mark.parametrize(
    ("ask", "called"),
    [
        (Ask(text="Oslo", tools=(tool("look"),)), "look"),
        (Ask(text="Oslo", tools=(tool("final_result"), tool("look"))), "look"),
        (Ask(text="Oslo", tools=(tool("final_result"),)), "final_result"),
        (
            Ask(text="Oslo", tools=(tool("final_result_B"),), called=("final_result_B",), results=("no",)),
            "final_result_B",
        ),
        (
            Ask(text="Oslo", tools=(tool("look"), tool("final_result")), called=("look",), results=("1",)),
            "final_result",
        ),
        (Ask(text="Oslo", tools=(tool("look"),), called=("look",), results=("1",)), None),
        (
            Ask(text="Oslo", tools=(tool("look"),), called=("look",), results=("1",), tool_required=True),
            "look",
        ),
        (Ask(text="Oslo"), None),
    ],
)
def test_function_tools_come_first_and_output_tools_after_them(ask, called):
    answer = derive(ask)
    assert [call.name for call in answer.calls] == ([called] if called else [])
    assert (answer.text is None) == bool(called)


def test_after_the_tools_the_schema_decides():
    ask = Ask(
        text="Weather?",
        tools=(tool("look"),),
        called=("look",),
        results=("Sun in Oslo",),
        schema=tool("").parameters,
    )
    assert json.loads(derive(ask).text or "") == {"city": "Oslo"}


def test_a_tool_without_parameters_gets_an_empty_object():
    assert derive(Ask(text="go", tools=(Tool(name="now", parameters={}),))).calls[0].arguments == {}


def test_an_empty_prompt_still_gets_a_sentence():
    assert (
        derive(Ask(text="", results=("42",))).text == "Stub answer about: nothing. The result of tool was: 42"
    )


def test_tokens_are_a_quarter_of_the_characters_and_at_least_one():
    assert [tokens_in("x" * length) for length in (0, 3, 8, 9)] == [1, 1, 2, 2]

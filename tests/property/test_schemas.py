"""What is sent instead of a schema accepts whatever the schema accepts, and what LiteLLM makes of it still does."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from litellm.llms.vertex_ai.common_utils import _build_vertex_schema
from pydantic import TypeAdapter

from app.llm.messages import Message, ResponseFormat, ToolSpec
from app.llm.schemas import SchemaDialect, fit, losses
from app.llm.types import LLMRequest
from tests.support.rounds import ROUNDS, times
from tests.support.schemas import CORPUS, schema_of

OFTEN = settings(max_examples=times(250), deadline=None, database=None, derandomize=ROUNDS == 1)
OPENAPI = (SchemaDialect.GEMINI_OPENAPI, SchemaDialect.GEMINI_TOOLS)
Json = dict[str, Any]


def accepts(schema: Any, value: Any) -> bool:
    return Draft202012Validator(schema).is_valid(value)


def test_the_corpus_is_large_and_its_values_are_valid():
    assert len(CORPUS) >= 60
    for name, (kind, values) in CORPUS.items():
        assert values, name
        for value in values:
            TypeAdapter(kind).validate_json(json.dumps(value))
            assert accepts(schema_of(name), value), name


@pytest.mark.parametrize("dialect", SchemaDialect)
@pytest.mark.parametrize("name", CORPUS)
def test_a_simplified_model_accepts_the_values_of_the_model(name: str, dialect: SchemaDialect):
    fitted = fit(schema_of(name), dialect)
    Draft202012Validator.check_schema(fitted.schema)
    if any(misfit.narrowed for misfit in fitted.misfits):
        assert name in NARROWED, (name, fitted.misfits)
        return
    for value in CORPUS[name][1]:
        assert accepts(fitted.schema, value), (fitted, value)
        assert dialect not in OPENAPI or accepts(_as_litellm_sends(fitted.schema), value)


NARROWED = {
    *("anything", "optional anything", "list of anything", "any JSON", "empty tuple", "recursive alias"),
    *("expression", "root list", "root union", "list of models"),  # as parameters of a tool
}
"""Types with a value that Gemini's `Schema` has no word for, or whose values are no objects, as parameters must be."""


@pytest.mark.parametrize("name", sorted(NARROWED))
def test_a_narrowed_model_accepts_nothing_that_the_model_refuses_there(name: str):
    """Less may be said, but nothing else: JSON without a word for it goes, no other comes."""
    fitted = fit(schema_of(name), SchemaDialect.GEMINI_TOOLS)
    assert any(misfit.narrowed for misfit in fitted.misfits)
    assert fitted.schema["type"] == "object"


@pytest.mark.parametrize("name", CORPUS)
def test_what_was_fitted_loses_nothing_more(name: str):
    for dialect in SchemaDialect:
        again = fit(fit(schema_of(name), dialect).schema, dialect)
        assert [misfit for misfit in again.misfits if not misfit.narrowed] == []


def test_losses_name_each_schema_of_a_request():
    schema = schema_of("set")
    request = LLMRequest(
        messages=(Message.user("x"),),
        response_format=ResponseFormat.of_schema(schema),
        tools=(ToolSpec(name="a"), ToolSpec(name="b", parameters=schema)),
    )
    assert {(loss.schema, loss.dialect.value) for loss in losses(request)} == {
        ("response_format", "ollama_format"), ("response_format", "gemini_json_schema"),
        ("response_format", "gemini_openapi"), ("tools/b", "ollama_tools"), ("tools/b", "gemini_tools"),
    }  # fmt: skip


# -- any schema, any value

KEYS = st.sampled_from("ab")
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from((0.5, 2.5, "", "a", "ab", "ba"))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=6
)
NUMBERS = st.integers(-2, 2) | st.sampled_from((0.5, 1.5))
COUNTS = st.integers(0, 2)
PATTERNS = st.sampled_from(("^a", "b$", "^[ab]+$", "^(a|b)?$", "^ab|c$"))
TYPES = st.sampled_from(("string", "integer", "number", "boolean", "null", "array", "object"))


def _keywords(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    several = st.lists(inner, min_size=1, max_size=2)
    return {
        "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
        "enum": st.lists(LEAVES, min_size=1, max_size=3),
        "const": LEAVES,
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS),
        "multipleOf": st.sampled_from((1, 2, 0.5)),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), COUNTS),
        **dict.fromkeys(("minProperties", "maxProperties"), COUNTS),
        "pattern": PATTERNS,
        "uniqueItems": st.booleans(),
        **dict.fromkeys(("items", "additionalProperties", "not", "if", "contains", "propertyNames"), inner),
        "prefixItems": several,
        **dict.fromkeys(("properties", "patternProperties"), st.dictionaries(KEYS, inner, max_size=2)),
        "required": st.lists(KEYS, max_size=2, unique=True),
        **dict.fromkeys(("anyOf", "oneOf", "allOf"), several),
        "$ref": st.sampled_from(("#/$defs/A", "#/$defs/B", "#")),
        "description": st.just("d"),
    }


@st.composite
def _schemas(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Json:
    known = _keywords(inner)
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=4, unique=True))
    return {name: draw(known[name]) for name in names}


SIMPLE = _schemas(
    st.booleans() | st.just({}) | st.sampled_from([{"type": name} for name in ("string", "object")])
)
INNER = st.booleans() | SIMPLE
SCHEMAS = st.builds(lambda root, a, b: {**root, "$defs": {"A": a, "B": b}}, _schemas(INNER), SIMPLE, SIMPLE)


@OFTEN
@given(schema=SCHEMAS, values=st.lists(VALUES, min_size=1, max_size=8))
def test_a_simplified_schema_accepts_whatever_the_schema_accepts(schema: Json, values: list[Any]):
    try:
        good = [value for value in values if accepts(schema, value)]
    except RecursionError:  # it is nothing but itself
        good = []
    for dialect in SchemaDialect:
        fitted = fit(schema, dialect)
        if not any(misfit.narrowed for misfit in fitted.misfits):
            assert all(accepts(fitted.schema, value) for value in good), (dialect, fitted)


def _as_litellm_sends(schema: Json) -> Json:
    """Return what LiteLLM makes of a schema for Gemini's `Schema`, `nullable` put back as JSON schema has it."""
    return _with_null(_build_vertex_schema(json.loads(json.dumps(schema))))


def _with_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _with_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest

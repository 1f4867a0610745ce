"""What is sent instead of a schema accepts whatever the schema accepts, and what LiteLLM makes of it still does."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from app.llm.messages import Message, ResponseFormat, ToolSpec
from app.llm.schemas import SchemaDialect, fit, losses
from app.llm.types import LLMRequest
from app.llm.wire.loading import load_litellm
from tests.support.rounds import times
from tests.support.schemas import CORPUS, schema_of

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
        ("response_format", "anthropic_format"),
    }  # fmt: skip


# -- any schema, any value

SCALARS = (None, True, -3, 0, 1, 2.5, "", "a", "ab", "aab")
LISTS = ([], [1], ["a"], [1, 1], [1, "a"], ["a", 2, None], [[1]], [{}])
OBJECTS = (
    {},
    {"a": 1},
    {"a": "b"},
    {"b": None},
    {"a": 1, "b": "ab"},
    {"b": [1]},
    {"a": {"a": 1}},
    {"c": 1, "d": 2},
)
VALUES = (*SCALARS, *LISTS, *OBJECTS)
TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
REFERENCES = ("#/$defs/A", "#/$defs/B", "#")
LIMITS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (-2, 0, 1, 0.5, 2.5)),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), (0, 1, 2)
    ),
    "multipleOf": (1, 2, 0.5),
    "pattern": ("^a", "b$", "^[ab]+$", "^(a|b)?$", "^ab|c$"),
    "uniqueItems": (True, False),
    "const": SCALARS,
    "$ref": REFERENCES,
    "description": ("d",),
}
ONE_SCHEMA = ("items", "additionalProperties", "not", "if", "contains", "propertyNames")
SCHEMAS_BY_NAME, SEVERAL = ("properties", "patternProperties"), ("prefixItems", "anyOf", "oneOf", "allOf")
SIMPLE = (*LIMITS, "type", "enum", "required")
INTO = ("items", "additionalProperties", "prefixItems", "contains", *SCHEMAS_BY_NAME)
KEYWORDS = (*LIMITS, *ONE_SCHEMA, *SCHEMAS_BY_NAME, *SEVERAL, "type", "enum", "required")


def some_schema(chance: random.Random, depth: int = 3, *, refers: bool = False) -> Any:
    """Return a schema of one to three keywords; it refers to others where a value is smaller than the whole only."""
    if depth < 3 and chance.random() < 0.5:
        return chance.choice((True, {}, *({"type": name} for name in TYPES)))
    known = [name for name in (KEYWORDS if depth else SIMPLE) if refers or name != "$ref"]
    return {
        name: some_rule(chance, name, depth - 1, refers=refers or name in INTO)
        for name in chance.sample(known, chance.choice((1, 2, 3)))
    }


def some_rule(chance: random.Random, name: str, depth: int, *, refers: bool) -> Any:
    if name in LIMITS:
        return chance.choice(LIMITS[name])
    if name in ONE_SCHEMA:
        return chance.random() < 0.5 if chance.random() < 0.3 else some_schema(chance, depth, refers=refers)
    if name in SCHEMAS_BY_NAME:
        keys = chance.sample("ab", chance.choice((1, 2)))
        return {key: some_schema(chance, depth, refers=refers) for key in keys}
    if name in SEVERAL:
        return [some_schema(chance, depth, refers=refers) for _ in range(chance.choice((1, 2, 3)))]
    pool: tuple[Any, ...] = {"type": TYPES, "enum": SCALARS, "required": ("a", "b")}[name]
    some = chance.sample(pool, chance.choice((1, 2)))
    return some[0] if name == "type" and len(some) == 1 else some


@pytest.mark.parametrize("hundred", range(times(15)))
def test_a_simplified_schema_accepts_whatever_the_schema_accepts(hundred: int):
    for seed in range(100 * hundred, 100 * hundred + 100):
        chance = random.Random(seed)  # noqa: S311  # to be repeated
        schema = {**some_schema(chance), "$defs": {name: some_schema(chance, 1) for name in "AB"}}
        good = accepted(schema)
        for dialect in SchemaDialect if good else ():
            fitted = fit(schema, dialect)
            if not any(misfit.narrowed for misfit in fitted.misfits):
                assert accepted(fitted.schema, good) == good, (seed, schema, dialect, fitted)


def accepted(schema: Json, values: Sequence[Any] = VALUES) -> list[Any]:
    accepts = Draft202012Validator(schema).is_valid
    return [value for value in values if accepts(value)]


def _as_litellm_sends(schema: Json) -> Json:
    """Return what LiteLLM makes of a schema for Gemini's `Schema`, `nullable` put back as JSON schema has it."""
    load_litellm()
    from litellm.llms.vertex_ai.common_utils import _build_vertex_schema

    return _with_null(_build_vertex_schema(json.loads(json.dumps(schema))))


def _with_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _with_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest

"""Puts the dialect of a candidate into a request, for the answer and for tools alike: the one place that does."""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from app.llm.schemas.dialects import SchemaDialect
from app.llm.schemas.fitting import Fitted, Misfit, fit
from app.llm.types import LLMRequest

FITTED_KEPT = 256
"""Most schemas that are remembered as they were fitted; a program has a handful."""
MAX_KEPT_BYTES = 65_536
"""Of JSON; a longer schema is fitted anew each time."""

_TOOLS = (SchemaDialect.OLLAMA_TOOLS, SchemaDialect.GEMINI_TOOLS)
_ANSWERS = tuple(dialect for dialect in SchemaDialect if dialect not in _TOOLS)


class SchemaMismatch(StrEnum):
    """What happens to a schema that a candidate cannot be told in full."""

    SIMPLIFY = "simplify"
    ROUTE = "route"
    ERROR = "error"


class Dialects(NamedTuple):
    """How a model is told of schemas."""

    answer: SchemaDialect
    tools: SchemaDialect | None = None
    """None where the parameters of tools are sent as they are."""


class Loss(NamedTuple):
    """What one schema of a request cannot say in one dialect."""

    dialect: SchemaDialect
    schema: str
    """`response_format`, or `tools/NAME`."""
    misfits: tuple[Misfit, ...]


def in_dialects(request: LLMRequest, dialects: Dialects) -> LLMRequest:
    """Return the request with schemas that the candidate can be told; the same one if it has none."""
    changed: dict[str, Any] = {}
    form = request.response_format
    if form is not None and form.json_schema is not None:
        schema = fitted(form.json_schema, dialects.answer).schema
        changed["response_format"] = form.model_copy(update={"json_schema": schema})
    if request.tools and dialects.tools is not None:
        in_dialect = dialects.tools
        changed["tools"] = tuple(
            tool.model_copy(update={"parameters": fitted(tool.parameters, in_dialect).schema})
            for tool in request.tools
        )
    return request.model_copy(update=changed) if changed else request


def losses(request: LLMRequest) -> tuple[Loss, ...]:
    """Return what the schemas of a request would lose in each dialect, where they lose anything."""
    form = request.response_format
    answer = form.json_schema if form is not None else None
    asked = [(tool.name, tool.parameters) for tool in request.tools]
    found = [
        Loss(dialect, "response_format", fitted(answer, dialect).misfits)
        for dialect in _ANSWERS
        if answer is not None
    ]
    found += [
        Loss(dialect, f"tools/{name}", fitted(parameters, dialect).misfits)
        for dialect in _TOOLS
        for name, parameters in asked
    ]
    return tuple(loss for loss in found if loss.misfits)


def most_bytes(parameters: Mapping[str, Any]) -> int:
    """Return the bytes of JSON that the parameters of a tool become, in the dialect that makes the most of them."""
    return max(len(orjson.dumps(fitted(parameters, dialect).schema)) for dialect in _TOOLS)


def fitted(schema: Mapping[str, Any], dialect: SchemaDialect) -> Fitted:
    """Return `fit(schema, dialect)`, which nobody may have changed."""
    try:
        key = orjson.dumps(schema)
    except TypeError:  # an integer of more than 64 bits
        return fit(schema, dialect)
    if len(key) > MAX_KEPT_BYTES:
        return fit(schema, dialect)
    text, misfits = _remembered(key, dialect)
    return Fitted(orjson.loads(text), misfits)


@lru_cache(maxsize=FITTED_KEPT)
def _remembered(schema: bytes, dialect: SchemaDialect) -> tuple[bytes, tuple[Misfit, ...]]:
    made = fit(orjson.loads(schema), dialect)
    return orjson.dumps(made.schema), made.misfits

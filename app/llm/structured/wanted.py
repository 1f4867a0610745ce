"""A type as what is asked of a model: the schema that it is told, and the check that its answer must pass."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from app.llm.checks import Objection, Said
from app.llm.errors import LLMInvalidOutput, LLMInvalidRequest
from app.llm.messages import Message, ResponseFormat, TextPart
from app.llm.structured.reading import NotJson, read_json
from app.llm.types import LLMRequest, LLMResponse

T = TypeVar("T")

FIELD = "answer"
"""Holds the value of a type that is no object: JSON mode knows only objects, and so do some schema dialects."""
MAX_FAULTS = 10
"""Faults that a candidate is told of at once; the first ones explain the rest."""
MAX_FAULT_CHARS = 300
TYPES_KEPT = 256

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_NAME_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked(Generic[T]):
    """A value of the type that was asked for, and the answer that it was read from."""

    value: T
    response: LLMResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted(Generic[T]):
    """The `Check` of one type."""

    adapter: TypeAdapter[T]
    form: ResponseFormat
    wrapped: bool
    """Whether the value stands in the field `answer` of an object."""
    tries: int = 2

    def asked(self, request: LLMRequest) -> LLMRequest:
        """Return the request whose answer is to be of this type.

        Raises:
            LLMInvalidRequest: It says otherwise what its answer is to be.
        """
        if request.tools or request.tool_choice is not None or request.response_format or request.variants:
            raise LLMInvalidRequest(
                "structured() says itself what the answer is: give it a request without tools, tool_choice, "
                "response_format and variants"
            )
        return request.model_copy(update={"response_format": self.form})

    def checked(self, response: LLMResponse) -> Checked[T]:
        """Return the value that an answer holds, with the answer.

        Raises:
            LLMInvalidOutput: It does not pass any more: a validator judges differently each time.
        """
        try:
            return Checked(value=self._read(_text(response)), response=response)
        except _Invalid as invalid:
            raise LLMInvalidOutput(
                f"an answer passed, and does not pass any more: {len(invalid.faults)} faults"
            ) from None

    def objection(self, said: Said) -> Objection | None:
        """Return what is wrong with an answer, and how the model is told."""
        text = _text(said)
        try:
            self._read(text)
        except _Invalid as invalid:
            return Objection(faults=invalid.faults, turns=correction(text, invalid.faults))
        return None

    def _read(self, text: str) -> T:
        try:
            value = read_json(text)
        except NotJson as fault:
            raise _Invalid([f"$: {fault}"]) from None
        if self.wrapped:
            if not isinstance(value, dict) or value.keys() != {FIELD}:
                raise _Invalid([f"$: must be an object with the field {FIELD!r} alone"])
            value = value[FIELD]
        try:
            return self.adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            raise _Invalid(_faults(error, (FIELD,) if self.wrapped else ())) from None


class _Invalid(ValueError):
    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(*faults)
        self.faults = tuple(faults)


def wanted(of: type[T], *, tries: int) -> Wanted[T]:
    """Return what to ask for a value of type `of`, one candidate at most `tries` times.

    Raises:
        LLMInvalidRequest: There is no JSON schema of the type, or nobody would be asked.
    """
    if tries < 1:
        raise LLMInvalidRequest(f"tries={tries}: a candidate is asked once at least")
    try:
        adapter, form, wrapped = _shape(of)
    except PydanticUserError as error:
        name = getattr(of, "__name__", str(of))
        raise LLMInvalidRequest(
            f"{name} has no JSON schema that an answer could be held to: {error}"
        ) from None
    return Wanted(adapter=cast("TypeAdapter[T]", adapter), form=form, wrapped=wrapped, tries=tries)


def _shape(of: Any) -> "_Shape":
    try:
        hash(of)
    except TypeError:  # an `Annotated` whose notes cannot be hashed
        return _made(of)
    return _remembered(of)


def _made(of: Any) -> "_Shape":
    adapter: TypeAdapter[Any] = TypeAdapter(of)
    schema = adapter.json_schema()
    wrapped = not _is_object(schema)
    if wrapped:
        shared = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
        schema = {"type": "object", "properties": {FIELD: schema}, "required": [FIELD], **shared}
    name = _NOT_IN_A_NAME.sub("_", str(schema.get("title") or FIELD))[:_NAME_CHARS]
    return adapter, ResponseFormat(type="adaptive", name=name, json_schema=schema), wrapped


_Shape = tuple[TypeAdapter[Any], ResponseFormat, bool]
_remembered = lru_cache(maxsize=TYPES_KEPT)(_made)


def _is_object(schema: dict[str, Any]) -> bool:
    target = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    return bool(schema.get("$defs", {}).get(target, schema).get("type") == "object")


def _text(said: Said) -> str:
    return "".join(part.text for part in said.parts if isinstance(part, TextPart))


def _faults(error: ValidationError, within: tuple[str, ...]) -> list[str]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{_path((*within, *fault['loc']))}: {fault['msg']}"[:MAX_FAULT_CHARS] for fault in found]


def _path(loc: Sequence[int | str]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)


def correction(text: str, faults: Sequence[str]) -> tuple[Message, ...]:
    """Return the turns that follow an answer which is not valid: what was said, and what is wrong with it."""
    listed = "\n".join(f"- {fault}" for fault in faults[:MAX_FAULTS])
    complaint = Message.user(
        f"That is not valid:\n{listed}\nAnswer again, with the corrected JSON alone; invent nothing."
    )
    return (Message.assistant(text), complaint) if text.strip() else (complaint,)

"""An agent's own schemas as a check, so that output which does not fit them can fall back to another candidate."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from pydantic_ai.models import ModelRequestParameters

from app.llm.checks import Objection, Said
from app.llm.messages import TextPart, ToolCallPart
from app.llm.pydanticai.internals import strip_markdown_fences
from app.llm.structured.reading import NotJson, strict_json

MAX_FAULTS = 10

_MAY_BE_FOREIGN = ("type", "pattern", "patternProperties", "additionalProperties", "$ref", "$dynamicRef")
"""Keywords of which a schema may say what cannot be read here: patterns of another engine (Pydantic's has `\\p{L}`),
references to elsewhere. They are left to PydanticAI, which validates an answer in any case."""


@dataclass(frozen=True, slots=True)
class DeclaredCheck:
    """Holds answers to the letter of the tools and the output that a request of an agent declares.

    One try per candidate: PydanticAI itself asks again what it can tell the model.
    """

    params: ModelRequestParameters
    tries: ClassVar[int] = 1

    def objection(self, said: Said) -> Objection | None:
        """Return what is wrong with an answer; None if PydanticAI can go on with it."""
        calls = [part for part in said.parts if isinstance(part, ToolCallPart)]
        found = self._of_calls(calls) if calls else self._of_text(_text(said))
        faults = [fault for _, fault in zip(range(MAX_FAULTS), found, strict=False)]
        return Objection(faults=faults) if faults else None

    def _of_calls(self, calls: list[ToolCallPart]) -> Iterator[str]:
        tools = self.params.tool_defs
        for call in calls:
            if call.name not in tools:
                yield f"{call.name}: there is no such tool"
            else:
                yield from _misfits(call.name, call.arguments, tools[call.name].parameters_json_schema)

    def _of_text(self, text: str) -> Iterator[str]:
        wanted = self.params.output_object
        if wanted is not None and self.params.output_mode in {"auto", "native", "prompted"}:
            try:
                value = strict_json(strip_markdown_fences(text))
            except NotJson as fault:
                yield f"$: {fault}"
            else:
                yield from _misfits("$", value, wanted.json_schema)
        elif not self.params.allow_text_output:
            yield "$: a text, where a tool call was due"


def _misfits(where: str, value: Any, schema: dict[str, Any]) -> Iterator[str]:
    for fault in _validator()(schema).iter_errors(value):
        yield f"{where}{fault.json_path.removeprefix('$')}: does not fit {fault.validator!r}"


@cache
def _validator() -> Callable[[dict[str, Any]], Any]:
    from jsonschema import Draft202012Validator, validators  # type: ignore[import-untyped]  # noqa: PLC0415  # 40 ms; no types
    from jsonschema.exceptions import UnknownType  # type: ignore[import-untyped]  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    def left_out(usual: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
        def faults(*asked: Any) -> Iterator[Any]:
            try:
                yield from usual(*asked) or ()
            except (re.error, UnknownType, Unresolvable):
                return

        return faults

    usual = Draft202012Validator.VALIDATORS
    kind = validators.extend(Draft202012Validator, {name: left_out(usual[name]) for name in _MAY_BE_FOREIGN})
    registry: Registry[Any] = Registry()  # it fetches nothing
    return lambda schema: kind(schema, registry=registry)


def _text(said: Said) -> str:
    return "".join(part.text for part in said.parts if isinstance(part, TextPart))

"""The pieces in which an answer arrives: typed, frozen, and in the order in which the provider says them."""

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.types import LLMProvider

Parts = tuple[TextPart | ToolCallPart | ThinkingPart, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text; the texts of a stream, joined, are `LLMResponse.text`."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """More of the reasoning that the model shows."""

    text: str
    signature: str | None = None
    """The provider's seal on the thoughts so far, where it gives one."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A tool call, whole: neither Ollama nor Gemini cuts one in pieces."""

    index: int
    """0 for the first call of the answer; the place in `LLMResponse.tool_calls`."""
    id: str
    """As in `LLMResponse.tool_calls`."""
    name: str
    arguments: str
    """The arguments as the JSON of one object."""
    signature: str | None = None


Delta = TextDelta | ThinkingDelta | ToolCallDelta


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers live: said once, before the first delta."""

    provider: LLMProvider
    model: str


OnDelta = Callable[[Delta], Awaitable[None]]
"""Takes a delta, and returns when there is room for the next one."""
Tell = Callable[[Answering | Delta], Awaitable[None]]
"""Likewise, and is told who answers."""


def deltas_of(parts: Parts) -> list[Delta]:
    """Return a complete answer as the deltas of its parts, one each."""
    deltas: list[Delta] = []
    calls = 0
    for part in parts:
        match part:
            case TextPart():
                deltas.append(TextDelta(part.text))
            case ThinkingPart():
                deltas.append(ThinkingDelta(part.text, part.signature))
            case ToolCallPart():
                arguments = json.dumps(dict(part.arguments), ensure_ascii=False)
                deltas.append(ToolCallDelta(calls, part.id, part.name, arguments, part.signature))
                calls += 1
    return deltas


def parts_of(deltas: Iterable[Delta]) -> Parts:
    """Return the parts that deltas make: texts that follow each other are one part, and so are thoughts."""
    parts: list[TextPart | ToolCallPart | ThinkingPart] = []
    for kind, run in groupby(deltas, type):
        same = list(run)
        if kind is TextDelta:
            parts.append(TextPart(text=_joined(same)))
        elif kind is ThinkingDelta:
            signatures = [
                each.signature for each in same if isinstance(each, ThinkingDelta) and each.signature
            ]
            parts.append(ThinkingPart(text=_joined(same), signature=signatures[-1] if signatures else None))
        else:
            parts.extend(_call(each) for each in same if isinstance(each, ToolCallDelta))
    return tuple(parts)


def _joined(deltas: Iterable[Delta]) -> str:
    return "".join(each.text for each in deltas if not isinstance(each, ToolCallDelta))


def _call(delta: ToolCallDelta) -> ToolCallPart:
    arguments = json.loads(delta.arguments)
    return ToolCallPart(id=delta.id, name=delta.name, arguments=arguments, signature=delta.signature)

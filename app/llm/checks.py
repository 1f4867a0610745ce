"""The port of a caller's check: what an answer must be beyond being one, asked before it counts as the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.llm.messages import Message, TextPart, ThinkingPart, ToolCallPart
from app.llm.types import FinishReason


class Said(Protocol):
    """What a check may look at: a provider's reply, or a stored answer."""

    @property
    def parts(self) -> tuple[TextPart | ToolCallPart | ThinkingPart, ...]:
        """As in `LLMResponse.parts`."""
        ...

    @property
    def finish_reason(self) -> FinishReason:
        """Why the model stopped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """What is wrong with an answer."""

    faults: Sequence[str]
    """One line each, in the order of the answer."""
    turns: Sequence[Message] = ()
    """What follows the request when the same candidate is asked again; empty: asking again would not help."""


class Check(Protocol):
    """Judges answers. Pure, since the same answer is judged again when it is replayed."""

    @property
    def tries(self) -> int:
        """Times that one candidate is asked at most; 1: an answer that does not pass is never asked for again."""
        ...

    def objection(self, said: Said) -> Objection | None:
        """Return what is wrong with an answer; None if it is what was asked for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An answer that did not pass, as it came."""

    provider: str
    model: str
    parts: tuple[TextPart | ToolCallPart | ThinkingPart, ...]
    finish_reason: FinishReason
    faults: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

"""What a stub can be told to answer, free of any provider, so that one script runs against each of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from app.llm.testing.gate import Gate

Json = dict[str, Any]
Provider = Literal["ollama", "gemini", "openai", "anthropic"]


class Shape(Enum):
    """How a successful answer departs from the plain one."""

    PLAIN = "plain"
    NO_USAGE = "no_usage"
    LOAD = "load"
    FULL_WINDOW = "full_window"
    BLOCKED = "blocked"
    PROMPT_BLOCKED = "prompt_blocked"
    MALFORMED_CALL = "malformed_call"
    NO_CANDIDATES = "no_candidates"


class Cause(Enum):
    """Failures whose status, text or details each provider spells differently."""

    CONTEXT_EXCEEDED = "context_exceeded"
    NO_TOOLS = "no_tools"
    RATE_LIMITED = "rate_limited"
    WRONG_KEY = "wrong_key"


class FaultKind(Enum):
    """What goes wrong between a finished answer and the client's socket."""

    RESET = "reset"
    TRUNCATED = "truncated"
    DRIP = "drip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call of the model."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None
    """Sent only if given: an older Ollama and most Gemini models send none."""
    signature: str | None = None
    """Gemini's thoughtSignature (base64); Ollama has no place for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A success. Without text and calls, what is said is derived from the request."""

    text: str | None = None
    thinking: str | None = None
    calls: tuple[Call, ...] = ()
    usage: tuple[int, int] | None = None
    """Input and output tokens; None derives them from lengths."""
    finish: str = "stop"
    """`stop` and `length` are translated; any other word is sent as it is."""
    shape: Shape = Shape.PLAIN

    @property
    def derived(self) -> bool:
        """True if the request decides what is said."""
        return self.text is None and not self.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error in the provider's own shape, unless `body` replaces it."""

    status: int
    message: str | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cause: Cause | None = None
    retry_after_s: int | None = None
    tokens: tuple[int, int] | None = None
    """Counted and allowed input tokens, for an exceeded context."""


@dataclass(frozen=True, slots=True)
class Thought:
    """Some of what the model thinks, as a piece of a stream."""

    text: str
    signature: str | None = None
    """Gemini's thoughtSignature (base64); Ollama has no place for it."""


Piece = str | Thought | Call | Failure | bytes | Gate | tuple[Call, ...]
"""One chunk of a stream: text, thoughts, calls, an error, exact bytes; or a gate, at which the stream waits."""


class End(Enum):
    """How a stream ends: with its last chunk, without it, or with the connection (RST)."""

    LAST = "last"
    UNFINISHED = "unfinished"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """An answer chunk by chunk; whoever asks for no stream gets it whole."""

    pieces: tuple[Piece, ...]
    usage: tuple[int, int] | None = None
    finish: str = "stop"
    end: End = End.LAST
    shape: Shape = Shape.PLAIN

    def whole(self) -> Answer:
        """Return what the pieces make together."""
        texts = [piece for piece in self.pieces if isinstance(piece, str)]
        thoughts = [piece.text for piece in self.pieces if isinstance(piece, Thought)]
        calls = [
            call
            for piece in self.pieces
            for call in (piece if isinstance(piece, tuple) else (piece,))
            if isinstance(call, Call)
        ]
        return Answer(
            text="".join(texts) if texts or not calls else None,
            thinking="".join(thoughts) if thoughts else None,
            calls=tuple(calls),
            usage=self.usage,
            finish=self.finish,
            shape=self.shape,
        )


def pieces_of(answer: Answer) -> Stream:
    """Return an answer as providers stream it: thoughts and text word by word, each call in a chunk of its own."""
    words = _words(answer.text or "")
    pieces: tuple[Piece, ...] = (
        *(Thought(word) for word in _words(answer.thinking or "")),
        *words,
        *answer.calls,
    )
    return Stream(pieces=pieces, usage=answer.usage, finish=answer.finish, shape=answer.shape)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """Exact bytes of an HTTP answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: tuple[bytes | Gate, ...] = ()
    """If given, what is sent instead of `body`, each in a write of its own, in HTTP's chunked encoding."""
    end: End = End.LAST
    """How that ends."""
    padding_bytes: int = 0
    """Bytes of filler after `body`, made while they are sent so that no test holds them in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How the delivery of an answer fails."""

    kind: FaultKind
    before_headers: bool = True
    """Whether it begins with the status line rather than with the body."""
    abrupt: bool = True
    """RST if true, an orderly FIN otherwise."""
    seconds_per_byte: float = 0.0

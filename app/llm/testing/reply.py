"""The vocabulary of scripts: every way a provider answers or fails, since untested failures are met in production."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from app.llm.testing.content import (
    Answer,
    Call,
    Cause,
    End,
    Failure,
    Fault,
    FaultKind,
    Piece,
    Provider,
    Shape,
    Stream,
    Wire,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer; each stub renders it in its own wire format. The default is the derived answer."""

    content: Answer | Stream | Failure | Wire = field(default_factory=Answer)
    delay_s: float = 0.0
    fault: Fault | None = None
    only: Provider | None = None
    """The provider that alone can say this; the other stubs refuse the script."""

    # -- answers

    @classmethod
    def text(
        cls,
        text: str,
        *,
        thinking: str | None = None,
        usage: tuple[int, int] | None = None,
        finish: str = "stop",
    ) -> Self:
        """Say `text`. `usage` is (input, output) tokens; `finish` is `stop`, `length` or a provider's word."""
        return cls(content=Answer(text=text, thinking=thinking, usage=usage, finish=finish))

    @classmethod
    def json(cls, value: object, *, usage: tuple[int, int] | None = None) -> Self:
        """Say `value` as JSON text."""
        return cls.text(json.dumps(value, ensure_ascii=False), usage=usage)

    @classmethod
    def tool_call(
        cls,
        name: str,
        arguments: Mapping[str, Any],
        *,
        more: Iterable[tuple[str, Mapping[str, Any]]] = (),
        usage: tuple[int, int] | None = None,
    ) -> Self:
        """Call one tool; `more` holds (name, arguments) of calls made in parallel."""
        calls = [(name, arguments), *more]
        return cls.tool_calls([Call(name=each, arguments=given) for each, given in calls], usage=usage)

    @classmethod
    def tool_calls(
        cls, calls: Iterable[Call], *, text: str | None = None, usage: tuple[int, int] | None = None
    ) -> Self:
        """Call tools with explicit ids or thought signatures, after saying `text`."""
        return cls(content=Answer(text=text, calls=tuple(calls), usage=usage))

    @classmethod
    def derived(cls) -> Self:
        """Answer from the request, as an empty script does; useful between scripted failures."""
        return cls()

    @classmethod
    def no_usage(cls, text: str | None = None) -> Self:
        """Answer without any token counts; without `text` the answer is derived."""
        return cls(content=Answer(text=text, shape=Shape.NO_USAGE))

    @classmethod
    def stream(
        cls, *pieces: Piece, usage: tuple[int, int] | None = None, finish: str = "stop", end: End = End.LAST
    ) -> Self:
        """Say the pieces chunk by chunk; a `Gate` among them (`stub.gate()`) holds the stream back.

        A `Failure` is said as an error within the stream. `end` may leave the last chunk out, or break the connection.
        """
        return cls(content=Stream(pieces=pieces, usage=usage, finish=finish, end=end))

    # -- failures that the provider states

    @classmethod
    def status(
        cls,
        code: int,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        message: str | None = None,
    ) -> Self:
        """Fail with an HTTP status; without `body` (JSON) the error has the provider's shape and text."""
        return cls(content=Failure(status=code, body=body, headers=headers or {}, message=message))

    @classmethod
    def rate_limited(cls, retry_after_s: int | None = None) -> Self:
        """429; the wait travels as RetryInfo (Gemini) or as the Retry-After header (all others)."""
        return cls(content=Failure(status=429, cause=Cause.RATE_LIMITED, retry_after_s=retry_after_s))

    @classmethod
    def context_exceeded(cls, tokens: int = 1_200_000, limit: int = 1_048_576) -> Self:
        """400 because the input has `tokens` tokens where `limit` are allowed."""
        return cls(content=Failure(status=400, cause=Cause.CONTEXT_EXCEEDED, tokens=(tokens, limit)))

    # -- bytes that no client should trust

    @classmethod
    def raw(
        cls,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Send exactly these bytes."""
        return cls(content=Wire(body=body, status=status, content_type=content_type, headers=headers or {}))

    @classmethod
    def garbage(cls) -> Self:
        """200 with an HTML page, as a captive portal or a proxy sends it."""
        return cls.raw(b"<html><body><h1>It works!</h1></body></html>", content_type="text/html")

    @classmethod
    def empty(cls) -> Self:
        """200 without a body."""
        return cls.raw(b"")

    @classmethod
    def huge(cls, bytes_count: int) -> Self:
        """200 with a body of `bytes_count` bytes: one JSON string that never ends."""
        opening = b'{"padding":"'[:bytes_count]
        return cls(content=Wire(body=opening, padding_bytes=bytes_count - len(opening)))

    @classmethod
    def redirect(cls, to: str) -> Self:
        """307 to another address, which must not receive the prompt unasked."""
        return cls.raw(b"", status=307, headers={"Location": to})

    # -- failures of the connection, around any other reply

    @classmethod
    def reset(cls, *, before_headers: bool = True, abrupt: bool = True) -> Self:
        """Cut the connection, before any byte or after the headers; `abrupt` sends RST, otherwise FIN."""
        return cls(fault=Fault(kind=FaultKind.RESET, before_headers=before_headers, abrupt=abrupt))

    @classmethod
    def truncated(cls, of: "Reply | None" = None) -> Self:
        """Promise the whole body of `of` (default: derived), send half of it, close."""
        return cls._around(of, Fault(kind=FaultKind.TRUNCATED))

    @classmethod
    def drip(cls, seconds_per_byte: float, of: "Reply | None" = None, *, headers: bool = False) -> Self:
        """Send the body of `of` (default: derived) byte by byte; its headers at once, or like the body."""
        fault = Fault(kind=FaultKind.DRIP, before_headers=headers, seconds_per_byte=seconds_per_byte)
        return cls._around(of, fault)

    def after(self, seconds: float) -> Self:
        """Return this reply, sent `seconds` later."""
        return replace(self, delay_s=seconds)

    @classmethod
    def _around(cls, of: "Reply | None", fault: Fault) -> Self:
        inner = of or cls()
        return cls(content=inner.content, delay_s=inner.delay_s, fault=fault, only=inner.only)

    # -- only Ollama

    @classmethod
    def load(cls) -> Self:
        """An empty message with done_reason `load`: the model was loaded, nothing was said."""
        return cls(content=Answer(text="", shape=Shape.LOAD), only="ollama")

    @classmethod
    def truncated_context(cls, text: str | None = None) -> Self:
        """A success whose token counts fill num_ctx exactly: Ollama dropped the start of the prompt silently."""
        return cls(content=Answer(text=text, shape=Shape.FULL_WINDOW), only="ollama")

    @classmethod
    def out_of_memory(cls) -> Self:
        """500, as Ollama says it when the model does not fit."""
        text = "model requires more system memory (5.5 GiB) than is available (2.1 GiB)"
        return cls(content=Failure(status=500, message=text), only="ollama")

    @classmethod
    def busy(cls) -> Self:
        """503, as Ollama says it when its queue is full (two spaces included)."""
        text = "server busy, please try again.  maximum pending requests exceeded"
        return cls(content=Failure(status=503, message=text), only="ollama")

    @classmethod
    def no_tools(cls) -> Self:
        """400, as Ollama says it when the model's template knows no tools."""
        return cls(content=Failure(status=400, cause=Cause.NO_TOOLS), only="ollama")

    # -- only Gemini

    @classmethod
    def blocked(cls, reason: str = "SAFETY") -> Self:
        """200 with one empty candidate whose finishReason is `reason`, e.g. RECITATION."""
        return cls(content=Answer(text="", finish=reason, shape=Shape.BLOCKED), only="gemini")

    @classmethod
    def prompt_blocked(cls, reason: str = "PROHIBITED_CONTENT") -> Self:
        """200 with promptFeedback.blockReason and no candidates."""
        return cls(content=Answer(text="", finish=reason, shape=Shape.PROMPT_BLOCKED), only="gemini")

    @classmethod
    def malformed_function_call(cls) -> Self:
        """200 with one empty candidate: the model wrote a call that Gemini could not parse."""
        answer = Answer(text="", finish="MALFORMED_FUNCTION_CALL", shape=Shape.MALFORMED_CALL)
        return cls(content=answer, only="gemini")

    @classmethod
    def no_candidates(cls) -> Self:
        """200 with usage and nothing else."""
        return cls(content=Answer(text="", shape=Shape.NO_CANDIDATES), only="gemini")

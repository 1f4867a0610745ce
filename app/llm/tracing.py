"""Spans of calls, sends and ledger transactions, for whoever set up OpenTelemetry; nearly nothing for whoever did not.

A call is a span of ours with a CLIENT span below it for each send. Sends are what the conventions describe: one model
of one provider, with its tokens. A call may ask several, so it has no tokens of its own, and none are counted twice.
Inside a span that stands for a request already (PydanticAI's, say) there is no second one for the call: the sends are
children of that span, which keeps the tokens and texts to itself.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import version
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from app.llm import conventions as names
from app.llm.errors import LLMCancelled, LLMError
from app.llm.messages import FilePart, ImagePart, Message, TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import (
    Abandoned,
    Conflict,
    Finished,
    FlightHeld,
    Hit,
    InProgress,
    NewRun,
    ProviderReply,
    Replay,
    Won,
)
from app.llm.types import Attempt, LLMRequest

T = TypeVar("T")
Redact = Callable[[str], str]

_OUTCOMES: Mapping[type, str] = {
    Won: "won",
    Replay: "replay",
    Hit: "hit",
    Conflict: "conflict",
    InProgress: "in_progress",
    Abandoned: "abandoned",
    FlightHeld: "flight_held",
}
LOOK_EVERY_S = 0.1
"""Seconds between two looks for a tracer provider: one takes 1.5 us, which no untraced call should pay."""
_NANOSECONDS = 1e9


class Server(NamedTuple):
    """Where a provider listens."""

    address: str
    port: int


class Tracing:
    """Makes the spans; without a tracer provider it looks for one now and then, and that is all."""

    def __init__(
        self,
        provider: TracerProvider | None = None,
        *,
        redact: Redact | None = None,
        servers: Mapping[str, Server] = MappingProxyType({}),
    ) -> None:
        """Take what spans say.

        Args:
            provider: Whose tracer; None is the global one, which may also be set later.
            redact: Goes over prompts and answers; None leaves them out.
            servers: By provider.
        """
        self._tracer = trace.get_tracer("signalbox", _version(), provider, names.SCHEMA_URL)
        self._live = provider is not None
        self._look_at_s = 0.0
        self._redact = redact
        self._servers = servers

    def begin_call(self) -> "CallSpan | None":
        """Return the span of a call, current until it is ended; None where nobody traces, or where one is there."""
        if not self._is_live() or is_request(trace.get_current_span()):
            return None
        return CallSpan(self._tracer.start_span(names.CALL_SPAN))

    def ledger(self, name: str, run_id: str) -> "LedgerSpan | None":
        """Return the span of a transaction of the ledger, for the time of a `with` block; None outside of a traced call."""
        if not self._is_live() or not trace.get_current_span().is_recording():
            return None
        return LedgerSpan(self._tracer.start_span(name, attributes={names.RUN_ID: run_id}))

    def attempt(
        self,
        attempt: Attempt,
        run: NewRun,
        *,
        asked: LLMRequest,
        reply: ProviderReply | None,
        streamed: bool,
    ) -> None:
        """Leave the span of a send that has ended, if its call is traced; as in `Telemetry.attempt_ended`."""
        if not self._live or not (parent := trace.get_current_span()).is_recording():
            return
        said = _of_send(attempt, run, asked, streamed=streamed) | _of_server(
            self._servers.get(attempt.provider)
        )
        if reply is not None:
            said[names.RESPONSE_MODEL] = attempt.model
            said[names.FINISH_REASONS] = [reply.finish_reason.value]
        if not is_request(parent):
            said |= _of_tokens(attempt) | self._texts(asked, reply)
        span = self._tracer.start_span(
            f"{names.CHAT} {attempt.model}",
            kind=SpanKind.CLIENT,
            attributes=said,
            start_time=_nanoseconds(attempt.started_at),
        )
        if attempt.status == "FAILED":
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(attempt.finished_at))

    def _is_live(self) -> bool:
        """Return whether somebody traces; a provider that was set later is seen within `LOOK_EVERY_S`."""
        if not self._live and (now_s := time.monotonic()) >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            self._live = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        return self._live

    def _texts(self, asked: LLMRequest, reply: ProviderReply | None) -> dict[str, Any]:
        if self._redact is None:
            return {}
        texts = {names.INPUT_MESSAGES: _json(_turn(turn, self._redact) for turn in asked.messages)}
        if reply is not None:
            answer = {"role": "assistant", "parts": [_part(part, self._redact) for part in reply.parts]}
            finish_reason = reply.finish_reason.value
            texts[names.OUTPUT_MESSAGES] = _json([{**answer, "finish_reason": finish_reason}])
        return texts


class CallSpan:
    """The span of a call; what begins meanwhile in its task is a child of it."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))

    def end(self, said: Mapping[str, Any], *, failed: bool) -> None:
        """End it with these attributes; those that are None are left out."""
        self._span.set_attributes({name: value for name, value in said.items() if value is not None})
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
        context.detach(self._token)


class LedgerSpan:
    """The span of one transaction."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        return self

    def told(self, outcome: T) -> T:
        """Return an outcome once it is noted."""
        self._span.set_attribute(names.OUTCOME, _word_for(outcome))
        return outcome

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if error is not None:
            self._span.set_attribute(names.ERROR_TYPE, _code_of(error))
            if not isinstance(error, asyncio.CancelledError):
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


def is_request(span: Span) -> bool:
    """Return whether a span stands for a request to a model, by the attribute that only those have."""
    return span.is_recording() and names.REQUEST_MODEL in (getattr(span, "attributes", None) or ())


def current_ids() -> tuple[str, str] | None:
    """Return the ids of the current trace and span in hex, 32 and 16 digits; None outside of any."""
    if not (around := context.get_current()):  # as ever where nobody traces
        return None
    here = trace.get_current_span(around).get_span_context()
    return (
        (trace.format_trace_id(here.trace_id), trace.format_span_id(here.span_id)) if here.is_valid else None
    )


def current_trace_id() -> str | None:
    """Return the first of the two, which a run keeps."""
    ids = current_ids()
    return None if ids is None else ids[0]


@cache
def _version() -> str:
    return version("signalbox")


def _of_send(attempt: Attempt, run: NewRun, asked: LLMRequest, *, streamed: bool) -> dict[str, Any]:
    form = asked.response_format
    said = {
        names.OPERATION_NAME: names.CHAT,
        names.PROVIDER_NAME: names.provider_name(attempt.provider.value),
        names.REQUEST_MODEL: attempt.model,
        names.REQUEST_MAX_TOKENS: asked.max_output_tokens,
        names.REQUEST_TEMPERATURE: asked.temperature,
        names.REQUEST_TOP_P: asked.top_p,
        names.REQUEST_SEED: asked.seed,
        names.REQUEST_STOP_SEQUENCES: asked.stop,
        names.REQUEST_STREAM: streamed or None,
        names.OUTPUT_TYPE: names.JSON if form is not None and form.type != "text" else None,
        names.RUN_ID: run.run_id,
        names.ORDINAL: attempt.ordinal,
        names.HTTP_STATUS: attempt.http_status,
        names.ERROR_TYPE: attempt.error_code,
        names.POSSIBLY_PAID: attempt.possibly_paid or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _of_server(server: Server | None) -> dict[str, Any]:
    if server is None:
        return {}
    return {names.SERVER_ADDRESS: server.address, names.SERVER_PORT: server.port}


def _of_tokens(attempt: Attempt) -> dict[str, Any]:
    usage = attempt.usage
    said = {
        names.INPUT_TOKENS: usage.input_tokens,
        names.OUTPUT_TOKENS: usage.output_tokens,
        names.CACHED_INPUT_TOKENS: usage.cached_input_tokens,
        names.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
        names.COST_USD: None if attempt.cost_usd is None else float(attempt.cost_usd),
    }
    return {name: value for name, value in said.items() if value is not None}


def _turn(turn: Message, redact: Redact) -> dict[str, Any]:
    return {"role": turn.role, "parts": [_part(part, redact) for part in turn.content]}


def _part(part: Any, redact: Redact) -> dict[str, Any]:  # of a message or a reply
    """Return a part as the conventions' JSON schemas have it; of what is no text its kind alone."""
    match part:
        case TextPart():
            return {"type": "text", "content": redact(part.text)}
        case ThinkingPart():
            return {"type": "reasoning", "content": redact(part.text)}
        case ToolCallPart():
            arguments = _redacted(part.arguments, redact)
            return {"type": "tool_call", "id": part.id, "name": part.name, "arguments": arguments}
        case ImagePart() | FilePart():
            return {"type": part.type, "mime_type": part.media_type}
        case _:
            return {"type": "tool_call_response", "id": part.id, "response": redact(part.content)}


def _redacted(value: Any, redact: Redact) -> Any:  # JSON
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redacted(inner, redact) for name, inner in value.items()}
    return [_redacted(inner, redact) for inner in value] if isinstance(value, list | tuple) else value


def _json(turns: Iterable[Mapping[str, Any]]) -> str:
    return json.dumps(list(turns), ensure_ascii=False, separators=(",", ":"))


def _word_for(outcome: object) -> str:
    if isinstance(outcome, Finished):
        return "fenced" if outcome.fenced else "written" if outcome.persisted else "not_written"
    if isinstance(outcome, Won) and outcome.from_dead:
        return "taken_over"
    return _OUTCOMES.get(type(outcome), type(outcome).__name__.lower())


def _code_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return LLMCancelled.code
    return error.code if isinstance(error, LLMError) else type(error).__name__


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * _NANOSECONDS)

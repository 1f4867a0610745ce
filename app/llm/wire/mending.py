"""Makes a good answer one that LiteLLM can read, which invents what is missing and drops what it did not expect."""

import json
from collections.abc import Callable, Mapping

from app.llm.types import WireFormat
from app.llm.wire.anthropic import mend_anthropic, mend_anthropic_chunk
from app.llm.wire.anthropic import status_of as anthropic_status
from app.llm.wire.exchange import Exchange, UnusableReply
from app.llm.wire.openai import mend_openai, mend_openai_chunk
from app.llm.wire.openai import status_of as openai_status
from app.llm.wire.parsing import listed
from app.llm.wire.payloads import (
    Json,
    block_reason,
    exact_object,
    gemini_candidates,
    gemini_parts,
    ollama_message,
)
from app.llm.wire.readers import refuse


def mended(wire: WireFormat, exchange: Exchange) -> bytes:
    """Return the body for LiteLLM; counts and the reason to stop are noted in `exchange`, for LiteLLM's are not used.

    Raises:
        UnusableReply: It is not an answer of such a provider.
    """
    payload = exact_object(exchange.body)
    match wire:
        case WireFormat.OLLAMA:
            _mend_ollama(payload, exchange)
        case WireFormat.GEMINI:
            _mend_gemini(payload, exchange)
        case WireFormat.OPENAI:
            mend_openai(payload, exchange)
        case WireFormat.ANTHROPIC:
            mend_anthropic(payload, exchange)
    return json.dumps(payload, ensure_ascii=False).encode()


def mended_chunk(wire: WireFormat, event: bytes, exchange: Exchange) -> tuple[bytes, bool]:
    """Return one chunk of a stream for LiteLLM, and whether it ends the answer; as `mended`.

    Raises:
        Refused: It is an error; what was said stands in `exchange`.
        UnusableReply: It is no chunk of such a provider.
    """
    payload = exact_object(event)
    error = payload.get("error")
    if error is not None:
        status = _STATUSES.get(wire)
        refuse(error, event, exchange, status(error) if status else None)
    ends = _CHUNKS[wire](payload, exchange)
    if wire in {WireFormat.OLLAMA, WireFormat.GEMINI}:
        return json.dumps(payload, ensure_ascii=False).encode(), ends
    # ASCII, for LiteLLM takes some characters for the end of a line; and it takes a text for the end of the stream.
    return json.dumps(payload).replace("[DONE]", "\\u005bDONE]").encode(), ends


def _mend_gemini_chunk(payload: Json, exchange: Exchange) -> bool:
    usage, finish = exchange.usage, exchange.finish
    counted = bool(payload.get("usageMetadata"))
    _mend_gemini(payload, exchange)
    exchange.usage = exchange.usage if counted else usage
    ends = bool(exchange.finish)
    exchange.finish = exchange.finish or finish
    return ends


def _mend_ollama_chunk(payload: Json, exchange: Exchange) -> bool:
    finish = exchange.finish
    _mend_ollama(payload, exchange)
    exchange.finish = exchange.finish or finish
    payload.setdefault("model", "")
    payload.setdefault("done", False)
    calls = listed(payload["message"].get("tool_calls") or [])
    if not calls:
        payload["message"].pop("tool_calls", None)  # an empty list would count as a call
    for function in (call.get("function") for call in calls):
        if not isinstance(function, dict):
            raise UnusableReply("a tool call of the answer holds no function")
        if function.get("arguments") is None and isinstance(function.get("parameters"), dict):
            function["arguments"] = function["parameters"]
    return payload["done"] is True


def _mend_ollama(payload: Json, exchange: Exchange) -> None:
    ollama_message(payload, exchange)
    payload.update(
        prompt_eval_count=exchange.usage.input_tokens or 0, eval_count=exchange.usage.output_tokens or 0
    )


def _mend_gemini(payload: Json, exchange: Exchange) -> None:
    for candidate in gemini_candidates(payload, exchange):
        parts = gemini_parts(candidate)
        if isinstance(candidate.get("content"), dict):
            candidate["content"]["parts"] = parts
        for part in parts:
            _mend_part(part)
    payload["usageMetadata"] = {}  # without it LiteLLM throws a paid answer away
    if not block_reason(payload):
        payload.pop("promptFeedback", None)


def _mend_part(part: Json) -> None:
    for name in ("text", "functionCall"):
        if part.get(name, ...) is None:
            del part[name]
    call = part.get("functionCall")
    if isinstance(call, dict):
        call["args"] = call.get("args") or {}


_CHUNKS: Mapping[WireFormat, Callable[[Json, Exchange], bool]] = {
    WireFormat.OLLAMA: _mend_ollama_chunk,
    WireFormat.GEMINI: _mend_gemini_chunk,
    WireFormat.OPENAI: mend_openai_chunk,
    WireFormat.ANTHROPIC: mend_anthropic_chunk,
}
_STATUSES: Mapping[WireFormat, Callable[[object], int | None]] = {
    WireFormat.OPENAI: openai_status,
    WireFormat.ANTHROPIC: anthropic_status,
}

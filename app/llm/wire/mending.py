"""Makes a good answer one that LiteLLM can read, which invents what is missing and drops what it did not expect."""

import json

from app.llm.types import LLMProvider
from app.llm.wire.exchange import Exchange, UnusableReply
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


def mended(provider: LLMProvider, exchange: Exchange) -> bytes:
    """Return the body for LiteLLM; counts and the reason to stop are noted in `exchange`, for LiteLLM's are not used.

    Raises:
        UnusableReply: It is not an answer of this provider.
    """
    payload = exact_object(exchange.body)
    match provider:
        case LLMProvider.OLLAMA:
            _mend_ollama(payload, exchange)
        case LLMProvider.GEMINI:
            _mend_gemini(payload, exchange)
    return json.dumps(payload, ensure_ascii=False).encode()


def mended_chunk(provider: LLMProvider, event: bytes, exchange: Exchange) -> tuple[bytes, bool]:
    """Return one chunk of a stream for LiteLLM, and whether it ends the answer; as `mended`.

    Raises:
        Refused: It is an error; what was said stands in `exchange`.
        UnusableReply: It is no chunk of this provider.
    """
    payload = exact_object(event)
    if payload.get("error") is not None:
        refuse(payload["error"], event, exchange)
    usage, finish = exchange.usage, exchange.finish
    if provider is LLMProvider.OLLAMA:
        _mend_ollama(payload, exchange)
        _mend_ollama_chunk(payload)
        ends = payload["done"] is True
    else:
        counted = bool(payload.get("usageMetadata"))
        _mend_gemini(payload, exchange)
        exchange.usage = exchange.usage if counted else usage
        ends = bool(exchange.finish)
    exchange.finish = exchange.finish or finish
    return json.dumps(payload, ensure_ascii=False).encode(), ends


def _mend_ollama_chunk(payload: Json) -> None:
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

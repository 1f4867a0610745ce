"""Reads and mends what Anthropic's messages API says, so that LiteLLM stumbles over none of it.

Sources: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-streaming and, for the
types of errors, https://docs.anthropic.com/en/api/errors.
"""

from app.llm.types import TokenUsage
from app.llm.wire.exchange import Exchange, UnusableReply
from app.llm.wire.payloads import Json, counted

_FINISHES = frozenset(("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"))
_NO_COUNTS = {"input_tokens": 0, "output_tokens": 0}
_FRESH, _SAID = "input_tokens", "output_tokens"
_READ, _WRITTEN = "cache_read_input_tokens", "cache_creation_input_tokens"
_LIVES, _AN_HOUR = "cache_creation", "ephemeral_1h_input_tokens"
_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_TEXT_OF = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def mend_anthropic(payload: Json, exchange: Exchange) -> None:
    """Make a whole answer one that LiteLLM can read, and note counts and reason.

    Raises:
        UnusableReply: It is no answer of Anthropic's.
    """
    content = payload.get("content")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise UnusableReply("the answer's content is not a list of objects")
    for block in content:
        _check_block(block)
    exchange.usage = _usage(payload.get("usage"))
    exchange.finish = payload.get("stop_reason")
    payload["stop_reason"] = _finish(exchange.finish)
    payload["usage"] = dict(_NO_COUNTS)
    payload.setdefault("model", "")


def mend_anthropic_chunk(payload: Json, exchange: Exchange) -> bool:
    """Likewise with one event of a stream; return whether it ends the answer.

    Raises:
        UnusableReply: It is no event of Anthropic's.
    """
    match payload.get("type"):
        case "message_start":
            message = _object(payload, "message")
            exchange.usage = _usage(message.get("usage")).model_copy(update={"output_tokens": None})
            message["usage"] = dict(_NO_COUNTS)
        case "content_block_start":
            _check_block(_object(payload, "content_block"))
        case "content_block_delta":
            _check_delta(_object(payload, "delta"))
        case "message_delta":
            return _mend_end(payload, exchange)
        case str():
            pass
        case _:
            raise UnusableReply("an event of the answer has no type")
    return False


def status_of(error: object) -> int | None:
    """Return the status that an error within a stream would have had before it."""
    return _STATUS_OF.get(str(error.get("type"))) if isinstance(error, dict) else None


def _mend_end(payload: Json, exchange: Exchange) -> bool:
    delta, usage = _object(payload, "delta"), payload.get("usage")
    if isinstance(usage, dict):  # counts of the whole; those that are not said stay as they were at the start
        later = {
            name: count
            for name, count in usage.items()
            if isinstance(count, dict) or counted(count) is not None
        }
        exchange.usage = _usage({**_counts(exchange.usage), **later})
    payload["usage"] = dict(_NO_COUNTS)
    finish = delta.get("stop_reason")
    exchange.finish = finish or exchange.finish
    delta["stop_reason"] = _finish(finish)
    return bool(finish)


def _usage(counts: object) -> TokenUsage:
    """Return the tokens; what was read from Anthropic's cache, or written to it, is not among `input_tokens` there.

    How long it keeps what was written: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
    """
    if not isinstance(counts, dict):
        return TokenUsage()
    fresh, read, written = (counted(counts.get(name)) for name in (_FRESH, _READ, _WRITTEN))
    lives = counts.get(_LIVES)
    an_hour = counted(lives.get(_AN_HOUR)) if written and isinstance(lives, dict) else None
    return TokenUsage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=counted(counts.get(_SAID)),
        cached_input_tokens=read,
        cache_write_tokens=written or None,
        cache_write_1h_tokens=an_hour or None,
    )


def _counts(usage: TokenUsage) -> Json:
    """Return what `_usage` read of an input."""
    read, written = usage.cached_input_tokens, usage.cache_write_tokens
    fresh = None if usage.input_tokens is None else usage.input_tokens - (read or 0) - (written or 0)
    return {
        _FRESH: fresh,
        _READ: read,
        _WRITTEN: written,
        _LIVES: {_AN_HOUR: usage.cache_write_1h_tokens},
    }


def _finish(reason: object) -> str:
    if reason == "model_context_window_exceeded":
        return "max_tokens"
    return reason if isinstance(reason, str) and reason in _FINISHES else "end_turn"


def _object(payload: Json, name: str) -> Json:
    value = payload.get(name)
    if not isinstance(value, dict):
        raise UnusableReply(f"an event of the answer holds no {name}")
    return value


def _check_block(block: Json) -> None:
    """Hold a block to the shapes that LiteLLM takes."""
    kind = block.get("type")
    if not isinstance(kind, str):
        raise UnusableReply("a block of the answer has no type")
    if kind == "text" and not isinstance(block.setdefault("text", ""), str):
        raise UnusableReply("a text of the answer is none")
    if kind == "thinking" and not isinstance(block.setdefault("thinking", ""), str):
        raise UnusableReply("the answer's thoughts are not a text")
    if kind == "tool_use":
        block.setdefault("id", "")
        block.setdefault("name", None)
        block.setdefault("input", {})


def _check_delta(delta: Json) -> None:
    kind = delta.setdefault("type", "")
    name = _TEXT_OF.get(kind) if isinstance(kind, str) else None
    if name is not None and not isinstance(delta.get(name), str):
        raise UnusableReply("a text of the answer is none")

"""Reads and mends what servers of OpenAI's chat completions say, so that LiteLLM stumbles over none of it.

Source: https://platform.openai.com/docs/api-reference/chat. Groq and many other servers speak it, with reasoning in
fields of their own.
"""

from typing import Any

from app.llm.types import TokenUsage
from app.llm.wire.exchange import Exchange, UnusableReply
from app.llm.wire.payloads import Json, counted

DONE = b"[DONE]"
"""What ends a stream, and is no JSON."""

REFUSAL = "refusal"
"""The reason to stop of an answer that is a refusal; OpenAI says it in a field of its own."""

_FINISHES = frozenset(("stop", "length", "tool_calls", "content_filter"))
_STATUS_OF = {
    **dict.fromkeys(("rate_limit_exceeded", "insufficient_quota"), 429),
    **dict.fromkeys(("context_length_exceeded", "invalid_request_error"), 400),
}


def mend_openai(payload: Json, exchange: Exchange) -> None:
    """Make a whole answer one that LiteLLM can read, and note counts and reason.

    Raises:
        UnusableReply: It is no answer of such a server.
    """
    choices = _choices(payload)
    if not choices:
        raise UnusableReply("the answer holds no choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise UnusableReply("the answer holds no message")
    message["role"] = "assistant"
    _mend_said(message)
    _note_usage(payload, exchange)
    exchange.finish = _word(choice.get("finish_reason"))
    if _refused(message):
        exchange.finish, choice["finish_reason"] = REFUSAL, "content_filter"
    elif exchange.finish not in _FINISHES:
        choice["finish_reason"] = "stop"
    payload.pop("error", None)  # null where nothing is wrong
    payload.setdefault("service_tier", "auto")  # which Groq's answers must have
    payload["choices"] = [{**choice, "index": 0}]


def mend_openai_chunk(payload: Json, exchange: Exchange) -> bool:
    """Likewise with one chunk of a stream; return whether it ends the answer.

    Raises:
        UnusableReply: It is no chunk of such a server.
    """
    only_counts = payload.get("choices") is None and isinstance(payload.get("usage"), dict)
    choices = [] if only_counts else _choices(payload)[:1]
    _note_usage(payload, exchange)
    for choice in choices:
        delta = choice.setdefault("delta", {})
        if not isinstance(delta, dict):
            raise UnusableReply("a chunk of the answer holds no delta")
        _mend_said(delta)
        for place, call in enumerate(delta.get("tool_calls", ())):
            call.setdefault("index", place)
        finish = _word(choice.get("finish_reason"))
        choice["finish_reason"] = finish if finish in _FINISHES else "stop" if finish else None
        if _refused(delta):
            exchange.finish = REFUSAL
        elif exchange.finish != REFUSAL:
            exchange.finish = finish or exchange.finish
        choice["index"] = 0
    payload["choices"] = choices
    return any(choice["finish_reason"] for choice in choices)


def status_of(error: object) -> int | None:
    """Return the status that an error within a stream would have had before it."""
    if not isinstance(error, dict):
        return None
    said = (error.get("code"), error.get("type"))
    return next((_STATUS_OF[each] for each in said if isinstance(each, str) and each in _STATUS_OF), None)


def _choices(payload: Json) -> list[Json]:
    choices: Any = payload.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise UnusableReply("the answer's choices are not a list of objects")
    return choices


def _mend_said(message: Json) -> None:
    """Hold a message, or a delta of one, to the shapes that LiteLLM takes."""
    if not isinstance(message.get("content"), str | None):
        raise UnusableReply("the answer's content is not a text")
    thought = message.pop("reasoning", None) or message.pop("reasoning_content", None)
    if isinstance(thought, str) and thought:
        message["reasoning_content"] = thought
    calls = message.get("tool_calls")
    if not calls:
        message.pop("tool_calls", None)
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UnusableReply("the answer's tool calls are not a list of objects")
    for call in calls:
        if not isinstance(call.get("function"), dict):
            raise UnusableReply("a tool call of the answer holds no function")


def _word(reason: object) -> str | None:
    return reason if isinstance(reason, str) and reason else None


def _refused(message: Json) -> bool:
    refusal = message.pop("refusal", None)
    return isinstance(refusal, str) and bool(refusal)


def _note_usage(payload: Json, exchange: Exchange) -> None:
    """Note the counts and take them away; reasoning is among the tokens of the answer.

    Groq's streams have them in an object of its own: https://console.groq.com/docs/api-reference.
    """
    usage, of_groq = payload.pop("usage", None), payload.get("x_groq")
    if usage is None and isinstance(of_groq, dict):
        usage = of_groq.get("usage")
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details")
        exchange.usage = TokenUsage(
            input_tokens=counted(usage.get("prompt_tokens")),
            output_tokens=counted(usage.get("completion_tokens")),
            cached_input_tokens=counted(details.get("cached_tokens")) if isinstance(details, dict) else None,
        )

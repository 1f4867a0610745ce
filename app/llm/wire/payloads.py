"""What every lane reads of a provider's JSON by itself: that it is an answer, its token counts, its reason to stop."""

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from app.llm.types import TokenUsage
from app.llm.wire.exchange import Exchange, UnusableReply

Json = dict[str, Any]

_MAX_COUNT = 2**31
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def quick_object(body: bytes) -> Json:
    """Return the JSON object of `body`; integers beyond 64 bits may come back rounded.

    Raises:
        UnusableReply: It is none.
    """
    try:
        payload = orjson.loads(body)
    except ValueError:  # perhaps NaN, half a surrogate pair, bytes that are no UTF-8
        return exact_object(body)
    if not isinstance(payload, dict):
        raise UnusableReply("the answer is not a JSON object")
    return payload


def exact_object(body: bytes) -> Json:
    """Return the JSON object of `body`, its integers exact, and U+FFFD for whatever is no text.

    Raises:
        UnusableReply: It is none.
    """
    try:
        payload = json.loads(body.decode("utf-8", "replace"))
        text = json.dumps(payload, ensure_ascii=False)
        if _LONE_SURROGATE.search(text):
            payload = json.loads(_LONE_SURROGATE.sub("\ufffd", text))
    except (ValueError, RecursionError):
        raise UnusableReply("the answer is not JSON" if body.strip() else "the answer is empty") from None
    if not isinstance(payload, dict):
        raise UnusableReply("the answer is not a JSON object")
    return payload


def ollama_message(payload: Json, exchange: Exchange) -> Json:
    """Return the message of an Ollama answer, its content a text, and note counts and reason.

    Raises:
        UnusableReply: There is none.
    """
    message = checked_message(payload)
    exchange.usage = TokenUsage(
        input_tokens=counted(payload.get("prompt_eval_count")),
        output_tokens=counted(payload.get("eval_count")),
    )
    exchange.finish = payload.get("done_reason")
    return message


def checked_message(payload: Json) -> Json:
    """Return the message of an Ollama answer, or of a chunk of one, its content a text.

    Raises:
        UnusableReply: There is none.
    """
    message = payload.get("message")
    if not isinstance(message, dict) or not isinstance(message.setdefault("content", "") or "", str):
        raise UnusableReply("the answer holds no message")
    message["content"] = message["content"] or ""
    return message


def gemini_candidates(payload: Json, exchange: Exchange) -> list[Json]:
    """Return the candidates of a Gemini answer and note counts and reason.

    Raises:
        UnusableReply: They have another form.
    """
    candidates = checked_candidates(payload)
    counts = payload.get("usageMetadata")
    exchange.usage = _gemini_usage(counts if isinstance(counts, dict) else {})
    exchange.finish = block_reason(payload) or (candidates[0].get("finishReason") if candidates else None)
    return candidates


def checked_candidates(payload: Json) -> list[Json]:
    """Return the candidates of a Gemini answer, or of a chunk of one.

    Raises:
        UnusableReply: They have another form.
    """
    candidates = payload.get("candidates") or []
    if not isinstance(candidates, list) or not all(isinstance(each, dict) for each in candidates):
        raise UnusableReply("the answer's candidates are not a list of objects")
    for candidate in candidates:
        parts: Any = gemini_parts(candidate)  # not looked at yet
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise UnusableReply("the answer's parts are not a list of objects")
    return candidates


def gemini_parts(candidate: Json) -> list[Json]:
    """Return the parts of one candidate; none without a content."""
    content = candidate.get("content")
    return content.get("parts") or [] if isinstance(content, dict) else []


def block_reason(payload: Json) -> object:
    """Return why Gemini refused the prompt; something false if it did not."""
    feedback = payload.get("promptFeedback")
    return feedback.get("blockReason") if isinstance(feedback, dict) else None


def _gemini_usage(counts: Mapping[str, Any]) -> TokenUsage:
    """Thoughts are billed as output; some models count them among the candidates' tokens, as the total shows."""
    prompt, said = counted(counts.get("promptTokenCount")), counted(counts.get("candidatesTokenCount"))
    thought, tools = counted(counts.get("thoughtsTokenCount")), counted(counts.get("toolUsePromptTokenCount"))
    included = said is not None and counts.get("totalTokenCount") == (prompt or 0) + said + (tools or 0)
    known = [count for count in (said, None if included else thought) if count is not None]
    return TokenUsage(
        input_tokens=None if prompt is None else prompt + (tools or 0),
        output_tokens=sum(known) if known else None,
        cached_input_tokens=counted(counts.get("cachedContentTokenCount")),
    )


def counted(value: object) -> int | None:
    """Return a count of tokens; None where there is none that can be one."""
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None  # True and False are no counts

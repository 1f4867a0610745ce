"""Reads answers of Ollama and Gemini straight from their JSON, as LiteLLM reads them; a test compares the two."""

import re
from collections.abc import Iterable

from app.llm.messages import ThinkingPart
from app.llm.types import FinishReason
from app.llm.wire.answers import Answer, Call
from app.llm.wire.exchange import Exchange, UnusableReply
from app.llm.wire.payloads import (
    Json,
    block_reason,
    checked_candidates,
    checked_message,
    exact_object,
    gemini_candidates,
    gemini_parts,
    ollama_message,
    quick_object,
)

FILTERED, LENGTH, STOP = FinishReason.CONTENT_FILTER.value, FinishReason.LENGTH.value, FinishReason.STOP.value

FLAGGED = frozenset(
    ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT")
)  # fmt: skip
"""Gemini's reasons after which nothing of an answer counts."""
WITHHELD = frozenset(("LANGUAGE", "OTHER", "NO_IMAGE", "IMAGE_RECITATION", "IMAGE_OTHER", "ESCALATION"))
"""Gemini's reasons after which a text does not count; a tool call does."""

_THOUGHT_FIRST = re.compile(
    r"<(?:think|thinking|budget:thinking)>(.*?)</(?:think|thinking|budget:thinking)>(.*)", re.DOTALL
)


def ollama_answer(body: bytes, exchange: Exchange) -> Answer:
    """Return what Ollama said, and note in `exchange` what it says about it.

    Raises:
        UnusableReply: It is no answer of Ollama's.
    """
    payload = quick_object(body)
    if checked_message(payload).get("tool_calls"):
        payload = exact_object(body)  # arguments may hold an integer of any size
    return ollama_said(payload, exchange)


def ollama_said(payload: Json, exchange: Exchange) -> Answer:
    """Return what Ollama said in an answer that is parsed; as `ollama_answer`."""
    message = ollama_message(payload, exchange)
    thought, text = _ollama_texts(message)
    return Answer(
        text=text,
        thoughts=[ThinkingPart(text=thought)] if thought else (),
        calls=[ollama_call(call) for call in listed(message.get("tool_calls") or [])],
        finish=LENGTH if exchange.finish == "length" else STOP,
    )


def gemini_answer(body: bytes, exchange: Exchange) -> Answer | None:
    """Return what Gemini said, None if nothing, and note in `exchange` what it says about it.

    Raises:
        UnusableReply: It is no answer of Gemini's.
    """
    payload = quick_object(body)
    candidates = checked_candidates(payload)
    if any("functionCall" in part for candidate in candidates for part in gemini_parts(candidate)):
        payload = exact_object(body)  # as above
    return gemini_said(payload, exchange)


def gemini_said(payload: Json, exchange: Exchange) -> Answer | None:
    """Return what Gemini said in an answer that is parsed; as `gemini_answer`."""
    candidates = gemini_candidates(payload, exchange)
    if block_reason(payload):
        return Answer(finish=FILTERED)
    said = [_gemini_candidate(each) for each in candidates if "content" in each or "finishReason" in each]
    return said[0] if said else None


def _ollama_texts(message: Json) -> tuple[str | None, str]:
    """Return thought and text: some models write their thoughts in front of the text."""
    if "thinking" in message:
        thought = message["thinking"]
        if not isinstance(thought, str | None):
            raise UnusableReply("the answer's thoughts are not a text")
        return thought, message["content"]
    return thought_first(message["content"])


def thought_first(text: str) -> tuple[str | None, str]:
    """Return the thought between tags that a text begins with, None if there is none, and the rest."""
    found = _THOUGHT_FIRST.match(text)
    return (found[1], found[2]) if found else (None, text)


def ollama_call(call: Json) -> Call:
    """Return one tool call of Ollama's, unchecked.

    Raises:
        UnusableReply: It has another form.
    """
    function = call.get("function")
    if not isinstance(function, dict):
        raise UnusableReply("a tool call of the answer holds no function")
    arguments = function.get("arguments")
    if arguments is None:  # some templates write a call as its own schema
        arguments = function.get("parameters") if isinstance(function.get("parameters"), dict) else ""
    return Call(name=function.get("name"), arguments=arguments)


def listed(calls: object) -> list[Json]:
    """Return the tool calls of a message.

    Raises:
        UnusableReply: They have another form.
    """
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UnusableReply("the answer's tool calls are not a list of objects")
    return calls


def _gemini_candidate(candidate: Json) -> Answer:
    parts = gemini_parts(candidate)
    calls = [gemini_call(part) for part in parts if part.get("functionCall") is not None]
    spoken = [part for part in parts if is_text(part)]
    return Answer(
        text="".join(part["text"] for part in spoken if part.get("thought") is not True),
        thoughts=_gemini_thoughts(spoken),
        calls=calls,
        finish=_gemini_finish(candidate.get("finishReason"), called=bool(calls)),
    )


def is_text(part: Json) -> bool:
    """Return whether a part of Gemini's holds a text.

    Raises:
        UnusableReply: What stands there is none.
    """
    text = part.get("text")
    if not isinstance(text, str | None):
        raise UnusableReply("a text of the answer is none")
    return bool(text)


def _gemini_thoughts(parts: Iterable[Json]) -> list[ThinkingPart]:
    return [
        ThinkingPart(text=part["text"], signature=signature_of(part))
        for part in parts
        if part.get("thought") is True
    ]


def gemini_call(part: Json) -> Call:
    """Return the call of a part of Gemini's, unchecked.

    Raises:
        UnusableReply: It has another form.
    """
    call = part["functionCall"]
    if not isinstance(call, dict):
        raise UnusableReply("a function call of the answer is not an object")
    said = call.get("args") or {}
    arguments = said if isinstance(said, dict) else None  # a text is not read here: Gemini sends objects
    return Call(name=call.get("name"), arguments=arguments, signature=signature_of(part))


def signature_of(part: Json) -> str | None:
    """Return the signature of a part of Gemini's.

    Raises:
        UnusableReply: It is no text.
    """
    signature = part.get("thoughtSignature")
    if not isinstance(signature, str | None):
        raise UnusableReply("a signature of the answer is not a text")
    return signature


def _gemini_finish(reason: object, *, called: bool) -> str:
    if reason in FLAGGED or (reason in WITHHELD and not called):
        return FILTERED
    return LENGTH if reason == "MAX_TOKENS" else STOP

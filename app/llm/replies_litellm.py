"""Makes one provider answer usable or refuses it, because LiteLLM invents what is missing and hides what went wrong.

`RawReply` reads an answer before LiteLLM does and mends what it would stumble over; `reply_of` reads what LiteLLM
made of it. Neither imports LiteLLM.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from app.llm.candidates import Candidate
from app.llm.errors import LLMBadResponse, LLMContentFiltered, LLMContextExceeded, LLMProviderError
from app.llm.exchange_litellm import UnusableReply
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.types import FinishReason, LLMProvider, LLMRequest, TokenUsage

SIGNATURE_MARK = "__thought__"
"""Between a tool-call id and the thought signature that LiteLLM packs into it."""

_MAX_COUNT = 2**31
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_FINISH_REASONS = {reason.value: reason for reason in FinishReason}

Json = dict[str, Any]
Parts = tuple[TextPart | ToolCallPart | ThinkingPart, ...]


class RawReply:
    """An answer as the provider sent it: its JSON, its own token counts, its own reason to stop."""

    def __init__(self, provider: LLMProvider) -> None:
        self._provider = provider
        self.usage = TokenUsage()
        """None where the provider gives no count, or an impossible one."""
        self.finish: str | None = None
        """In the provider's own words."""

    def prepare(self, body: bytes) -> bytes:
        """Read `body` and return what LiteLLM is given: the same answer, free of what would make it fail.

        Raises:
            UnusableReply: It is not JSON, or not an answer of this provider.
        """
        payload = _object(body)
        if self._provider is LLMProvider.OLLAMA:
            self._mend_ollama(payload)
        else:
            self._mend_gemini(payload)
        return _LONE_SURROGATE.sub("\ufffd", json.dumps(payload, ensure_ascii=False)).encode()

    def _mend_ollama(self, payload: Json) -> None:
        message = payload.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content") or "", str):
            raise UnusableReply("the answer holds no message")
        message["content"] = message.get("content") or ""
        self.usage = TokenUsage(
            input_tokens=_count(payload.get("prompt_eval_count")),
            output_tokens=_count(payload.get("eval_count")),
        )
        self.finish = payload.get("done_reason")
        payload.update(
            prompt_eval_count=self.usage.input_tokens or 0, eval_count=self.usage.output_tokens or 0
        )

    def _mend_gemini(self, payload: Json) -> None:
        candidates = payload.get("candidates") or []
        if not isinstance(candidates, list) or not all(isinstance(each, dict) for each in candidates):
            raise UnusableReply("the answer's candidates are not a list of objects")
        for part in _gemini_parts(candidates):
            call = part.get("functionCall")
            if isinstance(call, dict):
                call["args"] = call.get("args") or {}
        counts = payload.get("usageMetadata")
        self.usage = _gemini_usage(counts if isinstance(counts, dict) else {})
        payload["usageMetadata"] = {}  # without it LiteLLM throws a paid answer away
        feedback = payload.get("promptFeedback")
        blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
        self.finish = blocked or (candidates[0].get("finishReason") if candidates else None)


def reply_of(
    response: Any,  # litellm.ModelResponse, which is not imported here
    raw: RawReply,
    request: LLMRequest,
    candidate: Candidate,
    *,
    http_status: int | None,
    window: int | None,
) -> ProviderReply:
    """Return the answer in our shapes, with tool-call ids `call_0`, `call_1` ... in the order of the calls.

    Args:
        response: What LiteLLM made of the answer.
        raw: What the provider sent.
        request: What was asked.
        candidate: Who was asked.
        http_status: Status of the answer.
        window: Tokens of the context window where the provider cuts longer prompts silently (Ollama's num_ctx).

    Raises:
        LLMContentFiltered: The prompt or the answer was filtered.
        LLMContextExceeded: Ollama cut the prompt or ran out of window.
        LLMBadResponse: There is nothing usable in it.
    """
    check = _Check(raw, candidate, http_status)
    choice = response.choices[0] if response.choices else None
    if choice is None:
        check.refuse(LLMBadResponse, "answered without any candidate")
    if choice.finish_reason == "content_filter":
        check.refuse(LLMContentFiltered, f"filtered the prompt or the answer ({raw.finish})")
    parts: Parts = (*_thoughts(choice.message), *_texts(choice.message), *_calls(choice.message, check))
    finish = _finish(choice.finish_reason, parts)
    if window is not None:
        _check_window(raw.usage, finish, request.max_output_tokens, window, check)
    if not any(not isinstance(part, ThinkingPart) for part in parts):
        _refuse_empty(finish, raw, check)
    return ProviderReply(
        parts=parts,
        finish_reason=finish,
        usage=raw.usage,
        http_status=http_status,
    )


class _Check:
    """Raises with the facts that every refusal of one answer shares."""

    def __init__(self, raw: RawReply, candidate: Candidate, http_status: int | None) -> None:
        self._raw = raw
        self._candidate = candidate
        self._http_status = http_status

    def refuse(self, error: type[LLMProviderError], text: str, *, again: bool = True) -> NoReturn:
        refusal = error(
            f"{self._candidate.name} {text}",
            provider=self._candidate.provider,
            model=self._candidate.model,
            http_status=self._http_status,
            usage=self._raw.usage,
            possibly_paid=True,
        )
        if not again:
            refusal.retryable = False  # this one, not its class
        raise refusal


def _object(body: bytes) -> Json:
    try:
        payload = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise UnusableReply("the answer is not JSON" if body.strip() else "the answer is empty") from None
    if not isinstance(payload, dict):
        raise UnusableReply("the answer is not a JSON object")
    return payload


def _gemini_parts(candidates: list[Json]) -> list[Json]:
    parts: list[Json] = []
    for candidate in candidates:
        content = candidate.get("content")
        listed = content.get("parts") if isinstance(content, dict) else None
        if not isinstance(listed or [], list) or not all(isinstance(part, dict) for part in listed or []):
            raise UnusableReply("the answer's parts are not a list of objects")
        parts += listed or []
    return parts


def _gemini_usage(counts: Mapping[str, Any]) -> TokenUsage:
    """Thoughts are billed as output; some models count them among the candidates' tokens, as the total shows."""
    prompt, said = _count(counts.get("promptTokenCount")), _count(counts.get("candidatesTokenCount"))
    thought, tools = _count(counts.get("thoughtsTokenCount")), _count(counts.get("toolUsePromptTokenCount"))
    included = said is not None and counts.get("totalTokenCount") == (prompt or 0) + said + (tools or 0)
    known = [count for count in (said, None if included else thought) if count is not None]
    return TokenUsage(
        input_tokens=None if prompt is None else prompt + (tools or 0),
        output_tokens=sum(known) if known else None,
    )


def _count(value: object) -> int | None:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT
    return int(value) if usable and isinstance(value, int) else None


def _thoughts(message: Any) -> list[ThinkingPart]:  # litellm.Message
    if blocks := getattr(message, "thinking_blocks", None):
        return [
            ThinkingPart(text=block["thinking"], signature=block.get("signature"))
            for block in blocks
            if block.get("thinking")
        ]
    text = getattr(message, "reasoning_content", None)
    return [ThinkingPart(text=text)] if text else []


def _texts(message: Any) -> list[TextPart]:  # as above
    return [TextPart(text=message.content)] if message.content and message.content.strip() else []


def _calls(message: Any, check: _Check) -> list[ToolCallPart]:  # as above
    calls: list[ToolCallPart] = []
    for place, call in enumerate(message.tool_calls or []):
        arguments = _arguments(call.function.arguments)
        if arguments is None or not call.function.name:
            check.refuse(
                LLMBadResponse, "called a tool without a name, or with arguments that are no JSON object"
            )
        _, _, signature = (call.id or "").partition(SIGNATURE_MARK)
        calls.append(
            ToolCallPart(
                id=f"call_{place}",
                name=call.function.name,
                arguments=arguments,
                signature=signature or None,
            )
        )
    return calls


def _arguments(text: str | None) -> Json | None:
    try:
        value = json.loads(text or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finish(reason: str | None, parts: Parts) -> FinishReason:
    if any(isinstance(part, ToolCallPart) for part in parts):
        return FinishReason.TOOL_CALLS
    return _FINISH_REASONS.get(reason or "", FinishReason.STOP)


def _check_window(
    usage: TokenUsage, finish: FinishReason, wanted: int | None, window: int, check: _Check
) -> None:
    """Ollama drops the start of a prompt that is too long without a word; only the counts show it."""
    full = usage.total_tokens is not None and usage.total_tokens >= window
    cut = (
        finish is FinishReason.LENGTH
        and wanted is not None
        and usage.output_tokens is not None
        and usage.output_tokens < wanted
    )
    if full or cut:
        check.refuse(
            LLMContextExceeded,
            f"filled its window of {window} tokens: shorten the prompt or raise LLM_OLLAMA_NUM_CTX",
        )


def _refuse_empty(finish: FinishReason, raw: RawReply, check: _Check) -> NoReturn:
    if finish is FinishReason.LENGTH:
        check.refuse(LLMBadResponse, "wrote no answer within max_output_tokens: raise it", again=False)
    if raw.finish == "load":
        check.refuse(LLMBadResponse, "only loaded the model and said nothing")
    check.refuse(LLMBadResponse, f"gave an empty answer ({raw.finish})")

"""Judges what a provider said, whichever lane has read it: an answer in our shapes, or why it is none."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from app.llm.candidates import Candidate
from app.llm.errors import LLMBadResponse, LLMContentFiltered, LLMContextExceeded, LLMProviderError
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.types import FinishReason, LLMRequest
from app.llm.wire.exchange import Exchange

_FINISH_REASONS = {reason.value: reason for reason in FinishReason}

Json = dict[str, Any]
Parts = tuple[TextPart | ToolCallPart | ThinkingPart, ...]


class Call(NamedTuple):
    """A tool call as it was read; nothing of it is checked yet."""

    name: object
    arguments: object
    """An object, or its JSON."""
    signature: str | None = None
    whole: bool = True
    """False where the answer ended before the arguments began, so that there seem to be none."""


class Answer(NamedTuple):
    """What one lane has read, not judged yet."""

    text: str | None = None
    thoughts: Sequence[ThinkingPart] = ()
    calls: Sequence[Call] = ()
    finish: str = FinishReason.STOP.value
    """A value of `FinishReason`; any other word means `stop`."""


def reply_of(
    answer: Answer | None,
    exchange: Exchange,
    request: LLMRequest,
    candidate: Candidate,
    *,
    window: int | None,
) -> ProviderReply:
    """Return the answer in our shapes, with tool-call ids `call_0`, `call_1` ... in the order of the calls.

    Args:
        answer: What was read; None if there was no candidate in it.
        exchange: How it came.
        request: What was asked.
        candidate: Who was asked.
        window: Tokens of the context window where the provider cuts longer prompts silently (Ollama's num_ctx).

    Raises:
        LLMContentFiltered: The prompt or the answer was filtered.
        LLMContextExceeded: Ollama cut the prompt or ran out of window.
        LLMBadResponse: There is nothing usable in it.
    """
    check = _Check(exchange, candidate)
    if answer is None:
        check.refuse(LLMBadResponse, "answered without any candidate")
    if answer.finish == FinishReason.CONTENT_FILTER:
        check.refuse(LLMContentFiltered, f"filtered the prompt or the answer ({exchange.finish})")
    texts = [TextPart(text=answer.text)] if answer.text and answer.text.strip() else []
    cut = answer.finish == FinishReason.LENGTH
    calls = [_call(place, call, check, cut=cut) for place, call in enumerate(answer.calls)]
    finish = FinishReason.TOOL_CALLS if calls else _FINISH_REASONS.get(answer.finish or "", FinishReason.STOP)
    if window is not None:
        check.window(finish, request.max_output_tokens, window)
    if not texts and not calls:
        check.refuse_empty(finish)
    return ProviderReply(
        parts=(*answer.thoughts, *texts, *calls),
        finish_reason=finish,
        usage=exchange.usage,
        http_status=exchange.status,
    )


class _Check:
    """Raises with the facts that every refusal of one answer shares."""

    __slots__ = ("_candidate", "_exchange")

    def __init__(self, exchange: Exchange, candidate: Candidate) -> None:
        self._exchange = exchange
        self._candidate = candidate

    def refuse(self, error: type[LLMProviderError], text: str, *, again: bool = True) -> NoReturn:
        refusal = error(
            f"{self._candidate.name} {text}",
            provider=self._candidate.provider,
            model=self._candidate.model,
            http_status=self._exchange.status,
            usage=self._exchange.usage,
            possibly_paid=True,
        )
        if not again:
            refusal.retryable = False  # this one, not its class
        raise refusal

    def window(self, finish: FinishReason, wanted: int | None, window: int) -> None:
        """Ollama drops the start of a prompt that is too long without a word; only the counts show it."""
        usage = self._exchange.usage
        full = (usage.total_tokens or 0) >= window
        cut = (
            finish is FinishReason.LENGTH
            and wanted is not None
            and usage.output_tokens is not None
            and usage.output_tokens < wanted
        )
        if full or cut:
            self.refuse(
                LLMContextExceeded,
                f"filled its window of {window} tokens: shorten the prompt or raise LLM_OLLAMA_NUM_CTX",
            )

    def refuse_empty(self, finish: FinishReason) -> NoReturn:
        if finish is FinishReason.LENGTH:
            self.refuse(LLMBadResponse, "wrote no answer within max_output_tokens: raise it", again=False)
        if self._exchange.finish == "load":
            self.refuse(LLMBadResponse, "only loaded the model and said nothing")
        self.refuse(LLMBadResponse, f"gave an empty answer ({self._exchange.finish})")


def _call(place: int, call: Call, check: _Check, *, cut: bool) -> ToolCallPart:
    arguments = arguments_of(call.arguments)
    if not call.whole or (cut and arguments is None):
        check.refuse(LLMBadResponse, "ended within a tool call, at max_output_tokens: raise it", again=False)
    if arguments is None or not isinstance(call.name, str) or not call.name:
        check.refuse(
            LLMBadResponse, "called a tool without a name, or with arguments that are no JSON object"
        )
    return ToolCallPart(
        id=f"call_{place}", name=call.name, arguments=arguments, signature=call.signature or None
    )


def arguments_of(said: object) -> Json | None:
    """Return the arguments as an object; None if JSON has no such object (NaN is none of its numbers)."""
    try:
        text = said or "{}" if isinstance(said, str) else json.dumps(said, allow_nan=False)
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")

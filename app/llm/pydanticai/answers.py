"""An answer of ours as PydanticAI's, such that nothing is paid or counted twice."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from types import MappingProxyType

from pydantic import JsonValue
from pydantic_ai import messages as pai
from pydantic_ai.usage import RequestUsage

from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.pricing import FREE
from app.llm.pydanticai.messages import SIGNATURE
from app.llm.types import NO_USAGE, Attempt, FinishReason, LLMResponse, ServedFrom, TokenUsage

_FINISH: Mapping[FinishReason, pai.FinishReason] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_call",
    FinishReason.CONTENT_FILTER: "content_filter",
}


def model_response(
    response: LLMResponse, step: Mapping[str, JsonValue] = MappingProxyType({})
) -> pai.ModelResponse:
    """Return the answer with its provenance and its step in `metadata` and failed sends in `failed_attempts`.

    Usage and cost are those of this call: zero for a replay or a hit, whose `metadata["original_usage"]` says
    what the answer took when it was made. One out of a cassette looks as it did when it was recorded.
    """
    live = response.served_from in {ServedFrom.LIVE, ServedFrom.CASSETTE}
    return pai.ModelResponse(
        parts=_parts(response),
        usage=_usage(response.original_usage if live else NO_USAGE, response.cost_usd if live else FREE),
        model_name=response.model,
        provider_name=response.provider.value,
        finish_reason=_FINISH[response.finish_reason],
        failed_attempts=[
            _failed(attempt, counted=live) for attempt in response.attempts if attempt.status == "FAILED"
        ]
        or None,
        metadata={**_provenance(response), **step},
    )


def _parts(response: LLMResponse) -> list[pai.ModelResponsePart]:
    provider = response.provider.value
    parts: list[pai.ModelResponsePart] = []
    for part in response.parts:
        if isinstance(part, TextPart):
            parts.append(pai.TextPart(part.text))
        elif isinstance(part, ThinkingPart):
            parts.append(pai.ThinkingPart(part.text, signature=part.signature, provider_name=provider))
        else:
            parts.append(tool_call(part, provider))
    return parts


def tool_call(part: ToolCallPart, provider: str) -> pai.ToolCallPart:
    """Return a call as PydanticAI's; its signature goes back to the provider that made it."""
    return pai.ToolCallPart(
        part.name,
        dict(part.arguments),
        part.id,
        provider_name=provider,
        provider_details={SIGNATURE: part.signature} if part.signature else None,
    )


def _usage(tokens: TokenUsage, cost_usd: Decimal | None) -> RequestUsage:
    return RequestUsage(
        input_tokens=tokens.input_tokens or 0,
        cache_read_tokens=tokens.cached_input_tokens or 0,
        cache_write_tokens=tokens.cache_write_tokens or 0,
        output_tokens=tokens.output_tokens or 0,
        cost=cost_usd,
    )


def _failed(attempt: Attempt, *, counted: bool) -> pai.ModelRequestAttempt:
    """Return a send that failed; its usage only where this call made it, since PydanticAI adds it to the run's."""
    known = attempt.usage != TokenUsage()
    status = f" (HTTP {attempt.http_status})" if attempt.http_status else ""
    return pai.ModelRequestAttempt(
        model_name=attempt.model,
        provider_name=attempt.provider.value,
        outcome="error",
        error=f"{attempt.error_code or 'error'}{status}",
        timestamp=attempt.started_at,
        duration=timedelta(milliseconds=attempt.latency_ms),
        usage=_usage(attempt.usage, attempt.cost_usd) if counted and known else None,
    )


def _provenance(response: LLMResponse) -> dict[str, JsonValue]:
    return {
        "llm_run_id": response.run_id,
        "served_from": response.served_from.value,
        "original_usage": response.original_usage.model_dump(include={"input_tokens", "output_tokens"}),
        "route": [dict(entry) for entry in response.route],
    }

"""Answers with their provenance: the same stored text says whether it was made, replayed or hit this time. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from app.llm.candidates import Candidate
from app.llm.deltas import Delta, Parts, ToolCallDelta
from app.llm.messages import ToolCallPart
from app.llm.ports import NewRun, ProviderReply
from app.llm.pricing import FREE
from app.llm.types import Attempt, LLMResponse, ServedFrom

_PROMPT_CHARS = 12


def live(
    run: NewRun,
    candidate: Candidate,
    reply: ProviderReply,
    *,
    attempts: Sequence[Attempt],
    latency_ms: float,
    persisted: bool = True,
) -> LLMResponse:
    """Return a provider's reply as this run's answer."""
    return LLMResponse(
        parts=with_stable_ids(reply.parts, run.prompt_sha256),
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        original_usage=reply.usage,
        provider=candidate.provider,
        model=candidate.model,
        run_id=run.run_id,
        served_from=reply.served_from,
        route=run.route.route.summaries,  # each is copied where the answer is made
        attempts=tuple(attempts),
        persisted=persisted,
        latency_ms=latency_ms,
        cost_usd=paid(attempts),
    )


def hit(
    run: NewRun, stored: LLMResponse, *, attempts: Sequence[Attempt] = (), latency_ms: float
) -> LLMResponse:
    """Return a cached answer as this run's: the row is this run's, the text is the other's."""
    return stored.model_copy(
        update={
            "parts": unshared(stored.parts),
            "run_id": run.run_id,
            "served_from": ServedFrom.CACHE,
            "cost_usd": paid(attempts),
            "route": tuple(run.route.summary()),
            "attempts": tuple(attempts),
            "latency_ms": latency_ms,
        }
    )


def unshared(parts: Parts) -> Parts:
    """Return parts that their receiver may change: stored answers stay at hand, and arguments are no frozen values."""
    return tuple([part.model_copy(deep=True) if isinstance(part, ToolCallPart) else part for part in parts])


def paid(attempts: Sequence[Attempt]) -> Decimal | None:
    """Return the dollars that the sends of one run cost; None while one of them is unknown."""
    dollars = FREE
    for attempt in attempts:
        if attempt.cost_usd is None:
            return None
        dollars += attempt.cost_usd
    return dollars


def with_stable_ids(parts: Parts, prompt_sha256: str) -> Parts:
    """Return the parts with tool-call ids that depend on the prompt only.

    Live, replayed and executed again after a crash, a step names its calls alike, so what follows from it has the
    same fingerprint; two steps of one conversation never share an id.
    """
    ordinals = iter(range(len(parts)))
    return tuple(
        part.model_copy(update={"id": _call_id(prompt_sha256, next(ordinals))})
        if part.type == "tool_call"
        else part
        for part in parts
    )


def with_stable_id(delta: Delta, prompt_sha256: str) -> Delta:
    """Return a delta that names its call as the answer will."""
    if isinstance(delta, ToolCallDelta):
        return replace(delta, id=_call_id(prompt_sha256, delta.index))
    return delta


def _call_id(prompt_sha256: str, ordinal: int) -> str:
    return f"call_{prompt_sha256[:_PROMPT_CHARS]}_{ordinal}"

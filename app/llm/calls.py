"""One call on its way down: checked, hashed, with an id and a deadline; and the run that the ledger sees of it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from app.llm.budgets import Reservation
from app.llm.candidates import RouteDecision
from app.llm.checks import Check
from app.llm.context import ResolvedContext, resolve_context
from app.llm.deltas import Tell
from app.llm.errors import LLMInvalidRequest, LLMKeyUnavailable
from app.llm.fingerprint import prompt_sha256, request_sha256
from app.llm.messages import FilePart, ImagePart, TextPart, ToolResultPart
from app.llm.ports import Clock, IdFactory, NewRun
from app.llm.sends import Deadline
from app.llm.settings import LLMSettings
from app.llm.types import LLMCallContext, LLMRequest

OFF_THE_LOOP = 1_000_000
"""Characters and bytes of a prompt above which a thread hashes it: about a millisecond of the event loop."""

_BULK: Mapping[type, Callable[[Any], str | bytes]] = {
    TextPart: attrgetter("text"),
    ImagePart: attrgetter("data"),
    FilePart: attrgetter("data"),
    ToolResultPart: attrgetter("content"),
}
"""Where the parts that can be long keep what makes them long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is known of a call before anybody is asked."""

    request: LLMRequest
    run_id: str
    context: ResolvedContext
    prompt_sha256: str
    request_sha256: str
    deadline: Deadline
    tell: Tell | None = None
    """Who listens to the answer as it arrives."""
    check: Check | None = None
    """What an answer must pass before it counts."""

    @property
    def key(self) -> str | None:
        """The idempotency key, if it has one."""
        return self.context.idempotency_key


async def begin(
    request: LLMRequest,
    context: LLMCallContext | None,
    *,
    settings: LLMSettings,
    clock: Clock,
    new_id: IdFactory,
    tell: Tell | None = None,
    check: Check | None = None,
) -> Call:
    """Return the call of a request; its time runs from here.

    Raises:
        LLMContractError: The sources of its context disagree or name no workspace, or its key cannot be had.
    """
    resolved = resolve_context(request, context, default_workspace=settings.default_workspace)
    if resolved.idempotency_key is not None and not settings.persist_runs:
        raise LLMKeyUnavailable("an idempotency key needs persisted runs (LLM_PERSIST_RUNS=true)")
    if request.force_new_execution and resolved.idempotency_key is None:
        raise LLMInvalidRequest(
            "force_new_execution needs an idempotency_key: without one every call executes"
        )
    deadline = Deadline.after(clock, request.timeout_s or settings.default_timeout_s)
    if _bulk(request) > OFF_THE_LOOP:
        prompt = await asyncio.to_thread(prompt_sha256, request)
    else:
        prompt = prompt_sha256(request)
    return Call(
        request=request,
        run_id=new_id(),
        context=resolved,
        prompt_sha256=prompt,
        request_sha256=request_sha256(request, prompt=prompt),
        deadline=deadline,
        tell=tell,
        check=check,
    )


def _bulk(request: LLMRequest) -> int:
    turns = request.messages
    if request.variants:
        turns += tuple(turn for variant in request.variants.values() for turn in variant.messages)
    return sum(len(bulk(part)) for turn in turns for part in turn.content if (bulk := _BULK.get(type(part))))


def run_of(
    call: Call,
    route: RouteDecision,
    *,
    lease_s: float,
    flight_slot: str | None,
    cache_candidates: tuple[str, ...],
    reservation: Reservation | None,
    trace_id: str | None,
) -> NewRun:
    """Return the run of a call, as the ledger is told of it."""
    context = call.context
    return NewRun(
        run_id=call.run_id,
        workspace_id=context.workspace_id,
        pipeline_run_id=context.pipeline_run_id,
        stage=context.stage,
        idempotency_key=context.idempotency_key,
        request=call.request,
        profile=route.profile,
        route=route,
        prompt_sha256=call.prompt_sha256,
        request_sha256=call.request_sha256,
        lease_s=lease_s,
        left_s=call.deadline.left_s(),
        flight_slot=flight_slot,
        cache_mode=call.request.cache,
        cache_candidates=cache_candidates,
        metadata=context.metadata,
        force=call.request.force_new_execution,
        reservation=reservation,
        trace_id=trace_id,
    )

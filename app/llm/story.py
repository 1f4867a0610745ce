"""The path of one call, once: replay -> route -> hit -> claim -> send -> settle."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.llm import responses
from app.llm.breaker import Breaker
from app.llm.budgets import Holding, Reservation
from app.llm.cache import CacheRules, slot_for
from app.llm.calls import Call, run_of
from app.llm.candidates import Candidate, RouteDecision
from app.llm.deltas import parts_of
from app.llm.divergence import told_apart
from app.llm.errors import (
    LLMBudgetExceeded,
    LLMCancelled,
    LLMError,
    LLMFenced,
    LLMInternal,
    LLMKeyConflict,
)
from app.llm.fencing import answer_of_successor
from app.llm.fields.budgets import Budget
from app.llm.idempotency import Claimer, ClaimPolicy, answer_of, replayed
from app.llm.knowledge import Knowledge
from app.llm.ports import (
    ChatClient,
    Clock,
    Failure,
    Finished,
    Hit,
    IdFactory,
    KeyState,
    LLMRunRepo,
    NewRun,
    ProviderReply,
    Replay,
    StoredAnswer,
    Success,
    Won,
)
from app.llm.providers import Catalog
from app.llm.rates import Rates
from app.llm.retry import RetryPolicy
from app.llm.router import LLMRouter, no_candidate
from app.llm.sends import Sends
from app.llm.settings import LLMSettings
from app.llm.spending import Spending
from app.llm.structured.judge import Judge, check_replay, passes
from app.llm.telemetry import EVENT_FENCED, Telemetry
from app.llm.tracing import current_trace_id
from app.llm.types import LLMResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the bootstrap hands to the service: the adapters behind the ports, and the pure policies."""

    settings: LLMSettings
    client: ChatClient
    repo: LLMRunRepo
    catalog: Catalog
    clock: Clock
    new_id: IdFactory
    telemetry: Telemetry
    knowledge: Knowledge | None = None
    """Shared by the views of one service; None makes a new one, which asks nobody."""
    breaker: Breaker | None = None
    """Shared likewise."""
    rates: Rates | None = None
    """Shared likewise."""
    join: Callable[[Any], LLMRunRepo] | None = None
    """Makes the joined binding for a caller's session; None without persistence."""


class Story:
    """Answers calls. It remembers nothing of them but what is known of candidates, and who is left alone."""

    def __init__(self, wiring: Wiring) -> None:
        settings = wiring.settings
        self.knowledge = wiring.knowledge or Knowledge(
            wiring.catalog, settings, clock=wiring.clock, telemetry=wiring.telemetry
        )
        self.breaker = wiring.breaker or Breaker.from_settings(settings, wiring.clock)
        self.rates = wiring.rates or Rates.from_settings(settings, wiring.clock)
        self.router = LLMRouter.from_settings(settings)
        self._settings = settings
        self._client = wiring.client
        self._repo = wiring.repo
        self._telemetry = wiring.telemetry
        self._cache = CacheRules.from_settings(settings)
        self._claims = ClaimPolicy.from_settings(settings)
        self._retries = RetryPolicy.from_settings(settings)
        self._spending = Spending(settings, wiring.repo, wiring.telemetry)

    async def answer(self, call: Call) -> LLMResponse:
        """Return the answer of a call that was begun; raises as `LLMService.chat`."""
        if call.key is not None and (replay := await self._replayed(call)) is not None:
            return replay
        route = await self._routed(call)
        hit = await self._cached(call, route) if self._cache.reads(call.request) else None
        if hit is not None and call.key is None:
            return await self._recorded_hit(call, self._run(call, route, hit), hit)
        run, claimed = await self._claimed(call, route, hit)
        if not isinstance(claimed, Won):
            return self._served(call, run, claimed)
        if claimed.from_dead and claimed.supersedes is not None:
            self._telemetry.taken_over(run.run_id, claimed.supersedes)
        return await self._executed(call, run)

    async def explained(self, call: Call, conflict: LLMKeyConflict) -> LLMKeyConflict:
        """Return a conflict of the call's key that says what the key's own request has otherwise."""
        return await told_apart(
            self._repo,
            conflict,
            call.request,
            workspace_id=call.context.workspace_id,
            redact=self._telemetry.redact,
        )

    async def _replayed(self, call: Call) -> LLMResponse | None:
        response = replayed(await self._key_state(call))
        return None if response is None else self._as_replay(call, response)

    async def _key_state(self, call: Call) -> KeyState:
        if call.key is None or call.request.force_new_execution:
            return None
        return await self._repo.get_by_idempotency_key(
            call.context.workspace_id, call.key, call.request_sha256
        )

    async def _routed(self, call: Call) -> RouteDecision:
        stage, knowledge = call.context.stage, self.knowledge
        profile = self.router.profile_of(call.request, stage)
        await knowledge.ready(call.request, profile, left_s=call.deadline.left_s())
        route = self.router.route(call.request, caps=knowledge.catalog, stage=stage)
        if not route.kept:
            error = no_candidate(route).with_facts(run_id=call.run_id)
            await self._repo.record_failed(self._run(call, route, None), error)
            raise error
        return route

    async def _cached(self, call: Call, route: RouteDecision) -> StoredAnswer | None:
        identities = [candidate.identity for candidate in route.kept]
        found = await self._repo.get_cached(call.context.workspace_id, call.prompt_sha256, identities)
        return self._cache.choose(route, passes(call.check, found))

    async def _claimed(
        self, call: Call, route: RouteDecision, hit: StoredAnswer | None
    ) -> tuple[NewRun, Won | Replay | Hit]:
        """Claim the run, if what it may cost fits under the budgets; a hit costs nothing."""
        limits = self._spending.limits_of(call.context.workspace_id) if hit is None else ()
        if limits:
            return await self._afforded(call, route, limits)
        run = self._run(call, route, hit)
        return run, await self._claimer(call).claim(run, hit)

    async def _afforded(
        self, call: Call, route: RouteDecision, limits: tuple[Budget, ...]
    ) -> tuple[NewRun, Won | Replay | Hit]:
        async def claim(affordable: RouteDecision, held: Reservation) -> tuple[NewRun, Won | Replay | Hit]:
            run = self._run(call, affordable, None, held)
            return run, await self._claimer(call).claim(run)

        async def record(decided: RouteDecision, refusal: LLMBudgetExceeded) -> None:
            error = refusal.with_facts(run_id=call.run_id)
            await self._repo.record_failed(self._run(call, decided, None), error)

        async def is_asked() -> bool:
            return await self._key_state(call) is not None

        workspace_id = call.context.workspace_id
        return await self._spending.claimed(workspace_id, route, limits, claim, record, is_asked)

    def _run(
        self,
        call: Call,
        route: RouteDecision,
        hit: StoredAnswer | None,
        held: Reservation | None = None,
    ) -> NewRun:
        reads = self._cache.reads(call.request) and bool(route.kept)
        flies = reads and hit is None and not self._repo.inline  # a hit sends nothing: nobody has to wait
        workspace, prompt = call.context.workspace_id, call.prompt_sha256
        return run_of(
            call,
            route,
            lease_s=self._claims.lease_s(call.deadline.left_s()),
            flight_slot=slot_for(workspace, prompt, route.kept[0]) if flies else None,
            cache_candidates=() if call.check or not reads else self._cache.servable_now(route),
            reservation=held,
            trace_id=current_trace_id(),
        )

    async def _recorded_hit(self, call: Call, run: NewRun, answer: StoredAnswer) -> LLMResponse:
        await self._repo.record_hit(run, answer)
        return self._served(call, run, Hit(run_id=run.run_id, answer=answer))

    async def _executed(self, call: Call, run: NewRun) -> LLMResponse:
        sends = self._sends(call, run)
        try:
            candidate, answer = await sends.until_answered()
        except asyncio.CancelledError:
            gone = LLMCancelled("the caller went away")
            await self._repo.mark_cancelled(run, _failure(call, sends, gone))
            raise
        except Exception as failed:
            error = sends.final(_ours(failed))
            finished = await self._repo.mark_failed(run, _failure(call, sends, error))
            if finished.fenced and (winner := await self._winner(call, finished)) is not None:
                return winner
            if error is failed:
                raise
            raise error from failed
        success = self._success(call, run, candidate, answer, sends)
        finished = await self._repo.mark_succeeded(run, success)
        if not finished.fenced:
            return _persisted(success.response, finished)
        if (winner := await self._winner(call, finished)) is not None:
            return winner
        by = f"run {finished.successor_run_id} took" if finished.successor_run_id else "somebody released"
        raise LLMFenced(
            f"{by} this run's key, which has no other answer to give; this run's own is attached",
            run_id=finished.successor_run_id,
            answer=success.response,
        )

    async def _winner(self, call: Call, finished: Finished) -> LLMResponse | None:
        self._telemetry.event(
            EVENT_FENCED, level="warning", llm_run_id=call.run_id, successor=finished.successor_run_id
        )
        winner = await answer_of_successor(
            self._repo,
            finished,
            workspace_id=call.context.workspace_id,
            key=call.key,
            request_sha256=call.request_sha256,
            left_s=call.deadline.left_s,
        )
        if winner is None or winner.response is None:
            return None
        return self._as_replay(call, winner.response)

    def _claimer(self, call: Call) -> Claimer:
        return Claimer(
            repo=self._repo,
            policy=self._claims,
            left_s=call.deadline.left_s,
            reserve_s=min(self._settings.attempt_timeout_s, call.deadline.total_s / 2),
            jitter=random.random,
        )

    def _sends(self, call: Call, run: NewRun) -> Sends:
        async def cached(candidate: Candidate) -> StoredAnswer | None:
            if not self._cache.reads(call.request):
                return None
            found = await self._repo.get_cached(run.workspace_id, run.prompt_sha256, [candidate.identity])
            return passes(call.check, found).get(candidate.identity)

        return Sends(
            run=run,
            client=self._client,
            repo=self._repo,
            policy=self._retries,
            attempt_cap_s=self._settings.attempt_timeout_s,
            deadline=call.deadline,
            telemetry=self._telemetry,
            breaker=self.breaker,
            rates=self.rates,
            jitter=random.random,
            cached=cached,
            learn=self.knowledge.refused,
            tell=call.tell,
            judge=Judge(check=call.check),
            holding=Holding(run.route, run.reservation) if run.reservation else None,
        )

    def _served(self, call: Call, run: NewRun, claimed: Replay | Hit) -> LLMResponse:
        stored = answer_of(claimed.answer)
        if isinstance(claimed, Replay):
            return self._as_replay(call, stored)
        return responses.hit(run, stored, latency_ms=call.deadline.spent_ms())

    def _as_replay(self, call: Call, stored: LLMResponse) -> LLMResponse:
        check_replay(call.check, stored)
        self._repo.count_replay(stored.run_id)
        return stored.model_copy(
            update={"parts": responses.unshared(stored.parts), "latency_ms": call.deadline.spent_ms()}
        )

    def _success(
        self,
        call: Call,
        run: NewRun,
        candidate: Candidate,
        answer: ProviderReply | StoredAnswer,
        sends: Sends,
    ) -> Success:
        attempts, spent_ms, source = sends.attempts, call.deadline.spent_ms(), None
        if isinstance(answer, StoredAnswer):
            source = answer.run_id
            response = responses.hit(run, answer_of(answer), attempts=attempts, latency_ms=spent_ms)
        else:
            kept = self._settings.persist_runs
            response = responses.live(
                run, candidate, answer, attempts=attempts, latency_ms=spent_ms, persisted=kept
            )
        return Success(
            response=response,
            candidate_sha256=candidate.identity,
            attempts=sends.attempts,
            queue_wait_ms=sends.queue_wait_ms,
            source_run_id=source,
        )


def _persisted(response: LLMResponse, finished: Finished) -> LLMResponse:
    if finished.persisted or not response.persisted:
        return response
    return response.model_copy(update={"persisted": False})


def _ours(failed: Exception) -> LLMError:
    return (
        failed
        if isinstance(failed, LLMError)
        else LLMInternal(f"a defect of this package: {type(failed).__name__}")
    )


def _failure(call: Call, sends: Sends, error: LLMError) -> Failure:
    return Failure(
        error=error,
        attempts=sends.attempts,
        queue_wait_ms=sends.queue_wait_ms,
        latency_ms=call.deadline.spent_ms(),
        partial=parts_of(sends.heard),
    )

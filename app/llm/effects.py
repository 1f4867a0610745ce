"""An effect under its key: claimed, leased and settled as a call is, so that what was done is not done again."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import JsonValue

from app.llm.candidates import Route, RouteDecision
from app.llm.context import ResolvedContext, context_of_effect
from app.llm.divergence import told_apart
from app.llm.errors import (
    LLMCancelled,
    LLMEffectFailed,
    LLMError,
    LLMFenced,
    LLMInvalidRequest,
    LLMKeyConflict,
    LLMKeyUnavailable,
    LLMLedgerError,
)
from app.llm.fencing import answer_of_successor
from app.llm.fingerprint import effect_sha256
from app.llm.idempotency import Claimer, ClaimPolicy, refusal, result_of
from app.llm.ports import TOOL, Abandoned, Conflict, Done, Effect, Failure, Finished, NewRun, Replay, Won
from app.llm.sends import Deadline
from app.llm.telemetry import EVENT_EFFECT, EVENT_FENCED, EVENT_LEASE_NOT_RENEWED
from app.llm.tracing import current_trace_id
from app.llm.types import MAX_KEY_CHARS, CacheMode, LLMCallContext, LLMProfile, ServedFrom, printable

if TYPE_CHECKING:
    from app.llm.story import Wiring

BEATS = 3
"""Times that a lease is renewed while it lasts."""

Work = Callable[[], Awaitable[JsonValue]]


class Unrecordable(Exception):
    """Raised by work that is done, where what it returned cannot be written down."""


_NOWHERE = RouteDecision(profile=LLMProfile.FAST, route=Route(()), needs_of={})
"""The route of what is sent to nobody."""


class Effects:
    """Runs effects; what it knows of them is in the ledger."""

    def __init__(self, wiring: "Wiring") -> None:
        self._settings = wiring.settings
        self._repo = wiring.repo
        self._clock = wiring.clock
        self._new_id = wiring.new_id
        self._telemetry = wiring.telemetry
        self._claims = ClaimPolicy.from_settings(wiring.settings)

    async def once(
        self,
        effect: Effect,
        work: Work,
        *,
        key: str,
        context: LLMCallContext | None,
        undone: tuple[type[Exception], ...],
        force: bool,
    ) -> JsonValue:
        """Return what the work returned, now or when it was done; raises as `LLMService.once`."""
        if not self._settings.persist_runs:
            raise LLMKeyUnavailable("an effect needs persisted runs (LLM_PERSIST_RUNS=true)")
        effect = _checked(effect)
        whose = context_of_effect(key, context, default_workspace=self._settings.default_workspace)
        run = self._run(effect, whose, force=force)
        deadline = Deadline.after(self._clock, self._settings.default_timeout_s)
        try:
            kept = await self._kept(run, deadline)
        except LLMKeyConflict as conflict:
            told = await told_apart(
                self._repo,
                conflict,
                effect,
                workspace_id=run.workspace_id,
                redact=self._telemetry.redact,
            )
            raise told from None
        result = await self._executed(run, work, undone) if kept is None else kept
        value: JsonValue = json.loads(result)
        return value

    def _run(self, effect: Effect, whose: ResolvedContext, *, force: bool) -> NewRun:
        sha256 = effect_sha256(effect.name, effect.arguments)
        return NewRun(
            run_id=self._new_id(),
            workspace_id=whose.workspace_id,
            request=effect,
            profile=TOOL,
            route=_NOWHERE,
            prompt_sha256=sha256,
            request_sha256=sha256,
            lease_s=self._settings.lease_grace_s,
            pipeline_run_id=whose.pipeline_run_id,
            stage=whose.stage,
            idempotency_key=whose.idempotency_key,
            cache_mode=CacheMode.BYPASS,
            force=force,
            trace_id=current_trace_id(),
        )

    async def _kept(self, run: NewRun, deadline: Deadline) -> str | None:
        """Return the result that the key holds; None once the key is ours."""
        state = None
        if run.idempotency_key is not None and not run.force:
            state = await self._repo.get_by_idempotency_key(
                run.workspace_id, run.idempotency_key, run.request_sha256
            )
        if isinstance(state, Conflict | Abandoned):
            raise refusal(state, run.request)
        claimed = state if isinstance(state, Replay) else await self._claimer(deadline).claim(run)
        if not isinstance(claimed, Won):
            self._tell(run, ServedFrom.REPLAY)
            self._repo.count_replay(claimed.answer.run_id)
            return result_of(claimed.answer)
        if claimed.from_dead and claimed.supersedes is not None:
            self._telemetry.taken_over(run.run_id, claimed.supersedes)
        return None

    def _claimer(self, deadline: Deadline) -> Claimer:
        return Claimer(
            repo=self._repo,
            policy=self._claims,
            left_s=deadline.left_s,
            reserve_s=0.0,
            jitter=random.random,
        )

    async def _executed(self, run: NewRun, work: Work, undone: tuple[type[Exception], ...]) -> str:
        began_s = self._clock.monotonic_s()
        async with self._leased(run) as renewing_ends:
            try:
                result = _result(run, await work())
            except asyncio.CancelledError:  # a thread of the work, or whom it asked, may go on and finish it
                renewing_ends()
                await self._repo.abandon(run)
                raise
            except Unrecordable as done:
                renewing_ends()
                await self._repo.abandon(run)
                raise _done_unknown(run, done) from None
            except Exception as failed:
                kind = LLMCancelled if isinstance(failed, undone) else LLMEffectFailed
                error = kind(f"{type(failed).__name__}: {failed}")
                finished = await self._repo.mark_failed(run, self._failure(error, began_s))
                if finished.fenced and (winner := await self._winner(run, finished)) is not None:
                    return winner
                raise
            finished = await self._repo.mark_done(
                run, Done(result=result, latency_ms=self._since_ms(began_s))
            )
        self._tell(run, ServedFrom.LIVE)
        return result if not finished.fenced else await self._of_successor(run, finished, result)

    async def _of_successor(self, run: NewRun, finished: Finished, own: str) -> str:
        winner = await self._winner(run, finished)
        if winner is None:
            raise LLMFenced(
                f"another run took the key of {_name(run)} over, or somebody released it, while it was at work; "
                "the own result is attached",
                run_id=finished.successor_run_id,
                answer=json.loads(own),
            )
        return winner

    async def _winner(self, run: NewRun, finished: Finished) -> str | None:
        successor = finished.successor_run_id
        self._telemetry.event(EVENT_FENCED, level="warning", llm_run_id=run.run_id, successor=successor)
        answer = await answer_of_successor(
            self._repo,
            finished,
            workspace_id=run.workspace_id,
            key=run.idempotency_key,
            request_sha256=run.request_sha256,
            left_s=Deadline.after(self._clock, self._settings.default_timeout_s).left_s,
        )
        return None if answer is None else answer.result

    @asynccontextmanager
    async def _leased(self, run: NewRun) -> AsyncGenerator[Callable[[], object]]:
        """Renew the run's lease until the block ends or calls what it is given.

        In a caller's transaction nobody else sees the run.
        """
        if self._repo.inline:
            yield lambda: None
            return
        beating = asyncio.create_task(self._beat(run))
        try:
            yield beating.cancel
        finally:
            beating.cancel()
            await asyncio.wait([beating])

    async def _beat(self, run: NewRun) -> None:
        held = True
        while held:  # else it was taken over or released, which its end will tell
            await self._clock.sleep_s(run.lease_s / BEATS)
            try:
                held = await self._repo.renew(run)
            except LLMLedgerError as fault:
                self._telemetry.event(
                    EVENT_LEASE_NOT_RENEWED, level="warning", llm_run_id=run.run_id, error_message=str(fault)
                )

    def _failure(self, error: LLMError, began_s: float) -> Failure:
        spent_ms = self._since_ms(began_s)
        return Failure(error=error, attempts=(), queue_wait_ms=0.0, latency_ms=spent_ms)

    def _since_ms(self, began_s: float) -> float:
        return (self._clock.monotonic_s() - began_s) * 1000

    def _tell(self, run: NewRun, served_from: ServedFrom) -> None:
        self._telemetry.event(
            EVENT_EFFECT,
            llm_run_id=run.run_id,
            workspace_id=run.workspace_id,
            stage=run.stage,
            effect=_name(run),
            served_from=served_from.value,
        )


def _name(run: NewRun) -> str | None:
    return run.first[1]


def _result(run: NewRun, returned: JsonValue) -> str:
    try:
        return _as_json(returned, f"what {_name(run)} returned")
    except LLMInvalidRequest as error:
        raise Unrecordable(error.message) from None


def _done_unknown(run: NewRun, done: Unrecordable) -> LLMInvalidRequest:
    return LLMInvalidRequest(
        f"{done}; the work is done, so its key is not free: LLM_ON_ABANDONED says whether the next caller does it again, "
        f"`signalbox runs release {run.run_id}` lets it",
        run_id=run.run_id,
        possibly_paid=True,
    )


def _checked(effect: Effect) -> Effect:
    try:
        name = printable(effect.name, "the name of an effect")
    except ValueError as error:
        raise LLMInvalidRequest(str(error)) from None
    if len(name) > MAX_KEY_CHARS:
        raise LLMInvalidRequest(
            f"the name of an effect has {len(name)} characters; {MAX_KEY_CHARS} are allowed"
        )
    arguments = json.loads(_as_json(effect.arguments, f"the arguments of {name}"))
    if not isinstance(arguments, dict):
        raise LLMInvalidRequest(
            f"the arguments of {name} must be a JSON object, names with values, not {type(effect.arguments).__name__}"
        )
    return Effect(name=name, arguments=arguments)


def _as_json(value: object, what: str) -> str:
    """Return JSON of ASCII characters; `what` names the value in an error.

    Raises:
        LLMInvalidRequest: JSON has no word for it.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise LLMInvalidRequest(f"{what} cannot be recorded as JSON: {error}") from None

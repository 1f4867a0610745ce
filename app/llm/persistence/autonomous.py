"""The autonomous binding: every transition is a short transaction of its own, which no caller can undo or interrupt.

A transition is begun once and awaited through a shield: a cancelled caller leaves at once, the transition is finished
in the background, and a claim that was won for nobody is settled as CANCELLED. So does a look-up that takes time: a
driver gives a connection up when a statement on it is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from app.core.deadlines import Deadlines
from app.llm import telemetry as events
from app.llm.conventions import FINISH_SPAN
from app.llm.errors import LLMCancelled, LLMError, LLMLedgerBusy, LLMLedgerError
from app.llm.persistence import ledger
from app.llm.persistence.behind import WriteBehind
from app.llm.persistence.executor import Executor, Result, Step, Steps
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.recall import Recall, of_key, of_prompt
from app.llm.persistence.repo import LedgerRunRepo
from app.llm.persistence.settlement import Settlement
from app.llm.persistence.spool.pending import Spool
from app.llm.persistence.spool.spooling import Spooling
from app.llm.ports import (
    ClaimOutcome,
    Clock,
    Failure,
    Finished,
    KeyState,
    NewRun,
    Replay,
    StoredAnswer,
    Success,
    Won,
)
from app.llm.telemetry import Telemetry

T = TypeVar("T")
ADOPT_EVERY_S = 5.0
"""Seconds between two looks for spool files of dead processes; a lease outlives a deadline by 15 s."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class AutonomousRunRepo(LedgerRunRepo):
    """The default binding, on connections of its own; bound to the loop it was opened on."""

    inline = False

    def __init__(
        self,
        executor: Executor,
        rules: ClaimRules,
        spool: Spool,
        *,
        keep_payloads: bool,
        telemetry: Telemetry,
        clock: Clock,
        finish_budget_s: float,
    ) -> None:
        super().__init__(executor, rules, keep_payloads=keep_payloads, telemetry=telemetry)
        self._spooling = Spooling(spool, executor, rules.codec, telemetry)
        self._recall = Recall(rules.memory_bytes, now_s=clock.monotonic_s)
        self._behind = WriteBehind(executor, rules, begin=self._logged)
        self._clock = clock
        self._finish_budget_s = finish_budget_s
        self._deadlines = Deadlines()
        self._begun: set[asyncio.Future[Any]] = set()
        self._live: dict[str, asyncio.Event | None] = {}
        """Runs of this process that are STARTED, with an event where somebody waits for their end."""
        self._spool_timer: asyncio.TimerHandle | None = None

    @property
    def spooled(self) -> int:
        """How many outcomes wait in the spool of this process."""
        return len(self._spooling)

    async def open(self) -> None:
        """Adopt the spool files of dead processes, now and later; warn when no spool could be written."""
        try:
            await self._spooling.open()
        except BaseException:
            await self._spooling.close()
            raise
        self._watch_spool()

    async def get_by_idempotency_key(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        """Return what the key holds now; a spooled answer counts before the database does."""
        if len(self._spooling) and (state := self._spooling.key_state(workspace_id, key, request_sha256)):
            return state
        place, since = of_key(workspace_id, key), self._recall.forgotten
        known = self._recall.get(place)
        if known is not None and known.request_sha256 == request_sha256:
            return Replay(answer=known)
        state = await super().get_by_idempotency_key(workspace_id, key, request_sha256)
        if isinstance(state, Replay):
            self._recall.keep(place, state.answer, since=since)
        return state

    async def get_cached(
        self, workspace_id: str, prompt_sha256: str, candidates: Sequence[str]
    ) -> Mapping[str, StoredAnswer]:
        """Return the freshest servable answer of each candidate identity; of the first alone if that is at hand."""
        places = {name: of_prompt(workspace_id, prompt_sha256, name) for name in candidates}
        since = self._recall.forgotten
        known = self._recall.get(places[candidates[0]]) if candidates else None
        if known is not None:
            return {candidates[0]: known}
        found = await super().get_cached(workspace_id, prompt_sha256, candidates)
        for name, answer in found.items():
            self._recall.keep(places[name], answer, since=since)
        return found

    async def record_hit(self, run: NewRun, answer: StoredAnswer) -> None:
        """Write the row of a hit without a key, in the background."""
        if self._behind.full:
            await super().record_hit(run, answer)
        else:
            self._behind.add_hit(run, answer)

    async def mark_succeeded(self, run: NewRun, success: Success) -> Finished:
        """Settle a run that has its answer; a caller that is cancelled meanwhile does not stop it."""
        finished = await super().mark_succeeded(run, success)
        self._recall.forget(of_prompt(run.workspace_id, run.prompt_sha256, success.candidate_sha256))
        return finished

    async def abandon(self, run: NewRun) -> None:
        """Let a lease be over, in the background: who waits for it claims again within seconds."""
        self._begin(super().abandon(run)).add_done_callback(lambda _: self._note_ended(run.run_id))

    async def mark_cancelled(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run whose caller is gone, in the background."""
        settling = self._insist(self._unanswered(run, failure, "CANCELLED"), self._give_up_at())
        self._begin(self._traced(FINISH_SPAN, run, settling))
        return Finished()

    async def wait_finished(self, run_id: str, timeout_s: float) -> str | None:
        """Wait for a run: of this process by its event, of another one by the clock."""
        ended = self._live.get(run_id) or asyncio.Event()
        if run_id in self._live:
            self._live[run_id] = ended
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        return await super().wait_finished(run_id, timeout_s)

    def count_replay(self, run_id: str) -> None:
        """Add one to the run's `replayed_count` within a second or so."""
        self._behind.count_replay(run_id)

    async def drain(self) -> None:
        """Wait for every background transition, and write what is to be written later."""
        self._behind.write_all()
        while self._begun:
            await asyncio.wait(set(self._begun))

    async def close(self) -> None:
        """Drain, try the spool once more, close the connections, leave to others what the spool still holds."""
        if self._spool_timer is not None:
            self._spool_timer.cancel()
        try:
            await self.drain()
            if len(self._spooling):
                self._logged(self._spooling.drain())
                await self.drain()
            await self._executor.close()
        finally:
            await self._spooling.close()

    # -- claiming

    async def _claim(self, run: NewRun, answer: StoredAnswer | None) -> ClaimOutcome:
        """Claim; a caller that is cancelled meanwhile leaves no STARTED row behind."""
        if len(self._spooling):
            if run.idempotency_key is not None and not run.force:
                state = self._spooling.key_state(run.workspace_id, run.idempotency_key, run.request_sha256)
                if state is not None:
                    return state
            await self._spool_drained(run.left_s)
        claim = asyncio.ensure_future(
            self._executor.transaction(partial(ledger.claim, run, self.rules, answer))
        )
        try:
            return await self._shielded(claim, partial(self._note_won, run))
        except asyncio.CancelledError:
            if claim.done():
                self._settle_unclaimed(run, claim)
            else:
                claim.add_done_callback(partial(self._settle_unclaimed, run))
            raise

    async def _spool_drained(self, left_s: float | None) -> None:
        """Wait, as long as the call has time, until nothing is pending."""
        try:
            async with asyncio.timeout(left_s):
                await asyncio.shield(self._begin(self._spooling.drain()))
        except TimeoutError:
            raise LLMLedgerBusy(
                "paid answers that wait in the spool come before new calls, and the ledger has not taken them within "
                "this call's time; nothing was sent",
                retry_after_s=1.0,
            ) from None

    def _note_won(self, run: NewRun, claim: asyncio.Future[ClaimOutcome]) -> None:
        won = _won(claim)
        if won is not None:
            self._live[run.run_id] = None
            if won.supersedes is not None and run.idempotency_key is not None:
                self._recall.forget(of_key(run.workspace_id, run.idempotency_key))

    def _settle_unclaimed(self, run: NewRun, claim: asyncio.Future[ClaimOutcome]) -> None:
        if _won(claim) is not None:
            error = LLMCancelled("the caller went away while its run was claimed; nothing was sent")
            failure = Failure(error=error, attempts=(), queue_wait_ms=0.0, latency_ms=0.0)
            self._begin(self._insist(self._unanswered(run, failure, "CANCELLED"), self._give_up_at()))

    # -- settling

    async def _settle(self, settled: Settlement) -> Finished:
        """Write it at once, or within the finish budget, or into the spool, whatever becomes of the caller."""
        give_up_at = self._give_up_at()
        first = asyncio.ensure_future(
            self._executor.transaction(partial(ledger.finish, settled, self.rules.codec))
        )
        try:
            with self._deadlines.within(self._finish_budget_s):
                finished = await self._shielded(first)
        except asyncio.CancelledError:
            self._begin(self._insist(settled, give_up_at, first))
            raise
        except (LLMLedgerError, TimeoutError):
            finished = Finished(persisted=False)
        if not finished.persisted:
            return await asyncio.shield(self._begin(self._insist(settled, give_up_at, first)))
        self._note_ended(settled.run_id)
        return finished

    async def _insist(
        self, settled: Settlement, give_up_at: float, begun: Awaitable[Finished] | None = None
    ) -> Finished:
        """Write it until then, else put it into the spool; `begun` is a try that is under way, or was."""
        try:
            return await self._finish(settled, give_up_at, begun)
        finally:
            self._note_ended(settled.run_id)

    async def _finish(
        self, settled: Settlement, give_up_at: float, begun: Awaitable[Finished] | None
    ) -> Finished:
        pause_s = FIRST_PAUSE_S
        while True:
            work = begun or self._executor.transaction(partial(ledger.finish, settled, self.rules.codec))
            left_s, begun = give_up_at - self._clock.monotonic_s(), None
            try:
                async with asyncio.timeout(max(left_s, FIRST_PAUSE_S)):
                    finished = await work
                return finished if finished.persisted else await self._spooling.set_aside(settled)
            except (LLMLedgerError, TimeoutError) as fault:
                reason = str(fault) or "the finish budget is used up"
            if self._clock.monotonic_s() + pause_s >= give_up_at:
                return await self._spooling.append(settled, reason)
            await self._clock.sleep_s(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _give_up_at(self) -> float:
        return self._clock.monotonic_s() + self._finish_budget_s

    def _note_ended(self, run_id: str) -> None:
        ended = self._live.pop(run_id, None)
        if ended is not None:
            ended.set()

    # -- pieces

    async def _transact(self, steps: Callable[[], Steps[T]]) -> T:
        return await self._shielded(asyncio.ensure_future(self._executor.transaction(steps)))

    async def _read(self, step: Step) -> Result:
        reading = asyncio.ensure_future(self._executor.read(step))
        return reading.result() if reading.done() else await self._shielded(reading)

    def _watch_spool(self) -> None:
        """Look for the files of processes that die later, well before a lease can run out."""
        self._spool_timer = asyncio.get_running_loop().call_later(ADOPT_EVERY_S, self._adopt_later)

    def _adopt_later(self) -> None:
        self._logged(self._spooling.adopt())
        self._watch_spool()

    def _begin(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Begin what nobody may interrupt, and remember it until it has ended: a future of the executor, or a task."""
        begun = asyncio.ensure_future(work)
        self._begun.add(begun)
        begun.add_done_callback(self._ended)
        return begun

    def _ended(self, begun: asyncio.Future[Any]) -> BaseException | None:
        """Forget it; return its fault, looked at, for a caller that was cancelled will not."""
        self._begun.discard(begun)
        return asyncio.CancelledError() if begun.cancelled() else begun.exception()

    def _shielded(
        self, work: asyncio.Future[T], note: Callable[[asyncio.Future[T]], None] | None = None
    ) -> asyncio.Future[T]:
        """Begin likewise what a caller waits for; return what may be cancelled, which changes nothing of the work.

        It is `asyncio.shield` of `_begin` with one callback instead of four. `note` is called before the caller goes on.
        """
        waiting: asyncio.Future[T] = work.get_loop().create_future()

        def tell(begun: asyncio.Future[T]) -> None:
            fault = self._ended(begun)
            if note is not None:
                note(begun)
            if waiting.done():
                return
            if fault is None:
                waiting.set_result(begun.result())
            elif begun.cancelled():
                waiting.cancel()
            else:
                waiting.set_exception(fault)

        self._begun.add(work)
        work.add_done_callback(tell)
        return waiting

    def _logged(self, work: Awaitable[object]) -> None:
        """Begin what nobody waits for; a fault of it is told in the log."""
        self._begin(work).add_done_callback(self._log_fault)

    def _log_fault(self, ended: asyncio.Future[Any]) -> None:
        fault = None if ended.cancelled() else ended.exception()
        if fault is not None:
            said = str(fault) if isinstance(fault, LLMError | OSError) else type(fault).__name__
            self._telemetry.event(events.EVENT_BACKGROUND_FAULT, level="warning", error_message=said)


def _won(claim: asyncio.Future[ClaimOutcome]) -> Won | None:
    if claim.cancelled() or claim.exception() is not None:
        return None
    outcome = claim.result()
    return outcome if isinstance(outcome, Won) else None

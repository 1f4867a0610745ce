"""The autonomous binding: every transition is a short transaction of its own, which no caller can undo or interrupt.

A transition runs in a tracked task and is awaited through a shield: a cancelled caller leaves at once, the
transition is finished in the background, and a claim that was won for nobody is settled as CANCELLED.
So does a look-up: the driver gives a connection up when a statement on it is cancelled.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from app.llm import telemetry as events
from app.llm.errors import LLMCancelled, LLMError, LLMLedgerError
from app.llm.persistence import ledger
from app.llm.persistence.codec import decode_response, opened
from app.llm.persistence.executor import Executor
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.models import SUCCEEDED
from app.llm.persistence.repo import LedgerRunRepo
from app.llm.persistence.settlement import Settlement
from app.llm.persistence.spool import Spool
from app.llm.ports import (
    ClaimOutcome,
    Clock,
    Conflict,
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
from app.llm.types import ServedFrom

T = TypeVar("T")
REPLAY_BATCH_S = 1.0
"""Seconds that replay counts are added up before they are written."""
ADOPT_EVERY_S = 5.0
"""Seconds between two looks for spool files of dead processes; a lease outlives a deadline by 15 s."""
MAX_BACKGROUND = 512
"""Transitions in the background at once; beyond that a hit waits for its row."""
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
        self._spool = spool
        self._clock = clock
        self._finish_budget_s = finish_budget_s
        self._spool_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._live: dict[str, asyncio.Event] = {}
        self._replays: Counter[str] = Counter()
        self._replay_timer: asyncio.TimerHandle | None = None
        self._spool_timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Adopt the spool files of dead processes; warn when no spool could be written."""
        try:
            await asyncio.to_thread(self._spool.check)
            await asyncio.to_thread(self._spool.adopt)
        except OSError as error:
            self._telemetry.event(
                events.EVENT_SPOOL_UNWRITABLE,
                level="warning",
                error_message=f"the spool cannot be written: {error}",
            )
        if len(self._spool):
            await self._drain_spool()
        self._watch_spool()

    async def get_by_idempotency_key(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        """Return what the key holds now; a spooled answer counts before the database does."""
        return self._spooled(workspace_id, key, request_sha256) or await self._done(
            super().get_by_idempotency_key(workspace_id, key, request_sha256)
        )

    async def get_cached(
        self, workspace_id: str, prompt_sha256: str, candidates: Sequence[str]
    ) -> Mapping[str, StoredAnswer]:
        """Return the freshest servable answer of each candidate identity."""
        return await self._done(super().get_cached(workspace_id, prompt_sha256, candidates))

    async def create_started(self, run: NewRun) -> ClaimOutcome:
        """Claim; a caller that is cancelled meanwhile leaves no STARTED row behind."""
        return await self._claim(run, None)

    async def save_result_for_idempotency_key(self, run: NewRun, answer: StoredAnswer) -> ClaimOutcome:
        """Claim with the answer already known."""
        return await self._claim(run, answer)

    async def record_hit(self, run: NewRun, answer: StoredAnswer) -> None:
        """Write the row of a hit without a key, in the background."""
        task = self._track(self._logged(super().record_hit(run, answer)))
        if len(self._tasks) > MAX_BACKGROUND:
            await asyncio.shield(task)

    async def record_failed(self, run: NewRun, error: LLMError) -> None:
        """Write a FAILED row for a run that never claimed."""
        await self._done(super().record_failed(run, error))

    async def note_send(self, run_id: str, sends: int) -> None:
        """Commit that send number `sends` may happen, within the ledger's budget."""
        await self._done(super().note_send(run_id, sends))

    async def mark_succeeded(self, run: NewRun, success: Success) -> Finished:
        """Settle a run that has its answer; a caller that is cancelled meanwhile does not stop it."""
        return await self._done(super().mark_succeeded(run, success))

    async def mark_failed(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run that has none."""
        return await self._done(super().mark_failed(run, failure))

    async def mark_cancelled(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run whose caller is gone, in the background."""
        self._track(self._settle(self._unanswered(run, failure, "CANCELLED")))
        return Finished()

    async def wait_finished(self, run_id: str, timeout_s: float) -> str | None:
        """Wait for a run: of this process by its event, of another one by the clock."""
        ended = self._live.get(run_id) or asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        return await self._done(super().wait_finished(run_id, timeout_s))

    def count_replay(self, run_id: str) -> None:
        """Add one to the run's `replayed_count` within a second or so."""
        self._replays[run_id] += 1
        if self._replay_timer is None:
            self._replay_timer = asyncio.get_running_loop().call_later(REPLAY_BATCH_S, self._write_replays)

    def _watch_spool(self) -> None:
        """Look for the files of processes that die later, well before a lease can run out."""
        self._spool_timer = asyncio.get_running_loop().call_later(ADOPT_EVERY_S, self._adopt_later)

    def _adopt_later(self) -> None:
        self._track(self._logged(self._adopt()))
        self._watch_spool()

    async def _adopt(self) -> None:
        async with self._spool_lock:
            await asyncio.to_thread(self._spool.adopt)
        if len(self._spool):
            await self._drain_spool()

    async def drain(self) -> None:
        """Wait for every background transition, and write the replay counts."""
        self._write_replays()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Drain, try the spool once more, close the connections."""
        if self._spool_timer is not None:
            self._spool_timer.cancel()
        await self.drain()
        if len(self._spool):
            await self._logged(self._drain_spool())
        await self._executor.close()

    async def _claim(self, run: NewRun, answer: StoredAnswer | None) -> ClaimOutcome:
        if len(self._spool):
            if run.idempotency_key is not None:
                spooled = self._spooled(run.workspace_id, run.idempotency_key, run.request_sha256)
                if spooled is not None and not run.force:
                    return spooled
            await self._done(self._drain_spool())
        task = self._track(self._executor.transaction(lambda: ledger.claim(run, self.rules, answer)))
        task.add_done_callback(lambda done: self._note_won(run, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: self._settle_unclaimed(run, done))
            raise

    def _note_won(self, run: NewRun, claim: asyncio.Task[ClaimOutcome]) -> None:
        if _won(claim):
            self._live[run.run_id] = asyncio.Event()

    def _settle_unclaimed(self, run: NewRun, claim: asyncio.Task[ClaimOutcome]) -> None:
        if _won(claim):
            error = LLMCancelled("the caller went away while its run was claimed; nothing was sent")
            failure = Failure(error=error, attempts=(), queue_wait_ms=0.0, latency_ms=0.0)
            self._track(self._settle(self._unanswered(run, failure, "CANCELLED")))

    async def _settle(self, settled: Settlement) -> Finished:
        try:
            return await self._finish(settled)
        finally:
            if (ended := self._live.pop(settled.run_id, None)) is not None:
                ended.set()

    async def _finish(self, settled: Settlement) -> Finished:
        """Write it within the finish budget, else put it into the spool."""
        codec, give_up_at = self.rules.codec, self._clock.monotonic_s() + self._finish_budget_s
        pause_s = FIRST_PAUSE_S
        while True:
            left_s = give_up_at - self._clock.monotonic_s()
            try:
                async with asyncio.timeout(max(left_s, FIRST_PAUSE_S)):
                    return await self._executor.transaction(lambda: ledger.finish(settled, codec))
            except (LLMLedgerError, TimeoutError) as fault:
                reason = str(fault) or "the finish budget is used up"
            if self._clock.monotonic_s() + pause_s >= give_up_at:
                return await self._to_spool(settled, reason)
            await self._clock.sleep_s(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _to_spool(self, settled: Settlement, reason: str) -> Finished:
        try:
            async with self._spool_lock:
                await asyncio.to_thread(self._spool.append, settled)
        except OSError as error:
            self._telemetry.event(
                events.EVENT_ANSWER_LOST,
                level="error",
                llm_run_id=settled.run_id,
                error_message=f"{reason}; {error}",
            )
        else:
            self._telemetry.event(
                events.EVENT_SPOOLED, level="error", llm_run_id=settled.run_id, error_message=reason
            )
        return Finished(persisted=False)

    async def _drain_spool(self) -> None:
        """Write what waits, oldest first.

        Raises:
            LLMLedgerError: The database is still away; nothing may be claimed.
        """
        async with self._spool_lock:
            for settled in self._spool.pending:
                await self._executor.transaction(partial(ledger.finish, settled, self.rules.codec))
                await asyncio.to_thread(self._spool.settled, settled.run_id)
                self._telemetry.event(events.EVENT_SPOOL_DRAINED, llm_run_id=settled.run_id)

    def _spooled(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        settled = self._spool.of_key(workspace_id, key)
        if settled is None or settled.run["status"] != SUCCEEDED:
            return None
        if settled.request_sha256 != request_sha256:
            return Conflict(run_id=settled.run_id)
        kept = {row["sha256"]: row for row in settled.payloads}.get(settled.run["response_payload"])
        response = kept and decode_response(
            opened(kept, self.rules.codec, run_id=settled.run_id),
            run_id=settled.run_id,
            route=(),
            served_from=ServedFrom.REPLAY,
        )
        answer = StoredAnswer(
            run_id=settled.run_id,
            candidate_sha256=settled.run["candidate_sha256"],
            request_sha256=request_sha256,
            response=response or None,
        )
        return Replay(answer=answer)

    def _write_replays(self) -> None:
        if self._replay_timer is not None:
            self._replay_timer.cancel()
            self._replay_timer = None
        if self._replays:
            counts, self._replays = dict(self._replays), Counter()
            self._track(self._logged(self._executor.transaction(lambda: ledger.add_replays(counts))))

    def _track(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)
        return task

    async def _done(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._track(work))

    async def _logged(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except (LLMLedgerError, OSError) as fault:
            self._telemetry.event(events.EVENT_BACKGROUND_FAULT, level="warning", error_message=str(fault))


def _won(claim: asyncio.Task[ClaimOutcome]) -> bool:
    return not claim.cancelled() and claim.exception() is None and isinstance(claim.result(), Won)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the outcome, for a caller that was cancelled will not."""
    if not task.cancelled():
        task.exception()

"""The ledger's port over an executor; bound to a caller's session it is the joined binding.

The joined binding is weaker, and the caller should know how: nobody sees STARTED before the caller commits, on SQLite
the write lock is held while the provider works, two keys in opposite order can deadlock on PostgreSQL, and a
rollback after a paid call loses its record.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from app.llm import telemetry as events
from app.llm.budgets import BudgetState, Measure, Reservation
from app.llm.conventions import CLAIM_SPAN, FINISH_SPAN
from app.llm.errors import LLMError, LLMLedgerError
from app.llm.fields.budgets import Per
from app.llm.persistence import budgets, ledger, settlement
from app.llm.persistence.codec import decode_request, opened
from app.llm.persistence.executor import Executor, Result, SessionExecutor, Step, Steps
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.models import STARTED
from app.llm.persistence.settlement import Settlement
from app.llm.ports import (
    ClaimOutcome,
    Done,
    Effect,
    Failure,
    Finished,
    KeyState,
    NewRun,
    StoredAnswer,
    Success,
)
from app.llm.telemetry import Telemetry
from app.llm.tracing import LedgerSpan
from app.llm.types import LLMRequest

T = TypeVar("T")


class LedgerRunRepo:
    """What both bindings share: each method is one transaction of the executor, awaited where it is called."""

    inline = True

    def __init__(
        self, executor: Executor, rules: ClaimRules, *, keep_payloads: bool, telemetry: Telemetry
    ) -> None:
        self.rules = rules
        self.keep_payloads = keep_payloads
        self._executor = executor
        self._telemetry = telemetry

    async def get_by_idempotency_key(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        """Return what the key holds now."""
        found = await self._read(ledger.key_holder(workspace_id, key))
        return ledger.key_state(found, request_sha256, self.rules)

    async def get_cached(
        self, workspace_id: str, prompt_sha256: str, candidates: Sequence[str]
    ) -> Mapping[str, StoredAnswer]:
        """Return the freshest servable answer of each candidate identity."""
        if not candidates:
            return {}
        step = ledger.find_cached(workspace_id, prompt_sha256, candidates, self.rules)
        return ledger.cached_answers(await self._read(step), self.rules)

    async def create_started(self, run: NewRun) -> ClaimOutcome:
        """Claim."""
        return await self._traced(CLAIM_SPAN, run, self._claim(run, None))

    async def save_result_for_idempotency_key(self, run: NewRun, answer: StoredAnswer) -> ClaimOutcome:
        """Claim with the answer already known."""
        return await self._traced(CLAIM_SPAN, run, self._claim(run, answer))

    async def record_hit(self, run: NewRun, answer: StoredAnswer) -> None:
        """Write the row of a hit without a key."""
        await self._transact(lambda: ledger.record_hits([(run, answer)], self.rules))

    async def record_failed(self, run: NewRun, error: LLMError) -> None:
        """Write a FAILED row for a run that never claimed."""
        failure = Failure(error=error, attempts=(), queue_wait_ms=0.0, latency_ms=0.0)
        settled = self._unanswered(run, failure, "FAILED")
        await self._transact(lambda: ledger.insert_and_finish(run, self.rules, settled))

    async def note_send(self, run_id: str, sends: int, more: Reservation | None = None) -> None:
        """Commit that send number `sends` may happen."""
        await self._transact(lambda: ledger.note_send(run_id, self.rules.owner, sends, more))

    async def budget_state(self, workspace_id: str, pers: Sequence[Per]) -> BudgetState:
        """Return the counters of these periods; those that are missing are made."""
        while True:
            state = budgets.state_of((await self._read(budgets.state(workspace_id))).rows)
            missing = [per for per in pers if per not in state.spent]
            if not missing:
                return state
            await self._transact(partial(budgets.open_counters, workspace_id, missing, state.now))

    async def warn_budget(self, workspace_id: str, period: str, measure: Measure) -> bool:
        """Note that a soft limit was told of; False where somebody else has done so."""
        return await self._transact(lambda: budgets.warn(workspace_id, period, measure))

    async def renew(self, run: NewRun) -> bool:
        """Move the end of a lease."""
        return await self._transact(lambda: ledger.renew(run.run_id, self.rules.owner, run.lease_s))

    async def abandon(self, run: NewRun) -> None:
        """Let a lease be over."""
        try:
            await self._transact(lambda: ledger.renew(run.run_id, self.rules.owner, 0.0))
        except LLMLedgerError as fault:
            self._telemetry.event(
                events.EVENT_LEASE_NOT_RENEWED,
                level="warning",
                llm_run_id=run.run_id,
                error_message=str(fault),
            )

    async def asked(self, workspace_id: str, run_id: str) -> LLMRequest | Effect | None:
        """Return what a run was about, where that is stored."""
        row = (await self._read(ledger.request_of(workspace_id, run_id))).first
        return None if row is None else decode_request(opened(row, self.rules.codec, run_id=run_id))

    async def mark_succeeded(self, run: NewRun, success: Success) -> Finished:
        """Settle a run that has its answer."""
        settled = settlement.of_success(
            run,
            success,
            owner=self.rules.owner,
            key_ttl_s=self.rules.key_ttl_s,
            keep=self.keep_payloads,
            codec=self.rules.codec,
        )
        return await self._traced(FINISH_SPAN, run, self._settle(settled))

    async def mark_done(self, run: NewRun, done: Done) -> Finished:
        """Settle an effect whose work is done."""
        settled = settlement.of_effect(
            run,
            done,
            owner=self.rules.owner,
            key_ttl_s=self.rules.key_ttl_s,
            keep=self.keep_payloads,
            codec=self.rules.codec,
        )
        return await self._traced(FINISH_SPAN, run, self._settle(settled))

    async def mark_failed(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run that has none."""
        return await self._traced(FINISH_SPAN, run, self._settle(self._unanswered(run, failure, "FAILED")))

    async def mark_cancelled(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run whose caller is gone."""
        return await self._traced(FINISH_SPAN, run, self._settle(self._unanswered(run, failure, "CANCELLED")))

    async def wait_finished(self, run_id: str, timeout_s: float) -> str | None:  # noqa: ARG002  # never waits inside a caller's transaction
        """Return the run's status; None while STARTED or unknown."""
        row = (await self._read(ledger.run_state(run_id))).first
        return None if row is None or row["status"] == STARTED else str(row["status"])

    def count_replay(self, run_id: str) -> None:
        """A caller's transaction is no place for counters."""

    async def release(self, run_id: str, workspace_id: str) -> bool:
        """Declare the owner of a workspace's STARTED run dead."""
        return await self._transact(lambda: ledger.release(run_id, workspace_id))

    async def drain(self) -> None:
        """Nothing runs in the background."""

    async def close(self) -> None:
        """Leave the executor as it is."""

    def _unanswered(
        self, run: NewRun, failure: Failure, status: Literal["FAILED", "CANCELLED"]
    ) -> Settlement:
        return settlement.of_failure(
            run,
            failure,
            status=status,
            owner=self.rules.owner,
            keep=self.keep_payloads,
            redact=self._telemetry.redact,
            codec=self.rules.codec,
        )

    async def _claim(self, run: NewRun, answer: StoredAnswer | None) -> ClaimOutcome:
        return await self._transact(lambda: ledger.claim(run, self.rules, answer))

    def _traced(self, name: str, run: NewRun, transaction: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return it within its span, which begins now: in the background its call may be over by then."""
        span = self._telemetry.ledger(name, run.run_id)
        return transaction if span is None else _spanned(span, transaction)

    async def _transact(self, steps: Callable[[], Steps[T]]) -> T:
        return await self._executor.transaction(steps)

    async def _read(self, step: Step) -> Result:
        return await self._executor.read(step)

    async def _settle(self, settled: Settlement) -> Finished:
        try:
            finished = await self._transact(lambda: ledger.finish(settled, self.rules.codec))
            reason = ledger.UNPLACED
        except LLMLedgerError as fault:
            finished, reason = Finished(persisted=False), fault.message
        if not finished.persisted:
            self._telemetry.event(
                events.EVENT_ANSWER_LOST, level="error", llm_run_id=settled.run_id, error_message=reason
            )
        return finished


async def _spanned(span: LedgerSpan, transaction: Awaitable[T]) -> T:
    with span:
        return span.told(await transaction)


class SqlAlchemyLLMRunRepo(LedgerRunRepo):
    """The joined binding: transitions are savepoints of `session`, which only its owner commits."""

    def __init__(
        self,
        session: AsyncSession,
        rules: ClaimRules,
        *,
        keep_payloads: bool,
        telemetry: Telemetry,
        timeout_s: float,
    ) -> None:
        super().__init__(
            SessionExecutor(session, timeout_s=timeout_s),
            rules,
            keep_payloads=keep_payloads,
            telemetry=telemetry,
        )

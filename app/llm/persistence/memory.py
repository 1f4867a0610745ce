"""The port without a database: nothing is recorded, and the content cache lives in this process only.

It serves `LLM_PERSIST_RUNS=false`. Keys never get here: the service refuses them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from app.llm.budgets import BudgetState, Measure, Reservation
from app.llm.cache import may_be_hit
from app.llm.errors import LLMError, LLMLedgerUnavailable
from app.llm.fields.budgets import Per
from app.llm.ports import (
    ClaimOutcome,
    Clock,
    Done,
    Failure,
    Finished,
    FlightHeld,
    Hit,
    KeyState,
    NewRun,
    StoredAnswer,
    Success,
    Won,
)
from app.llm.pricing import FREE
from app.llm.types import NO_USAGE, CacheMode, LLMResponse

MAX_ANSWERS = 4096
MAX_ENDED = 4096
"""Flights whose end is remembered for followers that look late."""
NOTHING_WRITTEN = Finished(persisted=False)

_Address = tuple[str, str, str]


class MemoryRunRepo:
    """Flights and a bounded, least-recently-used cache in memory. Only runs with a flight slot can be waited for."""

    inline = False

    def __init__(self, *, clock: Clock, cache_ttl_s: float, max_answers: int = MAX_ANSWERS) -> None:
        """Make it; `max_answers` is 0 where nothing is to be cached."""
        self._clock = clock
        self._cache_ttl_s = cache_ttl_s
        self._max_answers = max_answers
        self._answers: OrderedDict[_Address, tuple[float, StoredAnswer]] = OrderedDict()
        self._flights: dict[str, str] = {}
        self._live: dict[str, asyncio.Event] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()

    async def get_by_idempotency_key(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:  # noqa: ARG002  # the port's signature
        """Return None: there are no keys."""
        return None

    async def get_cached(
        self, workspace_id: str, prompt_sha256: str, candidates: Sequence[str]
    ) -> Mapping[str, StoredAnswer]:
        """Return what is fresh in memory."""
        found = {name: self._look_up((workspace_id, prompt_sha256, name)) for name in candidates}
        return {name: answer for name, answer in found.items() if answer is not None}

    async def create_started(self, run: NewRun) -> ClaimOutcome:
        """Win, unless another call of this process works on the same fingerprint, or has just answered it."""
        if run.flight_slot is not None and (leader := self._flights.get(run.flight_slot)) is not None:
            return FlightHeld(run_id=leader, lease_left_s=run.lease_s)
        for name in run.cache_candidates:
            if (answer := self._look_up((run.workspace_id, run.prompt_sha256, name))) is not None:
                return Hit(run_id=run.run_id, answer=answer)
        if run.flight_slot is not None:
            self._flights[run.flight_slot] = run.run_id
            self._live[run.run_id] = asyncio.Event()
        return Won(run_id=run.run_id)

    async def save_result_for_idempotency_key(self, run: NewRun, answer: StoredAnswer) -> ClaimOutcome:
        """Return the hit; nothing is written."""
        return Hit(run_id=run.run_id, answer=answer)

    async def record_hit(self, run: NewRun, answer: StoredAnswer) -> None:
        """Write nothing."""

    async def record_failed(self, run: NewRun, error: LLMError) -> None:
        """Write nothing."""

    async def note_send(self, run_id: str, sends: int, more: Reservation | None = None) -> None:
        """Write nothing."""

    async def budget_state(self, workspace_id: str, pers: Sequence[Per]) -> BudgetState:  # noqa: ARG002  # the port's signature
        """Refuse: settings without a ledger have no budgets."""
        raise LLMLedgerUnavailable("budgets are counted in a ledger, and runs are not recorded")

    async def warn_budget(self, workspace_id: str, period: str, measure: Measure) -> bool:  # noqa: ARG002  # the port's signature
        """Return False, likewise."""
        return False

    async def renew(self, run: NewRun) -> bool:  # noqa: ARG002  # the port's signature
        """Return True: nobody can take a run over."""
        return True

    async def abandon(self, run: NewRun) -> None:
        """Write nothing; effects have keys, and those never get here."""

    async def asked(self, workspace_id: str, run_id: str) -> None:
        """Return None: there are no texts."""

    async def mark_done(self, run: NewRun, done: Done) -> Finished:  # noqa: ARG002  # the port's signature
        """Write nothing; effects have keys, and those never get here."""
        return NOTHING_WRITTEN

    async def mark_succeeded(self, run: NewRun, success: Success) -> Finished:
        """Keep the answer for the cache, and wake the followers."""
        if self._max_answers and run.cache_mode is not CacheMode.BYPASS and success.source_run_id is None:
            self._keep(run, success)
        return self._end(run, "SUCCEEDED")

    async def mark_failed(self, run: NewRun, failure: Failure) -> Finished:  # noqa: ARG002  # the port's signature
        """Wake the followers."""
        return self._end(run, "FAILED")

    async def mark_cancelled(self, run: NewRun, failure: Failure) -> Finished:  # noqa: ARG002  # the port's signature
        """Wake the followers."""
        return self._end(run, "CANCELLED")

    async def wait_finished(self, run_id: str, timeout_s: float) -> str | None:
        """Wait for a run of this process."""
        if (live := self._live.get(run_id)) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await live.wait()
        return self._ended.get(run_id)

    def count_replay(self, run_id: str) -> None:
        """Count nothing."""

    async def release(self, run_id: str, workspace_id: str) -> bool:  # noqa: ARG002  # the port's signature
        """Return False: there are no rows."""
        return False

    async def drain(self) -> None:
        """Nothing runs in the background."""

    async def close(self) -> None:
        """Forget the answers."""
        self._answers.clear()

    def _look_up(self, address: _Address) -> StoredAnswer | None:
        kept_at_s, answer = self._answers.get(address, (0.0, None))
        if answer is None or self._clock.monotonic_s() - kept_at_s >= self._cache_ttl_s:
            return None
        self._answers.move_to_end(address)
        return answer

    def _keep(self, run: NewRun, success: Success) -> None:
        if not may_be_hit(success.response):
            return
        address = (run.workspace_id, run.prompt_sha256, success.candidate_sha256)
        stored = _stored(run, success.candidate_sha256, success.response)
        self._answers[address] = (self._clock.monotonic_s(), stored)
        self._answers.move_to_end(address)
        while len(self._answers) > self._max_answers:
            self._answers.popitem(last=False)

    def _end(self, run: NewRun, status: str) -> Finished:
        if run.flight_slot is not None:
            self._land(run.flight_slot, run.run_id, status)
        return NOTHING_WRITTEN

    def _land(self, slot: str, run_id: str, status: str) -> None:
        if self._flights.get(slot) == run_id:
            del self._flights[slot]
        self._ended[run_id] = status
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        if (live := self._live.pop(run_id, None)) is not None:
            live.set()


def _stored(run: NewRun, candidate_sha256: str, response: LLMResponse) -> StoredAnswer:
    served_again = response.model_copy(
        update={"usage": NO_USAGE, "cost_usd": FREE, "persisted": False, "attempts": ()}
    )
    return StoredAnswer(
        run_id=run.run_id,
        candidate_sha256=candidate_sha256,
        request_sha256=run.request_sha256,
        response=served_again,
    )

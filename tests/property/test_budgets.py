"""Random walks of runs under a budget, beside a model: the counters are its sums after every step.

Driven as the walks of `test_state_machine.py` are: the protocol's generators one after another on a real database.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.bootstrap import connect
from app.db.base import db_now
from app.llm.budgets import Charge, charge_of
from app.llm.errors import LLMBudgetExceeded
from app.llm.persistence import budgets, ledger, retention, settlement
from app.llm.persistence.executor import Executor, Step, Steps
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.statements import attempts, payloads, runs
from app.llm.persistence.statements_budgets import counters, pruned
from app.llm.ports import NewRun, Won
from tests.property.test_state_machine import Inline
from tests.support.budgets import DAY, MONTH, cost, failed, held_run, reservation
from tests.support.ledger import again, cancellation
from tests.support.rounds import ROUNDS, times

T = TypeVar("T")
DAY_S = 86_400.0
WALKS, WALKS_ON_POSTGRES = times(200, in_short=25), times(10, in_short=5)
LIMITS = (DAY.model_copy(update={"tokens": 2500}), MONTH.model_copy(update={"tokens": 4000}))
TOKENS, DOLLARS = st.sampled_from((10, 300, 900)), st.sampled_from(("0", "0.25", "0.6"))
CALLS = {key: held_run(key) for key in (None, "k1", "k2")}
RULES = ClaimRules(owner="one", cache_ttl_s=DAY_S, key_ttl_s=DAY_S, refuse_abandoned=False)
OF_A_COUNTER = ("spent_tokens", "spent_usd", "reserved_tokens", "reserved_usd", "unknown_costs")


@dataclass
class Held:
    """One row, as far as a budget is concerned."""

    call: NewRun
    tokens: int
    usd: Decimal
    status: str = "STARTED"
    late: bool = False
    unknown: int = 0
    pruned: bool = False

    @property
    def live(self) -> bool:
        return self.status == "STARTED"

    def end(self, status: str, charge: Charge) -> None:
        self.status, self.tokens, self.usd, self.unknown = status, charge.tokens, charge.usd, charge.unknown

    def die(self) -> None:
        """What it held counts."""
        self.status, self.unknown = "ABANDONED", 1


class Walk(RuleBasedStateMachine):
    """One walk."""

    executor: Executor
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        for table in (attempts, payloads, runs, counters, pruned):
            self._write(Step(sa.delete(table), {}))
        self.rows: list[Held] = []
        now = self._run(_now)
        self._run(lambda: budgets.open_counters("w1", ["day", "month"], now))

    @rule(key=st.sampled_from((None, "k1", "k2")), tokens=TOKENS, usd=DOLLARS)
    def claim(self, key: str | None, tokens: int, usd: str) -> None:
        call = again(CALLS[key], reservation=reservation(tokens, usd, LIMITS))
        holder = next(
            (row for row in self.rows if key and row.call.idempotency_key == key and row.live), None
        )
        dies = holder is not None and holder in self.dead
        try:
            outcome = self._run(lambda: ledger.claim(call, RULES))
        except LLMBudgetExceeded:
            assert not self._fits(tokens, Decimal(usd))
            return
        if not isinstance(outcome, Won):
            return
        assert self._fits(tokens, Decimal(usd))
        if dies and holder is not None:
            holder.die()
        self.rows.append(Held(call, tokens, Decimal(usd)))

    @precondition(lambda self: any(row.live for row in self.rows))
    @rule(nth=st.integers(0, 5), tokens=TOKENS, usd=DOLLARS)
    def note_a_dearer_send(self, nth: int, tokens: int, usd: str) -> None:
        row, more = self._nth(nth, live=True), reservation(tokens, usd, LIMITS)
        try:
            self._run(lambda: ledger.note_send(row.call.run_id, "one", 2, more))
        except LLMBudgetExceeded:
            assert not self._fits(tokens, Decimal(usd))
            return
        assert self._fits(tokens, Decimal(usd))
        row.tokens, row.usd = row.tokens + tokens, row.usd + Decimal(usd)

    @precondition(lambda self: self.rows)
    @rule(nth=st.integers(0, 9), how=st.sampled_from(("answered", "unknown", "refused", "late", "cancelled")))
    def finish(self, nth: int, how: str) -> None:
        """In time, late, twice."""
        row = self.rows[nth % len(self.rows)]
        settled = _settled(row.call, how)
        assert settled.charge is not None
        self._run(lambda: ledger.finish(settled))
        if row.live:
            row.end(settled.run["status"], settled.charge)
        elif row.status == "ABANDONED" and not row.late and not row.pruned:
            row.end("ABANDONED", settled.charge)
            row.late = True

    @precondition(lambda self: any(row.live for row in self.rows))
    @rule(nth=st.integers(0, 5))
    def crash(self, nth: int) -> None:
        """The next claim of its key, if it has one, takes it over."""
        row = self._nth(nth, live=True)
        past = db_now(sa.literal(-60.0, sa.Float))
        self._write(Step(sa.update(runs).where(runs.c.id == row.call.run_id).values(lease_until=past), {}))

    @precondition(lambda self: self.rows)
    @rule(nth=st.integers(0, 9))
    def release(self, nth: int) -> None:
        row = self.rows[nth % len(self.rows)]
        assert self._run(lambda: ledger.release(row.call.run_id)) == row.live
        if row.live:
            row.die()

    @precondition(lambda self: sum(not row.live and not row.pruned for row in self.rows) > 1)
    @rule()
    def prune(self) -> None:
        past = db_now(sa.literal(-2 * DAY_S, sa.Float))
        self._write(Step(sa.update(runs).where(runs.c.finished_at.is_not(None)).values(finished_at=past), {}))
        self.loop.run_until_complete(retention.prune(self.executor, older_than_s=DAY_S, keys=True))
        for row in self.rows:
            row.pruned = row.pruned or not row.live

    @precondition(lambda self: self.rows and not any(row.pruned for row in self.rows))
    @rule()
    def recount(self) -> None:
        now = self._run(_now)
        for per in ("day", "month"):
            self._run(lambda per=per: budgets.recount("w1", per, now))  # type: ignore[misc]

    @invariant()
    def the_counters_are_the_sums_of_what_runs_hold_and_count(self) -> None:
        found = self._read(Step(sa.select(*(counters.c[name] for name in OF_A_COUNTER)), {}))
        assert [tuple(row[name] for name in OF_A_COUNTER) for row in found] == [self._sums()] * 2

    # -- pieces

    @property
    def dead(self) -> list[Held]:
        over = self._read(Step(sa.select(runs.c.id).where(runs.c.lease_until < db_now()), {}))
        gone = {row["id"] for row in over}
        return [row for row in self.rows if row.call.run_id in gone]

    def _sums(self) -> tuple[Any, ...]:
        live, ended = ([row for row in self.rows if row.live is is_live] for is_live in (True, False))
        return (
            *(sum(row.tokens for row in ended), sum((row.usd for row in ended), Decimal(0))),
            *(sum(row.tokens for row in live), sum((row.usd for row in live), Decimal(0))),
            sum(row.unknown for row in ended),
        )

    def _fits(self, tokens: int, usd: Decimal) -> bool:
        spent = self._sums()
        return all(
            spent[0] + spent[2] + tokens <= (limit.tokens or 0)
            and (not usd or spent[1] + spent[3] + usd <= (limit.usd or 0))
            for limit in LIMITS
        )

    def _nth(self, nth: int, *, live: bool) -> Held:
        found = [row for row in self.rows if row.live is live]
        return found[nth % len(found)]

    def _run(self, make: Callable[[], Steps[T]]) -> T:
        async def run() -> T:
            return await self.executor.transaction(make)

        return self.loop.run_until_complete(run())

    def _read(self, step: Step) -> Any:
        async def read() -> Any:
            return (await self.executor.read(step)).rows

        return self.loop.run_until_complete(read())

    def _write(self, step: Step) -> None:
        def steps() -> Steps[None]:
            yield step

        self._run(steps)


def _now() -> Steps[Any]:
    return (yield Step(sa.select(db_now().label("now")), {})).rows[0]["now"]


def _settled(call: NewRun, how: str) -> settlement.Settlement:
    if how in {"answered", "unknown"}:
        done = cost(call, usd="0.1" if how == "answered" else None)
        return settlement.of_success(call, done, owner="one", key_ttl_s=DAY_S, keep=True)
    if how == "cancelled":
        return settlement.of_failure(call, cancellation(), status="CANCELLED", owner="one", keep=True)
    end = failed(call, paid=how == "late")
    assert charge_of(call.route, end.attempts).tokens == (0 if how == "refused" else _guess(call))
    return settlement.of_failure(call, end, status="FAILED", owner="one", keep=True)


def _guess(call: NewRun) -> int:
    return call.route.needs_of[call.route.kept[0].provider].tokens


def walk(make: Callable[[], Executor], *, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SHORTEST_PAUSE_S", 0.0)  # nobody else is here to be let in
    with asyncio.Runner() as runner:
        executor = make()

        class Here(Walk):
            pass

        Here.executor, Here.loop = executor, runner.get_loop()
        try:
            run_state_machine_as_test(
                Here,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=25,
                    deadline=None,
                    database=None,
                    derandomize=ROUNDS == 1,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(executor.close())


@pytest.mark.timeout(300)
def test_walks_on_sqlite_count_as_the_model_does(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    walk(lambda: Inline(sqlite_url), examples=WALKS, monkeypatch=monkeypatch)


@pytest.mark.pg
def test_walks_on_postgres_count_as_the_model_does(pg_url: str, monkeypatch: pytest.MonkeyPatch):
    walk(lambda: connect(pg_url, timeout_s=5), examples=WALKS_ON_POSTGRES, monkeypatch=monkeypatch)

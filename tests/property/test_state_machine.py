"""Random walks through the protocol on a real database, beside a model: every step says what the model says.

The protocol is generators of statements, so a walk can drive them one after another. SQLite gets a synchronous
connection on a file that is not synced: thread hops and fsync are most of what a step costs otherwise, and neither
has a say in what a statement means. PostgreSQL is driven through the executor that the package uses.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.bootstrap import connect
from app.db.base import db_now
from app.llm.errors import LLMFenced
from app.llm.persistence import ledger, retention, settlement
from app.llm.persistence.executor import Executor, Result, Step, Steps, prefixed, unrolled
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.statements import attempts, payloads, runs
from app.llm.ports import Finished, NewRun, Replay, StoredAnswer, Won
from app.llm.types import ServedFrom
from tests.property.model import Ending, Model, Run, Told
from tests.support.ledger import again, cancellation, changed, failure, new_run, request, success
from tests.support.rounds import ROUNDS, times

T = TypeVar("T")
DAY_S = 86_400.0
WALKS, WALKS_ON_POSTGRES = times(300, in_short=60), times(15, in_short=8)
WORKSPACES, KEYS, OWNERS = ("w1", "w1", "w1", "w2"), ("k1", "k2"), ("one", "two")
QUESTIONS = ("Which box?", "Which lamp?")
CALLS = {
    (key, asked): new_run(request(asked, idempotency_key=key)) for key in (*KEYS, None) for asked in QUESTIONS
}
MAY_CHANGE_LATER = {"idem_slot", "request_payload", "response_payload", "replayed_count"}
"""Columns of a finished row that expiry, retention and counting may change (I16); late accounting is told apart."""
SHOWN = (
    "workspace_id",
    "status",
    "owner",
    "idem_slot",
    "flight_slot",
    "execution",
    "supersedes",
    "sends_noted",
)


class Inline:
    """The executor's seam on one synchronous connection: nothing is ever awaited."""

    def __init__(self, url: str) -> None:
        engine = sa.create_engine(url.replace("+aiosqlite", ""), isolation_level="AUTOCOMMIT")
        self._engine, self._connection = engine, engine.connect()
        self._connection.exec_driver_sql("PRAGMA synchronous=OFF")

    async def transaction(self, steps: Callable[[], Steps[T]]) -> T:
        self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            outcome = self._drive(steps())
        except BaseException:
            self._connection.exec_driver_sql("ROLLBACK")
            raise
        self._connection.exec_driver_sql("COMMIT")
        return outcome

    def _drive(self, steps: Steps[T]) -> T:
        steps = unrolled(steps)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._execute(step))
        except StopIteration as end:
            outcome: T = end.value
            return outcome

    def _execute(self, step: Step) -> Result:
        result = self._connection.execute(step.statement, prefixed(step, "sqlite"))
        rows = [dict(row) for row in result.mappings()] if result.returns_rows else []
        return Result(rows, result.rowcount)

    async def read(self, step: Step) -> Result:
        return self._execute(step)

    async def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


class Walk(RuleBasedStateMachine):
    """One walk: what owners remember, what the model says, and what the rows say."""

    executor: Executor
    loop: asyncio.AbstractEventLoop
    won = Bundle("won")
    """Runs that were won, whatever has become of their rows. Its owner crashed: no rule touches it again."""

    def __init__(self) -> None:
        super().__init__()
        for table in (attempts, payloads, runs):
            self._write(Step(sa.delete(table), {}))
        self.model = Model()
        self.rows: dict[str, dict[str, Any]] = {}
        self.touched: set[str] = set()
        self.calls: dict[str, NewRun] = {}
        self.answers = 0

    # -- rules

    @rule(
        target=won,
        workspace=st.sampled_from(WORKSPACES),
        key=st.sampled_from(KEYS),
        asked=st.sampled_from(3 * QUESTIONS[:1] + QUESTIONS[1:]),
        owner=st.sampled_from(OWNERS),
        force=st.sampled_from((False, False, True)),
        refuse=st.booleans(),
        flies=st.booleans(),
    )
    def claim(
        self,
        workspace: str,
        key: str | None,
        asked: str,
        owner: str,
        *,
        force: bool = False,
        refuse: bool = False,
        flies: bool = False,
    ) -> Any:
        flight = f"{workspace} {asked}" if flies and not force else None
        call = again(CALLS[key, asked], workspace_id=workspace, flight_slot=flight, force=force)
        outcome = self._run(lambda: ledger.claim(call, self._rules(owner, refuse=refuse)))
        mine = Run(call.run_id, workspace, key, asked, owner, flight=flight)
        assert told(outcome) == self.model.claim(mine, force=force, refuse=refuse)
        if not isinstance(outcome, Won):
            return multiple()
        self.touched |= {
            name for name, run in self.model.runs.items() if self._shown(run) != self._seen(name)
        }
        self.calls[call.run_id] = call
        return (call, mine)

    @rule(target=won, owner=st.sampled_from(OWNERS), refuse=st.booleans(), flies=st.booleans())
    def claim_the_usual_key(self, owner: str, *, refuse: bool, flies: bool) -> Any:
        """Walks that meet are the ones that matter."""
        return self.claim("w1", KEYS[0], QUESTIONS[0], owner, refuse=refuse, flies=flies)

    @rule(target=won, asked=st.sampled_from(QUESTIONS), owner=st.sampled_from(OWNERS))
    def fly_without_a_key(self, asked: str, owner: str) -> Any:
        return self.claim("w1", None, asked, owner, flies=True)

    @rule(held=won, by=st.sampled_from((None, None, None, *OWNERS)))
    def note_send(self, held: tuple[NewRun, Run], by: str | None) -> None:
        run, owner, sends = held[1], by or held[1].owner, held[1].noted + 1
        expected = self.model.note(run.id, owner, sends)
        try:
            outcome = told(self._run(lambda: ledger.note_send(run.id, owner, sends)))
        except LLMFenced:
            outcome = ("LLMFenced",)
        else:
            self.touched.add(run.id)
        assert outcome == expected

    @rule(
        held=won,
        ending=st.sampled_from(("SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELLED")),
        by=st.sampled_from((None, None, None, *OWNERS)),
    )
    def finish(self, held: tuple[NewRun, Run], ending: Ending, by: str | None) -> None:
        """In time, late, twice, in another way than before, or by somebody else."""
        (call, run), owner = held, by or held[1].owner
        self.answers += 1
        answer = f"answer {self.answers}" if ending == "SUCCEEDED" else None
        settled = _settled(call, ending, answer, owner, self._rules(owner))
        row = self.model.runs.get(run.id)
        if row is not None and row.owner == owner and (row.status == "STARTED" or _is_owed(row)):
            self.touched.add(run.id)
        outcome = self._run(lambda: ledger.finish(settled))
        assert told(outcome) == self.model.finish(run, owner, ending, answer, len(settled.attempts))

    @rule(held=won)
    def answer(self, held: tuple[NewRun, Run]) -> None:
        """What most owners do."""
        self.finish(held, "SUCCEEDED", None)

    @precondition(lambda self: self._those("ABANDONED"))
    @rule(nth=st.integers(0, 3))
    def answer_late(self, nth: int) -> None:
        dead = self._those("ABANDONED")
        run = dead[nth % len(dead)]
        self.finish((self.calls[run.id], run), "SUCCEEDED", None)

    @precondition(lambda self: self._those("STARTED"))
    @rule(nth=st.integers(0, 3))
    def a_lease_ends(self, nth: int) -> None:
        """Its owner crashed, or is only late."""
        live = self._those("STARTED")
        run = live[nth % len(live)]
        self._move(run, lease_until=_past(60.0))
        run.lease_over = True

    @precondition(lambda self: self._those("SUCCEEDED"))
    @rule(nth=st.integers(0, 3))
    def a_key_expires(self, nth: int) -> None:
        answered = self._those("SUCCEEDED")
        run = answered[nth % len(answered)]
        self._move(run, expires_at=_past(60.0))
        run.expired = True

    @rule(held=won)
    def release(self, held: tuple[NewRun, Run]) -> None:
        released = self._run(lambda: ledger.release(held[1].id))
        assert released == self.model.release(held[1].id)
        if released:
            self.touched.add(held[1].id)

    @precondition(lambda self: any(run.status != "STARTED" for run in self.model.runs.values()))
    @rule(days_pass=st.booleans(), keys=st.booleans(), payloads_only=st.booleans())
    def prune(self, *, days_pass: bool, keys: bool, payloads_only: bool) -> None:
        """I18; days pass for all that has ended, leases and keys are moved on their own."""
        if days_pass:
            for run in self.model.runs.values():
                if run.status != "STARTED":
                    self._move(run, finished_at=_past(2 * DAY_S), created_at=_past(2 * DAY_S))
                    run.aged = True
            self._write(Step(sa.update(payloads).values(last_ref_at=_past(2 * DAY_S)), {}))
        self.loop.run_until_complete(
            retention.prune(self.executor, older_than_s=DAY_S, keys=keys, payloads_only=payloads_only)
        )
        self.touched |= self.model.prune(keys=keys, payloads_only=payloads_only)

    # -- what holds after every step

    @invariant()
    def every_row_is_as_the_model_says_and_no_other_one_has_changed(self) -> None:
        """I1, I5, I8, I10, I15, I16, I18."""
        before, self.rows = self.rows, self._read_rows()
        touched, self.touched = self.touched, set()
        assert {name: self._seen(name) for name in self.rows} == {
            name: self._shown(run) for name, run in self.model.runs.items()
        }
        for name, row in self.rows.items():
            if name in before and name not in touched:
                assert changed(before[name], row) == set(), f"run {name} is nobody's business here"
            if name in before and before[name]["finished_at"] is not None:
                _check_finished(before[name], row)
        _check_slots(self.rows)

    def teardown(self) -> None:
        """I20, and attempt rows of just those runs whose owner has settled them."""
        stored = {
            (row["workspace_id"], row["sha256"])
            for row in self._select(payloads.c.workspace_id, payloads.c.sha256)
        }
        for row in self._read_rows().values():
            for name in ("request_payload", "response_payload"):
                assert row[name] is None or (row["workspace_id"], row[name]) in stored
        sends: dict[str, int] = {}
        for row in self._select(attempts.c.run_id):
            sends[row["run_id"]] = sends.get(row["run_id"], 0) + 1
        assert sends == {name: run.sends for name, run in self.model.runs.items() if run.sends}

    # -- pieces

    def _run(self, steps: Callable[[], Steps[T]]) -> T:
        async def run() -> T:
            return await self.executor.transaction(steps)

        return self.loop.run_until_complete(run())

    def _read(self, step: Step) -> Result:
        async def read() -> Result:
            return await self.executor.read(step)

        return self.loop.run_until_complete(read())

    def _write(self, step: Step) -> None:
        def steps() -> Steps[None]:
            yield step

        self._run(steps)

    def _move(self, run: Run, **values: Any) -> None:
        self._write(Step(sa.update(runs).where(runs.c.id == run.id).values(**values), {}))
        self.rows = self._read_rows()  # by hand, so no change of the protocol's

    def _those(self, status: str) -> list[Run]:
        return [run for run in self.model.runs.values() if run.status == status]

    def _select(self, *columns: Any) -> Any:
        return self._read(Step(sa.select(*columns), {})).rows

    def _read_rows(self) -> dict[str, dict[str, Any]]:
        found = self._read(ALL_RUNS).rows
        return {row["id"]: dict(row) for row in found}

    def _seen(self, name: str) -> tuple[Any, ...]:
        row = self.rows.get(name)
        return () if row is None else (*(row[column] for column in SHOWN), bool(row["late"]))

    @staticmethod
    def _shown(run: Run) -> tuple[Any, ...]:
        """As SHOWN."""
        return (
            *(run.workspace, run.status, run.owner, run.slot, run.flight, run.execution, run.supersedes),
            *(run.noted, run.late),
        )

    @staticmethod
    def _rules(owner: str, *, refuse: bool = False) -> ClaimRules:
        return ClaimRules(owner=owner, cache_ttl_s=DAY_S, key_ttl_s=DAY_S, refuse_abandoned=refuse)


ALL_RUNS = Step(sa.text("SELECT * FROM llm_runs"), {})


def told(outcome: Any) -> Told:
    """Return an outcome as the model writes it."""
    name = type(outcome).__name__
    if isinstance(outcome, Won):
        return (name, outcome.run_id, outcome.execution, outcome.supersedes)
    if isinstance(outcome, Replay):
        return (name, *_answer(outcome.answer))
    if isinstance(outcome, Finished):
        winner = _answer(outcome.winner) if outcome.winner else None
        return (name, outcome.persisted, outcome.fenced, winner, outcome.successor_run_id)
    return ("None",) if outcome is None else (name, outcome.run_id)


def _answer(stored: StoredAnswer) -> tuple[str, str | None]:
    if stored.response is not None:
        assert stored.response.served_from is ServedFrom.REPLAY
    return stored.run_id, stored.response.text if stored.response else None


def _settled(
    call: NewRun, ending: Ending, answer: str | None, owner: str, rules: ClaimRules
) -> settlement.Settlement:
    if answer is not None:
        return settlement.of_success(
            call, success(call, answer), owner=owner, key_ttl_s=rules.key_ttl_s, keep=True
        )
    how = failure() if ending == "FAILED" else cancellation()
    return settlement.of_failure(call, how, status=ending, owner=owner, keep=True)  # type: ignore[arg-type]


def _is_owed(row: Run) -> bool:
    return row.status == "ABANDONED" and not row.late


def _past(seconds: float) -> db_now:
    return db_now(sa.literal(-seconds, sa.Float))


def _check_finished(before: dict[str, Any], row: dict[str, Any]) -> None:
    """I16."""
    late = not before["late"] and row["late"]
    if not late:
        assert changed(before, row) <= MAY_CHANGE_LATER
    assert {"status", "owner", "idempotency_key", "request_sha256", "execution"} & changed(
        before, row
    ) == set()
    if before["idem_slot"] is None:
        assert row["idem_slot"] is None


def _check_slots(rows: dict[str, dict[str, Any]]) -> None:
    """I1, I10: who holds a key is STARTED or SUCCEEDED, and alone."""
    holders = [row for row in rows.values() if row["idem_slot"] is not None]
    assert {row["status"] for row in holders} <= {"STARTED", "SUCCEEDED"}
    assert all(row["idem_slot"] == row["idempotency_key"] for row in holders)
    slots = [(row["workspace_id"], row["idem_slot"]) for row in holders]
    assert len(slots) == len(set(slots))
    flights = [row["flight_slot"] for row in rows.values() if row["flight_slot"] is not None]
    assert len(flights) == len(set(flights))


def walk(make: Callable[[], Executor], *, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walk; one round walks the same ways every time, more rounds take new ones."""
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
                    stateful_step_count=30,
                    deadline=None,
                    database=None,
                    derandomize=ROUNDS == 1,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(executor.close())


@pytest.mark.timeout(300)
@pytest.mark.tried(WALKS)
def test_walks_on_sqlite_go_as_the_model_says(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    """I1, I5, I8, I10, I12, I13, I15, I16, I18, I20: after every step of each walk."""
    walk(lambda: Inline(sqlite_url), examples=WALKS, monkeypatch=monkeypatch)


@pytest.mark.pg
@pytest.mark.tried(WALKS_ON_POSTGRES)
def test_walks_on_postgres_go_as_the_model_says(pg_url: str, monkeypatch: pytest.MonkeyPatch):
    """I1, I5, I8, I10, I12, I13, I15, I16, I18, I20: after every step of each walk."""
    walk(lambda: connect(pg_url, timeout_s=5), examples=WALKS_ON_POSTGRES, monkeypatch=monkeypatch)

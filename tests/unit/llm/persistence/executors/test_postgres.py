"""The PostgreSQL executor: what travels together is told apart, and a fault belongs to the one that has it."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from app.db.engine import build_engine
from app.llm.errors import LLMFenced, LLMLedgerError, LLMLedgerUnavailable
from app.llm.persistence import budgets, ledger
from app.llm.persistence import statements as sql
from app.llm.persistence.executor import Result, Step, Steps, prefixed
from app.llm.persistence.executors import postgres, postgres_wire
from app.llm.persistence.executors.postgres import PostgresExecutor
from app.llm.persistence.executors.postgres_wire import Wire, connect_options
from app.llm.persistence.models import LLMBudget
from app.llm.persistence.settlement import of_success
from app.llm.ports import Hit, Won
from tests.support.budgets import cost, held_run, reservation
from tests.support.ledger import Outside, again, new_run, request, settings_for, success
from tests.support.service import rules_of

pytestmark = pytest.mark.pg
PUT = sql.PUT_PAYLOAD
SET = (
    sa.update(sql.payloads)
    .values(codec=sa.bindparam("p_codec"))
    .where(sql.payloads.c.sha256 == sa.bindparam("p_sha256"))
)
GET = sa.select(sql.payloads.c.sha256, sql.payloads.c.codec).where(
    sql.payloads.c.sha256.like(sa.bindparam("p_sha256", type_=sa.String))
)
CUT = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'signalbox' AND wait_event_type = 'Lock'"
)

WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'signalbox' AND wait_event_type = 'Lock'"
)


def put(name: str, codec: int = 0) -> Step:
    return Step(PUT, {"workspace_id": "w", "sha256": name, "codec": codec, "bytes": b""})


def change(name: str, codec: int) -> Step:
    return Step(SET, {"sha256": name, "codec": codec})


def get(name: str) -> Step:
    return Step(GET, {"sha256": name})


def names(result: Result) -> list[str]:
    return sorted(row["sha256"] for row in result.rows)


@pytest.fixture
async def executor(pg_url: str) -> AsyncIterator[PostgresExecutor]:
    made = PostgresExecutor(pg_url, timeout_s=3)
    await made.read(get("nothing"))  # its connections stand
    yield made
    await made.close()
    await made.close()


@pytest.fixture
async def outside(pg_url: str) -> AsyncIterator[Outside]:
    view = Outside(pg_url)
    yield view
    await view.close()


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the driver was asked for a round trip."""
    seen: Counter[str] = Counter()

    def counted(name: str) -> Any:
        original = getattr(asyncpg.Connection, name)

        def method(self: Any, text: str, *args: Any, **kw: Any) -> Any:
            seen[name] += 1
            return original(self, text, *args, **kw)

        return method

    for name in ("fetch", "fetchmany", "execute"):
        monkeypatch.setattr(asyncpg.Connection, name, counted(name))
    return seen


# -- what travels together is told apart


async def test_every_transaction_of_a_batch_is_sent_its_own_rows(executor: PostgresExecutor):
    def steps(number: int) -> Steps[tuple[int, list[str], int]]:
        made = yield Step(PUT, [put(f"{number:03}{letter}").params for letter in "ab"[: number % 3]])
        found = yield get(f"{number:03}%")
        changed = yield change(f"{number:03}a", number)
        return made.rowcount, names(found), changed.rowcount

    told = await asyncio.gather(*(executor.transaction(lambda n=n: steps(n)) for n in range(50)))
    expected = [[f"{n:03}{letter}" for letter in "ab"[: n % 3]] for n in range(50)]
    assert told == [(len(each), each, min(len(each), 1)) for each in expected]
    stored = (await executor.read(get("%"))).rows
    assert {row["sha256"]: row["codec"] for row in stored if row["sha256"].endswith("a")} == {
        f"{n:03}a": n for n in range(50) if n % 3
    }


async def test_look_ups_of_one_moment_share_a_round_trip_and_no_rows(
    executor: PostgresExecutor, trips: Counter[str]
):
    for name in ("1a", "1b", "3a"):
        await executor.transaction(lambda name=name: _one(put(name)))
    trips.clear()
    found = await asyncio.gather(*(executor.read(get(f"{n}%")) for n in range(5)))
    assert [names(each) for each in found] == [[], ["1a", "1b"], [], ["3a"], []]
    assert trips == {"fetchmany": 1}


async def test_a_claim_is_one_round_trip_and_so_is_a_finish(
    executor: PostgresExecutor, pg_url: str, outside: Outside, trips: Counter[str]
):
    rules, run = rules_of(settings_for(pg_url), "me"), new_run(request(idempotency_key="k"))
    settled = of_success(run, success(run, sends=2), owner="me", key_ttl_s=None, keep=True)
    trips.clear()
    assert isinstance(await executor.transaction(lambda: ledger.claim(run, rules)), Won)
    assert (await executor.transaction(lambda: ledger.finish(settled))).persisted
    assert trips == {"fetch": 2}
    row = await outside.run(run.run_id)
    assert (row["status"], len(await outside.attempts(run.run_id))) == ("SUCCEEDED", 2)
    assert len(await outside.payloads()) == 2


async def test_sixty_calls_share_their_round_trips(
    executor: PostgresExecutor, pg_url: str, outside: Outside, trips: Counter[str]
):
    rules, runs = rules_of(settings_for(pg_url), "me"), [new_run() for _ in range(60)]
    trips.clear()
    await asyncio.gather(*(executor.transaction(lambda run=run: ledger.claim(run, rules)) for run in runs))
    settled = [of_success(run, success(run), owner="me", key_ttl_s=None, keep=True) for run in runs]
    await asyncio.gather(*(executor.transaction(lambda each=each: ledger.finish(each)) for each in settled))
    assert trips.keys() == {"fetchmany", "execute"}
    assert trips.total() <= 12  # of 120 transactions; 6 when nothing delays a turn of the loop
    assert {row["status"] for row in await outside.runs()} == {"SUCCEEDED"}


async def test_what_many_write_is_locked_in_one_order(executor: PostgresExecutor, monkeypatch: Any):
    """Or two processes with the same texts could wait for each other."""
    sent: list[list[Any]] = []
    original = asyncpg.Connection.fetchmany

    async def noted(self: Any, text: str, rows: Any) -> Any:
        sent.append([row[1] for row in rows])
        return await original(self, text, rows)

    monkeypatch.setattr(asyncpg.Connection, "fetchmany", noted)
    order = ["m", "a", "z", "b"]
    await asyncio.gather(*(executor.transaction(lambda name=name: _one(put(name))) for name in order))
    assert sent == [sorted(order)]


async def test_two_of_one_flight_that_come_together_are_both_served_from_the_cache(
    executor: PostgresExecutor, pg_url: str
):
    """The second sees the first one's row as it is committed, not as it was before the first had its hit."""
    rules = rules_of(settings_for(pg_url, cache_enabled=True), "me")
    run = new_run(request(cache="use"), flight=True, cache=True)
    assert isinstance(await executor.transaction(lambda: ledger.claim(run, rules)), Won)
    settled = of_success(run, success(run), owner="me", key_ttl_s=None, keep=True)
    await executor.transaction(lambda: ledger.finish(settled))
    told = await asyncio.gather(
        *(executor.transaction(lambda: ledger.claim(again(run), rules)) for _ in range(3))
    )
    assert [type(each) for each in told] == [Hit] * 3


async def test_a_dead_owners_key_that_several_find_at_once_has_one_heir_who_names_it(
    executor: PostgresExecutor, pg_url: str, outside: Outside
):
    """I1, I7: whoever takes a key over does it in a transaction of its own; a claim between its two steps is none."""
    rules = rules_of(settings_for(pg_url), "me")
    for number in range(12):
        run = new_run(request(idempotency_key=f"k{number}"))
        await executor.transaction(lambda run=run: ledger.claim(run, rules))
        await outside.end_lease(run.run_id)
        told = await asyncio.gather(
            *(executor.transaction(lambda run=run: ledger.claim(again(run), rules)) for _ in range(8))
        )
        heirs = [(each.execution, each.supersedes) for each in told if isinstance(each, Won)]
        assert heirs == [(2, run.run_id)]


# -- commits


def _one(step: Step) -> Steps[int]:
    return (yield step).rowcount


async def test_nobody_is_told_before_the_commit(executor: PostgresExecutor, monkeypatch: Any):
    begun: list[asyncio.Future[int]] = []
    told: list[bool] = []
    commit = Wire.commit

    async def watched(self: Wire) -> None:
        told.extend(each.done() for each in begun)
        await commit(self)
        told.extend(each.done() for each in begun)

    monkeypatch.setattr(Wire, "commit", watched)
    begun += [executor.transaction(lambda n=n: _one(put(f"{n}"))) for n in range(3)]
    assert await asyncio.gather(*begun) == [1, 1, 1]
    assert told == [False] * 6


async def test_a_commit_whose_acknowledgement_is_lost_is_not_done_again(
    executor: PostgresExecutor, monkeypatch: Any
):
    """I12: whether it was done, nobody knows; who may repeat it, does."""
    runs: list[int] = []
    commit = Wire.commit

    async def torn(self: Wire) -> None:
        await commit(self)
        self.drop()
        raise ConnectionResetError("the acknowledgement is lost")

    def steps(number: int) -> Steps[int]:
        runs.append(number)
        return (yield put(f"{number}")).rowcount

    monkeypatch.setattr(Wire, "commit", torn)
    told = await asyncio.gather(
        *(executor.transaction(lambda n=n: steps(n)) for n in range(3)), return_exceptions=True
    )
    assert [type(each) for each in told] == [LLMLedgerUnavailable] * 3
    assert sorted(runs) == [0, 1, 2]


async def test_a_claim_that_is_cut_off_on_the_wire_is_told_as_a_fault_and_not_done_again(
    executor: PostgresExecutor, pg_url: str, outside: Outside
):
    """I6: a claim that may have failed is followed by no send."""
    rules, run = rules_of(settings_for(pg_url), "me"), new_run(request(idempotency_key="k"))
    made: list[int] = []

    def steps() -> Steps[Any]:
        made.append(1)
        return (yield from ledger.claim(run, rules))

    async with outside.engine.connect() as holder, outside.engine.connect() as admin:
        await holder.execute(
            sql.INSERT_RUN, prefixed(ledger._insert(run, rules, Won(run_id=run.run_id)), "postgresql")
        )
        claim = executor.transaction(steps)
        while not (await admin.execute(sa.text(CUT))).rowcount:
            await admin.commit()
        with pytest.raises(LLMLedgerUnavailable):
            await claim
        await holder.rollback()
    assert made == [1]
    assert executor.outstanding == 0


async def test_a_connection_that_breaks_before_the_commit_is_replaced_and_the_work_done_again(
    executor: PostgresExecutor, outside: Outside
):
    runs: list[int] = []

    def steps() -> Steps[int]:
        runs.append(1)
        yield put("a")
        text = "SELECT pg_terminate_backend(pg_backend_pid())" if len(runs) == 1 else "SELECT 1"
        yield Step(sa.text(text), {})
        return len(runs)

    assert await executor.transaction(steps) == 2
    assert len(await outside.payloads()) == 1


def _while_the_loop_stands_still(url: str, statement: str) -> None:
    async def run() -> None:
        engine = build_engine(url)
        async with engine.connect() as connection:
            await connection.execute(sa.text(statement))
        await engine.dispose()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()


async def test_a_connection_that_died_while_nobody_used_it_harms_nobody(
    executor: PostgresExecutor, pg_url: str, monkeypatch: Any
):
    monkeypatch.setattr(postgres_wire, "IDLE_S", -1.0)  # as if a second had passed
    rules = rules_of(settings_for(pg_url), "me")
    cut = CUT.replace(" AND wait_event_type = 'Lock'", " AND pid <> pg_backend_pid()")
    for _ in range(3):
        _while_the_loop_stands_still(pg_url, cut)
        run = new_run()
        assert isinstance(await executor.transaction(lambda run=run: ledger.claim(run, rules)), Won)
        assert names(await executor.read(get("nothing"))) == []


# -- one does not spoil another


async def test_one_that_raises_takes_nothing_from_the_others(executor: PostgresExecutor, outside: Outside):
    def steps(number: int) -> Steps[int]:
        changed = (yield put(f"{number}")).rowcount
        if number == 2:
            raise LLMFenced("lost")
        return changed

    told = await asyncio.gather(
        *(executor.transaction(lambda n=n: steps(n)) for n in range(5)), return_exceptions=True
    )
    assert [type(each) for each in told] == [int, int, LLMFenced, int, int]
    assert sorted(row["sha256"] for row in await outside.payloads()) == ["0", "1", "3", "4"]


async def test_a_value_that_fits_no_column_is_nobody_elses_fault_and_not_quoted(
    executor: PostgresExecutor, outside: Outside
):
    """I17."""
    steps = [put("a"), put("my\x00prompt"), Step(PUT, {**put("b").params, "codec": "my prompt"}), put("c")]
    told = await asyncio.gather(
        *(executor.transaction(lambda step=step: _one(step)) for step in steps), return_exceptions=True
    )
    assert [isinstance(each, LLMLedgerError) for each in told] == [False, True, True, False]
    assert [("my" in str(each), each.__context__) for each in told[1:3]] == [(False, None)] * 2  # type: ignore[union-attr]
    assert sorted(row["sha256"] for row in await outside.payloads()) == ["a", "c"]


async def test_a_lock_that_somebody_holds_delays_only_whom_it_concerns(
    executor: PostgresExecutor, outside: Outside
):
    for name in ("held", "free"):
        await executor.transaction(lambda name=name: _one(put(name)))
    async with outside.engine.connect() as holder:
        await holder.execute(SET, prefixed(change("held", 1), "postgresql"))
        waiting = executor.transaction(lambda: _one(change("held", 2)))
        others = [executor.transaction(lambda n=n: _one(change("free", n))) for n in range(3, 9)]
        assert await asyncio.gather(*others) == [1] * 6
        assert not waiting.done()
        await holder.commit()
    assert await waiting == 1
    assert {row["sha256"]: row["codec"] for row in await outside.payloads()}["held"] == 2


async def test_two_that_wait_for_each_other_are_run_again(pg_url: str, outside: Outside):
    """Deadlocks between processes end within the lock's patience, without an error."""
    one, two = PostgresExecutor(pg_url, timeout_s=5), PostgresExecutor(pg_url, timeout_s=5)
    for name in "ab":
        await one.transaction(lambda name=name: _one(put(name)))

    def steps(first: str, second: str) -> Steps[int]:
        yield change(first, 1)
        yield Step(sa.text("SELECT pg_sleep(0.05)"), {})
        return (yield change(second, 1)).rowcount

    orders = [(one, "a", "b"), (two, "b", "a")]
    assert await asyncio.gather(
        *(each.transaction(lambda order=order: steps(*order)) for each, *order in orders)
    ) == [1, 1]
    await asyncio.gather(one.close(), two.close())


async def test_counters_of_several_workspaces_are_locked_in_one_order(
    pg_url: str, outside: Outside, monkeypatch: Any
):
    """Whatever is done to them: or a claim of one and a finish of the other could wait for each other in two batches."""
    monkeypatch.setattr(postgres, "PATIENCE_S", 5.0)
    executor, rules = PostgresExecutor(pg_url, timeout_s=5), rules_of(settings_for(pg_url), "me")
    now = (await executor.read(budgets.state("a"))).rows[0]["now"]
    for name in "ab":
        await executor.transaction(lambda name=name: budgets.open_counters(name, ["day"], now))
    run, other = (held_run(held=reservation(workspace=name)) for name in "ab")
    await executor.transaction(lambda: ledger.claim(run, rules))
    settled = of_success(run, cost(run), owner="me", key_ttl_s=None, keep=True)
    counter = sa.select(LLMBudget.period).with_for_update(nowait=True)
    async with outside.engine.connect() as holder, outside.engine.connect() as look:
        await holder.execute(counter.where(LLMBudget.workspace_id == "a"))
        claimed = executor.transaction(lambda: ledger.claim(other, rules))
        finished = executor.transaction(lambda: ledger.finish(settled))
        async with asyncio.timeout(5):
            while not (await look.execute(sa.text(WAITING))).scalar():
                await look.commit()
        assert (await look.execute(counter.where(LLMBudget.workspace_id == "b"))).all()
        await look.rollback()
        await holder.rollback()
        assert isinstance(await claimed, Won)
        assert (await finished).persisted
    await executor.close()


async def test_a_step_that_breaks_its_promise_is_told(executor: PostgresExecutor):
    def steps() -> Steps[None]:
        yield Step(PUT, put("a").params, final=True)
        yield put("b")

    with pytest.raises(RuntimeError, match="another step came after it"):
        await executor.transaction(steps)
    assert executor.outstanding == 0


# -- callers that leave, and the end


async def test_what_was_begun_ends_though_its_caller_left_and_what_was_not_is_taken_back(
    executor: PostgresExecutor, outside: Outside
):
    begun = asyncio.Event()

    def steps() -> Steps[int]:
        begun.set()
        return (yield put("begun")).rowcount

    taken_back = executor.transaction(lambda: _one(put("not begun")))
    taken_back.cancel()
    left = executor.transaction(steps)
    await begun.wait()
    left.cancel()
    await executor.close()
    assert executor.outstanding == 0
    assert [row["sha256"] for row in await outside.payloads()] == ["begun"]


def test_another_event_loop_is_refused_and_does_not_wait_for_ever(pg_url: str):
    made = PostgresExecutor(pg_url, timeout_s=3)
    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(_read_nothing(made))
        with pytest.raises(LLMLedgerUnavailable, match="another event loop"):
            other.run(_read_nothing(made))
        one.run(made.close())


async def _read_nothing(executor: PostgresExecutor) -> None:
    await executor.read(get("nothing"))


async def test_closing_waits_for_what_was_begun_and_refuses_what_comes_later(
    executor: PostgresExecutor, outside: Outside
):
    begun = [executor.transaction(lambda n=n: _one(put(f"{n}"))) for n in range(100)]
    await executor.close()
    assert [each.done() for each in begun] == [True] * 100
    assert len(await outside.payloads()) == 100
    with pytest.raises(LLMLedgerUnavailable, match="closed"):
        await executor.transaction(lambda: _one(put("late")))


# -- URLs


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"host": "db", "port": 5433, "user": "me", "password": "p@ss", "database": "x"}),
        ("?ssl=require", {"ssl": "require"}),
        ("?host=/run/pg", {"host": "/run/pg"}),
        ("?host=a:1&host=b:2", {"host": ["a", "b"], "port": [1, 2]}),
        ("?statement_cache_size=7", {"statement_cache_size": 7}),
        ("?prepared_statement_cache_size=0", {"statement_cache_size": 0}),
        ("?prepared_statement_cache_size=0&statement_cache_size=5", {"statement_cache_size": 0}),
    ],
)
def test_a_url_says_what_it_said_to_sqlalchemy(query: str, expected: dict[str, Any]):
    options = connect_options(
        f"postgresql+asyncpg://me:p%40ss@db:5433/x{query}", timeout_s=3, lock_timeout_s=0.2
    )
    assert {name: options[name] for name in expected} == expected
    assert options["server_settings"] == {"lock_timeout": "200", "application_name": "signalbox"}
    assert "prepared_statement_cache_size" not in options


async def test_without_statement_caches_nothing_stays_prepared_on_the_server(pg_url: str, outside: Outside):
    """A pooler may hand each transaction to another server."""
    made = PostgresExecutor(f"{pg_url}&prepared_statement_cache_size=0&statement_cache_size=0", timeout_s=3)
    rules, run = rules_of(settings_for(pg_url), "me"), new_run()
    settled = of_success(run, success(run), owner="me", key_ttl_s=None, keep=True)
    left = Step(sa.select(sa.column("name")).select_from(sa.table("pg_prepared_statements")), {})

    def steps() -> Steps[int]:
        yield from ledger.finish(settled)
        return len((yield left).rows)

    assert isinstance(await made.transaction(lambda: ledger.claim(run, rules)), Won)
    assert await made.transaction(lambda: _one(put("a"))) == 1
    told = await asyncio.gather(*(made.read(left) for _ in range(3)))
    assert [each.rows for each in told] == [[]] * 3
    await made.close()

"""The SQLite executor on its own: commits are shared, faults are not, and an outcome is a committed outcome."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.db.engine import build_engine
from app.db.unit_of_work import unit_of_work
from app.llm.errors import LLMFenced, LLMLedgerBusy, LLMLedgerSchema, LLMLedgerUnavailable
from app.llm.persistence.executor import Step, Steps
from app.llm.persistence.executors import sqlite as sqlite_module
from app.llm.persistence.executors import sqlite_writer
from app.llm.persistence.executors.sqlite import SqliteExecutor
from app.llm.persistence.statements import payloads
from tests.support.ledger import ROOT
from tests.support.loops import HomeLoop

PUT = sa.insert(payloads).values(
    workspace_id="w",
    sha256=sa.bindparam("p_name"),
    codec=0,
    bytes=b"",
    last_ref_at=datetime(2026, 1, 1, tzinfo=UTC),
)
NAMES = Step(sa.select(payloads.c.sha256).order_by(payloads.c.sha256), {})
BRIEF_NAMES = Step(NAMES.statement, {}, brief=True)


@pytest.fixture
def file(sqlite_url: str, tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
async def executor(sqlite_url: str) -> AsyncIterator[SqliteExecutor]:
    made = SqliteExecutor(sqlite_url, timeout_s=5)
    yield made
    await made.close()
    await made.close()


def put(*names: str, raises: Exception | None = None, say: str = "done") -> Steps[str]:
    for name in names:
        yield Step(PUT, {"name": name})
    if raises is not None:
        raise raises
    return say


def seen(file: Path) -> list[str]:
    """Return the names that another connection sees."""
    other = sqlite3.connect(file)
    names = [row[0] for row in other.execute("SELECT sha256 FROM llm_payloads ORDER BY sha256")]
    other.close()
    return names


class Commits:
    """The writer's connection as it is, with its commits counted."""

    def __init__(self, executor: SqliteExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: list[int] = []
        performed = executor._writer._commit

        def commit(operations: Any) -> None:
            performed(operations)
            self.of.append(len(operations))

        monkeypatch.setattr(executor._writer, "_commit", commit)


async def test_what_comes_in_one_turn_of_the_loop_is_one_commit(
    executor: SqliteExecutor, file: Path, monkeypatch: pytest.MonkeyPatch
):
    commits = Commits(executor, monkeypatch)
    said = await asyncio.gather(*(executor.transaction(lambda n=n: put(f"{n:03}", say=n)) for n in range(50)))
    assert said == list(range(50))
    assert commits.of == [50]
    assert len(seen(file)) == 50


async def test_a_commit_holds_no_more_than_its_share(
    executor: SqliteExecutor, file: Path, monkeypatch: pytest.MonkeyPatch
):
    commits = Commits(executor, monkeypatch)
    most = sqlite_writer.MAX_BATCH
    await asyncio.gather(*(executor.transaction(lambda n=n: put(f"{n:03}")) for n in range(most + 5)))
    assert commits.of == [most, 5]


@pytest.mark.parametrize("place", [0, 3, 6])
async def test_one_fault_in_a_batch_spoils_nobody(executor: SqliteExecutor, file: Path, place: int):
    """Neither a refusal of the protocol, nor a fault of the database, nor a defect."""
    for fault, kind in (
        (LLMFenced("lost"), LLMFenced),
        (ZeroDivisionError(), ZeroDivisionError),
        (None, LLMLedgerUnavailable),
    ):
        work = [lambda n=n, k=kind: put(f"{k.__name__} {n}") for n in range(6)]
        bad = (lambda: put("half", "half")) if fault is None else (lambda f=fault: put("half", raises=f))
        work.insert(place, bad)
        said = await asyncio.gather(*map(executor.transaction, work), return_exceptions=True)
        assert [type(each) for each in said].count(kind) == 1
        assert type(said[place]) is kind
        assert said.count("done") == 6
    assert len(seen(file)) == 18
    assert "half" not in seen(file)


async def test_an_acknowledged_outcome_is_a_committed_one(executor: SqliteExecutor, file: Path):
    """Seen from another connection the moment that the caller hears of it, alone or in a crowd."""
    missing = []

    async def one(name: str) -> None:
        await executor.transaction(lambda: put(name))
        if name not in seen(file):
            missing.append(name)

    await asyncio.gather(*(one(f"{n}") for n in range(40)))
    assert missing == []


async def test_a_commit_that_fails_is_the_fault_of_all_in_it(executor: SqliteExecutor, file: Path):
    def fill() -> Steps[None]:
        yield Step(sa.text("PRAGMA max_page_count=1"), {})

    await executor.transaction(fill)
    big = ["x" * 200_000 + f"{n}" for n in range(3)]
    said = await asyncio.gather(
        *(executor.transaction(lambda n=n: put(n)) for n in big), return_exceptions=True
    )
    assert [type(each) for each in said] == [LLMLedgerUnavailable] * 3
    assert all("free some space" in str(each) for each in said)
    assert seen(file) == []


async def test_what_was_told_as_failed_before_it_began_is_not_done(executor: SqliteExecutor):
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Steps[None]:
        begun.set()
        go_on.wait(20)
        yield NAMES

    def put(name: str) -> Steps[None]:
        yield Step(PUT, {"name": name})

    first: Any = executor.transaction(slow)
    assert await asyncio.to_thread(begun.wait, 20)
    second: Any = executor.transaction(lambda: put("late"))
    await asyncio.sleep(0)  # handed over
    second.set_exception(LLMLedgerBusy("the disk does not answer", retry_after_s=1.0))
    go_on.set()
    await first
    with pytest.raises(LLMLedgerBusy):
        await second
    await executor.transaction(lambda: put("after"))
    assert [row["sha256"] for row in (await executor.read(NAMES)).rows] == ["after"]


async def test_a_caller_that_leaves_does_not_stop_what_it_began(executor: SqliteExecutor, file: Path):
    home, left = HomeLoop(), asyncio.Event()

    def steps() -> Steps[str]:
        yield Step(PUT, {"name": "a"})
        home.call(lambda: (call.cancel(), left.set()))
        return "done"

    future = executor.transaction(steps)

    async def ask() -> str:
        return await asyncio.shield(future)

    call = asyncio.create_task(ask())
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await future == "done"
    assert left.is_set()
    assert seen(file) == ["a"]


async def test_work_that_is_taken_back_before_it_begins_is_not_done(executor: SqliteExecutor, file: Path):
    first, second = executor.transaction(lambda: put("a")), executor.transaction(lambda: put("b"))
    second.cancel()
    assert await first == "done"
    assert seen(file) == ["a"]
    assert executor.outstanding == 0


async def test_a_lock_held_elsewhere_ends_in_a_busy_error_for_everybody_at_once(sqlite_url: str, file: Path):
    """Nobody waits for the wait of another."""
    executor = SqliteExecutor(sqlite_url, timeout_s=0.2)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(10):
        first = [executor.transaction(lambda n=n: put(n)) for n in "ab"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        later = [executor.transaction(lambda n=n: put(n)) for n in "cd"]
        said = await asyncio.gather(*first, *later, return_exceptions=True)
    assert [type(each) for each in said] == [LLMLedgerBusy] * 4
    other.execute("ROLLBACK")
    other.close()
    assert await executor.transaction(lambda: put("e")) == "done"
    assert seen(file) == ["e"]
    await executor.close()


async def test_a_lock_that_is_given_back_in_time_is_waited_for(
    executor: SqliteExecutor, file: Path, monkeypatch: pytest.MonkeyPatch
):
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite_writer, "sleep", lambda _: other.in_transaction and other.execute("ROLLBACK"))
    assert await executor.transaction(lambda: put("a")) == "done"
    assert seen(file) == ["a"]
    other.close()


async def test_two_executors_on_one_file_lose_nothing(executor: SqliteExecutor, sqlite_url: str, file: Path):
    """As two processes do: each has a writer of its own."""
    other = SqliteExecutor(sqlite_url, timeout_s=5)
    work = [
        each.transaction(lambda n=n, k=k: put(f"{k}{n}"))
        for n in range(60)
        for k, each in enumerate((executor, other))
    ]
    assert set(await asyncio.gather(*work)) == {"done"}
    assert len(seen(file)) == 120
    await other.close()


async def test_closing_finishes_what_was_begun(sqlite_url: str, file: Path):
    executor = SqliteExecutor(sqlite_url, timeout_s=5)
    work = [executor.transaction(lambda n=n: put(n)) for n in "abc"]
    await executor.close()
    assert seen(file) == ["a", "b", "c"]
    assert await asyncio.gather(*work) == ["done"] * 3
    assert "signalbox-ledger" not in {thread.name for thread in threading.enumerate()}


def test_a_loop_that_is_closed_meanwhile_leaves_a_whole_transaction_and_no_noise(sqlite_url: str, file: Path):
    may_go_on = threading.Event()
    executor: list[SqliteExecutor] = []

    def steps() -> Steps[None]:
        yield Step(PUT, {"name": "a"})
        may_go_on.wait(10)

    async def leave() -> None:
        executor.append(SqliteExecutor(sqlite_url, timeout_s=5))
        executor[0].transaction(steps)
        while not executor[0]._writer._thread:  # noqa: ASYNC110
            await asyncio.sleep(0)

    asyncio.run(leave())
    may_go_on.set()
    executor[0]._writer.close()
    assert seen(file) == ["a"]


async def test_what_comes_after_closing_is_refused(sqlite_url: str):
    executor = SqliteExecutor(sqlite_url, timeout_s=5)
    await executor.close()
    for late in (executor.transaction(lambda: put("a")), executor.read(BRIEF_NAMES), executor.read(NAMES)):
        with pytest.raises(LLMLedgerUnavailable, match="closed already"):
            await late
    assert executor.outstanding == 0


async def test_a_connection_that_cannot_roll_back_is_given_up(
    executor: SqliteExecutor, file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else every later transaction would begin inside the broken one."""

    class Broken(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql in {"COMMIT", "ROLLBACK"}:
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *values)

    opened = executor._writer._connect
    broken = [lambda: sqlite3.connect(file, isolation_level=None, factory=Broken)]
    monkeypatch.setattr(executor._writer, "_connect", lambda: broken.pop()() if broken else opened())
    with pytest.raises(LLMLedgerUnavailable, match="disk I/O error"):
        await executor.transaction(lambda: put("a"))
    assert await executor.transaction(lambda: put("b")) == "done"
    assert seen(file) == ["b"]


def test_a_program_that_forgets_to_close_ends_all_the_same(sqlite_url: str, file: Path):
    code = f"""
import asyncio
from app.llm.persistence.executors.sqlite import SqliteExecutor
from tests.unit.llm.persistence.executors.test_sqlite import put
async def main():
    executor = SqliteExecutor({sqlite_url!r}, timeout_s=5)
    print(await executor.transaction(lambda: put("a")))
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=40, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"done\n", b"")
    assert seen(file) == ["a"]


async def test_a_disk_that_does_not_answer_is_told_of(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_module, "_GRACE_S", 0.05)
    executor, hangs = SqliteExecutor(sqlite_url, timeout_s=0.05), threading.Event()

    def steps() -> Steps[None]:
        hangs.wait(30)
        yield NAMES

    async with asyncio.timeout(10):
        with pytest.raises(LLMLedgerBusy):
            await executor.transaction(steps)
    hangs.set()
    await executor.close()


async def test_a_brief_look_up_is_answered_where_it_is_asked(executor: SqliteExecutor):
    await executor.transaction(lambda: put("a"))
    looked = executor.read(BRIEF_NAMES)
    assert looked.done()
    assert looked.result().rows == [{"sha256": "a"}]


async def test_a_long_read_stays_off_the_loop(executor: SqliteExecutor):
    await executor.transaction(lambda: put("a"))
    reading = executor.read(NAMES)
    assert not reading.done()
    assert (await reading).rows == [{"sha256": "a"}]


async def test_look_ups_leave_the_loop_while_the_disk_is_slow_and_come_back(
    executor: SqliteExecutor, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    step_s = 0.01
    monkeypatch.setattr(
        sqlite_module, "perf_counter", lambda: clock.__setitem__(0, clock[0] + step_s) or clock[0]
    )
    turns = 0
    while executor.read(BRIEF_NAMES).done():
        turns += 1
        assert turns < 100
    assert turns > 1, "one slow look-up moves nothing"
    step_s = 0.0
    for _ in range(100):
        await executor.read(BRIEF_NAMES)
    assert executor.read(BRIEF_NAMES).done()


async def test_a_look_up_writes_nothing(executor: SqliteExecutor):
    with pytest.raises(LLMLedgerUnavailable, match="may write neither"):
        await executor.read(Step(PUT, {"name": "a"}, brief=True))


@pytest.mark.parametrize("brief", [True, False])
async def test_a_look_up_without_tables_says_so(tmp_path: Path, *, brief: bool):
    executor = SqliteExecutor(f"sqlite+aiosqlite:///{tmp_path}/new.db", timeout_s=1)
    with pytest.raises(LLMLedgerSchema, match="signalbox migrate"):
        await executor.read(Step(NAMES.statement, {}, brief=brief))
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600
    await executor.close()


async def test_a_unit_of_work_that_holds_the_lock_is_told_at_once(executor: SqliteExecutor, sqlite_url: str):
    engine = build_engine(sqlite_url)
    async with unit_of_work(engine) as session:
        await session.execute(sa.text("SELECT 1"))
        with pytest.raises(LLMLedgerBusy, match="commit first"):
            await executor.transaction(lambda: put("a"))
        assert executor.outstanding == 0
    await engine.dispose()


async def test_a_forked_child_does_not_touch_its_parents_connections(
    executor: SqliteExecutor, monkeypatch: pytest.MonkeyPatch
):
    await executor.transaction(lambda: put("a"))
    parent = os.getpid()
    monkeypatch.setattr(sqlite_module.os, "getpid", lambda: parent + 1)
    with pytest.raises(LLMLedgerUnavailable, match="forked"):
        await executor.transaction(lambda: put("b"))
    with pytest.raises(LLMLedgerUnavailable, match="forked"):
        await executor.read(BRIEF_NAMES)


def test_the_writer_keeps_what_an_engine_of_ours_is_told(sqlite_url: str):
    """FULL: a commit that was acknowledged survives a power cut."""
    executor = SqliteExecutor(sqlite_url, timeout_s=5)
    connection = executor._connect_writer()
    said = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint")
    }
    connection.close()
    assert said == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "wal_autocheckpoint": sqlite_module.CHECKPOINT_PAGES,
    }

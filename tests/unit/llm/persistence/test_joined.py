"""The joined binding in a caller's unit of work, and the autonomous one beside it."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.db.engine import build_engine
from app.db.unit_of_work import holds_write_lock, unit_of_work
from app.llm.errors import LLMError, LLMKeyInProgress, LLMLedgerBusy, LLMLedgerError, LLMProviderError
from app.llm.testing.client import ScriptedClient
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import Watched, refused, service

KEYED = request(idempotency_key="k1")
NOTES = sa.table("notes", sa.column("text", sa.String))


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    async with view.engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS notes (text VARCHAR(50) UNIQUE)"))
        await connection.execute(sa.text("DELETE FROM notes"))
    yield view
    await view.close()


async def _note(session: AsyncSession, text: str) -> None:
    await session.execute(sa.insert(NOTES).values(text=text))


async def _notes(outside: Outside) -> list[str]:
    return [row["text"] for row in await outside.rows(sa.select(NOTES.c.text))]


async def test_the_callers_commit_records_its_work_and_the_run_together(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    async with service(db_url) as llm:
        async with unit_of_work(engine) as session:
            await _note(session, "mine")
            answer = await llm.joined(session).chat(KEYED)
            assert await outside.runs() == []
            await session.commit()
        (row,) = await outside.runs()
        assert (row["id"], row["status"], row["idem_slot"]) == (answer.run_id, "SUCCEEDED", "k1")
        assert await _notes(outside) == ["mine"]
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY


async def test_the_callers_rollback_takes_a_joined_run_along(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    """The documented price of the joined binding."""
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        async with unit_of_work(engine) as session:
            await _note(session, "mine")
            await llm.joined(session).chat(KEYED)
            await session.rollback()
        assert await outside.runs() == []
        assert await _notes(outside) == []
        await llm.chat(KEYED)
    assert client.sends == 2


async def test_the_callers_rollback_leaves_an_autonomous_run_alone(pg_url: str):
    """I9: on a database that several writers share."""
    await _autonomous_survives(pg_url, pg_url)


async def test_the_callers_rollback_leaves_an_autonomous_run_in_its_own_file_alone(
    sqlite_url: str, tmp_path: Any
):
    """I9: SQLite's default, one file for the ledger and another for the application."""
    await _autonomous_survives(sqlite_url, f"sqlite+aiosqlite:///{tmp_path / 'application.db'}")


async def _autonomous_survives(ledger_url: str, application_url: str) -> None:
    mine, outside, client = build_engine(application_url), Outside(ledger_url), ScriptedClient()
    async with service(ledger_url, client) as llm:
        async with unit_of_work(mine) as session:
            await session.execute(sa.text("CREATE TABLE IF NOT EXISTS rolled_back (n INTEGER)"))
            answer = await llm.chat(KEYED)
            await session.rollback()
        assert [row["id"] for row in await outside.runs(status="SUCCEEDED")] == [answer.run_id]
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    assert client.sends == 1
    await outside.close()
    await mine.dispose()


async def test_an_autonomous_call_inside_a_unit_of_work_on_its_file_is_refused_at_once(sqlite_url: str):
    """It could never get the lock that its own caller holds: advice instead of a wait."""
    client, engine = ScriptedClient(), build_engine(sqlite_url)
    async with (
        service(sqlite_url, client, ledger_timeout_s=600) as llm,
        asyncio.timeout(30),
        unit_of_work(engine) as session,
    ):
        await session.execute(sa.text("UPDATE llm_runs SET stage = 'x'"))
        with pytest.raises(LLMLedgerBusy, match=r"commit first.*llm\.joined\(session\).*LLM_DATABASE_URL"):
            await llm.chat(request())
        assert client.sends == 0
        await session.commit()
        assert (await llm.chat(request())).text == "answer 1"
    await engine.dispose()


async def test_a_released_savepoint_still_holds_the_lock(sqlite_url: str):
    """The joined binding works in savepoints: after it the caller's lock is as real as before."""
    engine = build_engine(sqlite_url)
    async with (
        service(sqlite_url, ledger_timeout_s=600) as llm,
        asyncio.timeout(30),
        unit_of_work(engine) as session,
    ):
        await llm.joined(session).chat(KEYED)
        with pytest.raises(LLMLedgerBusy, match="commit first"):
            await llm.chat(request())
        async with session.begin_nested() as savepoint:
            await savepoint.rollback()
        with pytest.raises(LLMLedgerBusy, match="commit first"):
            await llm.chat(request())
        await session.rollback()
        await llm.chat(request())
    await engine.dispose()


async def test_a_unit_of_work_on_another_file_is_no_obstacle(sqlite_url: str, tmp_path: Any):
    engine = build_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    async with service(sqlite_url) as llm, unit_of_work(engine) as session:
        await session.execute(sa.text("CREATE TABLE t (n INTEGER)"))
        assert (await llm.chat(KEYED)).text
    await engine.dispose()


async def test_a_nested_unit_of_work_does_not_hide_the_outer_ones_lock(sqlite_url: str, tmp_path: Any):
    ours, other = build_engine(sqlite_url), build_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    file = tmp_path / "test.db"
    async with unit_of_work(ours) as session:
        assert not holds_write_lock(file)
        await session.execute(sa.text("SELECT 1"))
        async with unit_of_work(other):
            assert holds_write_lock(file)
        await session.commit()
        assert not holds_write_lock(file)
    assert not holds_write_lock(file)
    await ours.dispose()
    await other.dispose()


async def test_a_foreign_lock_ends_in_a_busy_error_with_the_advice(sqlite_url: str):
    """A session that does not come from our unit of work cannot be seen, only timed out."""
    engine, client = build_engine(sqlite_url), ScriptedClient()
    async with service(sqlite_url, client, ledger_timeout_s=0.1) as llm:
        async with engine.begin() as connection:
            await connection.execute(sa.text("UPDATE llm_runs SET stage = 'x'"))
            with pytest.raises(LLMLedgerBusy, match=r"llm\.joined\(session\)") as caught:
                await llm.chat(request())
            assert caught.value.retry_after_s
        assert client.sends == 0
        await llm.chat(request())
    await engine.dispose()


async def test_a_joined_call_sees_what_its_caller_has_not_committed(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    client = ScriptedClient()
    async with service(db_url, client) as llm, unit_of_work(engine) as session:
        joined = llm.joined(session)
        first = await joined.chat(KEYED)
        again = await joined.chat(KEYED)
        assert (again.served_from, again.run_id) == (ServedFrom.REPLAY, first.run_id)
        assert client.sends == 1
        await session.commit()
    assert len(await outside.runs()) == 1


async def test_a_failed_joined_call_leaves_the_callers_work_alone(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    async with service(db_url, ScriptedClient([refused()]), max_attempts=1) as llm:
        async with unit_of_work(engine) as session:
            await _note(session, "before")
            with pytest.raises(LLMProviderError):
                await llm.joined(session).chat(KEYED)
            await _note(session, "after")
            await session.commit()
        (row,) = await outside.runs()
        assert (row["status"], row["idem_slot"]) == ("FAILED", None)
        assert await _notes(outside) == ["before", "after"]


@pytest.mark.parametrize("drop", ["llm_runs", "llm_attempts"])
async def test_a_fault_of_our_sql_stays_in_its_savepoint(
    db_url: str, engine: AsyncEngine, outside: Outside, drop: str
):
    """Before the call it is an error, after the paid call the answer is returned as not recorded."""
    async with service(db_url) as llm, unit_of_work(engine) as session:
        await _note(session, "before")
        await session.execute(sa.text(f"ALTER TABLE {drop} RENAME TO gone"))
        if drop == "llm_runs":
            with pytest.raises(LLMLedgerError):
                await llm.joined(session).chat(KEYED)
        else:
            assert (await llm.joined(session).chat(KEYED)).persisted is False
        await _note(session, "after")
        await session.execute(sa.text(f"ALTER TABLE gone RENAME TO {drop}"))
        await session.commit()
        assert await _notes(outside) == ["before", "after"]


async def test_a_key_in_progress_elsewhere_is_told_inside_a_unit_of_work(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    """It never waits: the wait would hold the caller's transaction."""
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, on_in_progress="wait") as llm:
        call = asyncio.create_task(llm.chat(KEYED))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        async with unit_of_work(engine) as session:
            await _note(session, "before")
            with pytest.raises(LLMKeyInProgress):
                await llm.joined(session).chat(KEYED)
            await session.commit()
        client.gate.set()  # type: ignore[union-attr]
        await call
        assert await _notes(outside) == ["before"]


async def test_a_cancelled_joined_call_is_told_on_its_row(db_url: str, engine: AsyncEngine, outside: Outside):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client) as llm:
        async with unit_of_work(engine) as session:
            call = asyncio.create_task(llm.joined(session).chat(KEYED))
            while not client.sends:  # noqa: ASYNC110
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await session.commit()
        (row,) = await outside.runs()
        assert (row["status"], row["idem_slot"], row["possibly_paid"]) == ("CANCELLED", None, True)


async def test_joined_calls_use_the_cache_without_a_flight(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    seen: list[Any] = []

    async def look(*_: Any) -> None:
        seen.extend((await session.execute(sa.text("SELECT flight_slot FROM llm_runs"))).scalars())

    client = Watched(look)
    async with service(db_url, client, cache_enabled=True) as llm, unit_of_work(engine) as session:
        joined = llm.joined(session)
        first = await joined.chat(request())
        second = await joined.chat(request())
        assert (second.served_from, second.text) == (ServedFrom.CACHE, first.text)
        await session.commit()
    assert seen == [None]
    assert client.sends == 1
    rows = {row["id"]: row for row in await outside.runs()}
    assert rows[second.run_id]["source_run_id"] == first.run_id


async def test_a_takeover_works_inside_a_unit_of_work(db_url: str, engine: AsyncEngine, outside: Outside):
    hung = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, hung) as owner, service(db_url) as llm:
        call = asyncio.create_task(owner.chat(KEYED))
        while not hung.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        async with unit_of_work(engine) as session:
            answer = await llm.joined(session).chat(KEYED)
            await session.commit()
        hung.gate.set()  # type: ignore[union-attr]
        assert (await call).run_id == answer.run_id
    assert [each["status"] for each in await outside.runs()] == ["ABANDONED", "SUCCEEDED"]


async def test_a_broken_session_is_a_ledger_error(pg_url: str):
    """Connection faults of the caller's session are told in our words, without its SQL."""
    engine = build_engine(pg_url)
    outside = Outside(pg_url)
    async with service(pg_url) as llm, unit_of_work(engine) as session:
        pid = (await session.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
        await outside.rows(sa.select(sa.func.pg_terminate_backend(pid)))
        with pytest.raises(LLMError) as caught:
            await llm.joined(session).chat(KEYED)
        assert isinstance(caught.value, LLMLedgerError)
        assert "SELECT" not in str(caught.value)
    await outside.close()
    await engine.dispose()


async def test_closing_a_joined_view_leaves_its_service_open(db_url: str, engine: AsyncEngine):
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        async with AsyncSession(engine) as session:
            await llm.joined(session).close()
        assert not client.closed
        assert (await llm.chat(request())).text == "answer 1"
    assert client.closed

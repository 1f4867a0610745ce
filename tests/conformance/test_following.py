"""Whoever follows the ledger is told of each run once: of those that show late too, and of what ended between two looks."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.bootstrap import connect
from app.db.base import db_now
from app.db.engine import build_engine
from app.llm.persistence import following
from app.llm.persistence.executor import Executor
from app.llm.persistence.following import Follower
from app.llm.persistence.models import LLMRun
from app.llm.persistence.reports import RunFilter
from tests.support.usage import LONG_AGO, run_row

RUNS = LLMRun.__table__
LIVE = {"status": "STARTED", "finished_at": None}


@pytest.fixture(autouse=True)
def _to_the_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shows late is not caught by a margin alone."""
    monkeypatch.setattr(following, "SLACK", timedelta())


@pytest.fixture
async def reader(db_url: str) -> AsyncIterator[Executor]:
    made = connect(db_url, timeout_s=5)
    yield made
    await made.close()


async def begun(connection: AsyncConnection, **columns: Any) -> str:
    """Write a run as of now, by the database's clock."""
    row = {**run_row(**columns), "created_at": db_now()}
    if row["finished_at"] is not None:
        row["finished_at"] = db_now()
    await connection.execute(sa.insert(RUNS).values(**row))
    return str(row["id"])


async def put(engine: AsyncEngine, **columns: Any) -> str:
    async with engine.begin() as connection:
        return await begun(connection, **columns)


async def end(engine: AsyncEngine, run_id: str, status: str = "SUCCEEDED", **columns: Any) -> None:
    change = sa.update(RUNS).where(RUNS.c.id == run_id)
    async with engine.begin() as connection:
        await connection.execute(change.values(status=status, finished_at=db_now(), **columns))


async def told(follower: Follower) -> list[tuple[str, str, str]]:
    async with aclosing(follower.poll()) as events:
        return [(event.kind, event.run["id"], event.run["status"]) async for event in events]


def whole(run_id: str, status: str = "SUCCEEDED") -> list[tuple[str, str, str]]:
    return [("started", run_id, "STARTED"), ("ended", run_id, status)]


async def test_a_run_is_told_when_it_begins_and_when_it_ends_and_then_no_more(
    reader: Executor, engine: AsyncEngine
) -> None:
    await put(engine)
    follower = Follower(reader, RunFilter())
    assert await told(follower) == []
    run = await put(engine, **LIVE)
    assert await told(follower) == whole(run)[:1]
    assert await told(follower) == []
    await end(engine, run, "FAILED")
    assert await told(follower) == whole(run, "FAILED")[1:]
    assert await told(follower) == []


async def test_what_began_and_ended_between_two_looks_is_told_as_both(
    reader: Executor, engine: AsyncEngine
) -> None:
    follower = Follower(reader, RunFilter())
    assert await told(follower) == []
    runs = [await put(engine) for _ in range(3)]
    assert await told(follower) == [event for run in runs for event in whole(run)]
    assert await told(follower) == []


async def test_of_what_was_under_way_before_the_end_is_told(reader: Executor, engine: AsyncEngine) -> None:
    run = await put(engine, **LIVE)
    follower = Follower(reader, RunFilter())
    assert await told(follower) == []
    await end(engine, run)
    assert await told(follower) == whole(run)[1:]


async def test_a_run_that_is_committed_late_is_told_all_the_same(
    reader: Executor, engine: AsyncEngine, db_url: str
) -> None:
    follower = Follower(reader, RunFilter())
    assert await told(follower) == []
    expected = whole(await put(engine))
    async with engine.connect() as connection, connection.begin() as transaction:
        late = await begun(connection)
        if db_url.startswith("postgresql"):  # SQLite lets nobody else write meanwhile
            expected += whole(await put(engine))
        seen = [event for _ in range(3) for event in await told(follower)]
        await transaction.commit()
    assert seen == expected
    assert await told(follower) == whole(late)
    assert await told(follower) == []


@pytest.mark.pg
async def test_of_two_open_transactions_the_later_one_is_waited_for_too(pg_url: str) -> None:
    """Its number is given, and above any number that a snapshot names."""
    reader, engine = connect(pg_url, timeout_s=5), build_engine(pg_url)
    follower = Follower(reader, RunFilter())
    await told(follower)
    async with engine.connect() as first, engine.connect() as second:
        runs = [await begun(first), await begun(second)]
        for run, connection in zip(runs, (first, second), strict=True):
            assert await told(follower) == []
            await connection.commit()
            assert await told(follower) == whole(run)
            assert await told(follower) == []
    await engine.dispose()
    await reader.close()


async def test_a_run_whose_end_is_committed_late_is_told_once(reader: Executor, engine: AsyncEngine) -> None:
    run = await put(engine, **LIVE)
    follower = Follower(reader, RunFilter())
    assert await told(follower) == []
    async with engine.connect() as connection, connection.begin() as transaction:
        await connection.execute(
            sa.update(RUNS).where(RUNS.c.id == run).values(status="SUCCEEDED", finished_at=db_now())
        )
        assert await told(follower) + await told(follower) == []
        await transaction.commit()
    assert await told(follower) + await told(follower) == whole(run)[1:]


async def test_more_than_a_page_at_once_is_told_whole_and_once(
    reader: Executor, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAGE", 2)
    follower = Follower(reader, RunFilter())
    await told(follower)
    async with engine.begin() as connection:
        runs = [await begun(connection, **LIVE) for _ in range(7)]
    assert sorted(run for _, run, _ in await told(follower)) == sorted(runs)
    for run in runs:
        await end(engine, run)
    assert sorted(run for _, run, _ in await told(follower)) == sorted(runs)
    assert await told(follower) == []


async def test_who_leaves_in_the_middle_is_told_the_rest_later(reader: Executor, engine: AsyncEngine) -> None:
    follower = Follower(reader, RunFilter())
    await told(follower)
    runs = [await put(engine) for _ in range(2)]
    first = []
    async with aclosing(follower.poll()) as events:
        async for event in events:
            first.append((event.kind, event.run["id"], event.run["status"]))
            break
    rest = await told(follower)
    assert sorted(first + rest) == sorted(event for run in runs for event in whole(run))
    assert await told(follower) == []


async def test_since_tells_what_was_before(reader: Executor, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.insert(RUNS).values(**run_row(LONG_AGO)))
    run = await put(engine)
    follower = Follower(reader, RunFilter(newer_than_s=60))
    assert await told(follower) == whole(run)
    assert await told(follower) == []


async def test_a_filter_asks_what_a_run_says_at_that_moment(reader: Executor, engine: AsyncEngine) -> None:
    follower = Follower(reader, RunFilter(status="FAILED", workspace_id="w1", model="gemini:m"))
    await told(follower)
    runs = [await put(engine, **LIVE, provider="ollama", model="a") for _ in range(2)]
    elsewhere = await put(engine, **LIVE, workspace_id="w2")
    assert await told(follower) == []
    await end(engine, runs[0], "FAILED", provider="gemini", model="m")
    await end(engine, runs[1], "FAILED")
    await end(engine, elsewhere, "FAILED")
    assert await told(follower) == [("ended", runs[0], "FAILED")]


async def test_what_was_told_is_forgotten_once_nothing_can_show_before_it(
    reader: Executor, engine: AsyncEngine
) -> None:
    follower = Follower(reader, RunFilter())
    for _ in range(20):
        await put(engine)
        await told(follower)
    assert len(follower._told) < 5

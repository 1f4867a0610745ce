"""Pruning beside the ledger's own writes: whatever comes in between, no answer loses its text (I20)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from app.bootstrap import connect
from app.db.engine import build_engine
from app.llm.persistence import ledger as protocol
from app.llm.persistence import retention, settlement
from app.llm.persistence.executor import Executor, SessionExecutor
from app.llm.persistence.models import LLMAttempt, LLMRun
from app.llm.persistence.retention import Pruned, prune
from app.llm.ports import Finished, NewRun
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, settings_for, success
from tests.support.retention import (
    DAY_S,
    Paused,
    aged,
    answered,
    delete_rows,
    ids,
    one_text,
    unreadable,
)
from tests.support.service import rules_of


@pytest.fixture
async def executor(db_url: str) -> AsyncIterator[Paused]:
    made = Paused(connect(db_url, timeout_s=5))
    yield made
    await made.close()


async def orphaned(autonomous: Ledger) -> NewRun:
    """Return a run whose texts nobody refers to, long since; its row is gone."""
    run = await answered(autonomous, one_text())
    await aged(autonomous.outside, run)
    await delete_rows(autonomous.outside, run)
    return run


async def test_a_finish_between_the_look_and_the_deletion_keeps_its_texts(
    autonomous: Ledger, executor: Paused
):
    """I20."""
    run = await orphaned(autonomous)

    async def finish() -> None:
        executor.before = None
        await answered(autonomous, again(run))

    executor.before = finish
    assert await prune(executor, older_than_s=DAY_S) == Pruned(attempts=0)
    assert executor.transactions == 1
    assert len(await autonomous.outside.payloads()) == 2
    assert await unreadable(autonomous.outside) == []


async def test_a_finish_that_is_not_yet_committed_keeps_its_texts(autonomous: Ledger, executor: Paused):
    """I20. PostgreSQL: the prune sees no run, and goes past the rows that it holds; SQLite: the prune waits."""
    run = again(await orphaned(autonomous))
    repo = autonomous.repo()
    await repo.create_started(run)
    written, may_commit = asyncio.Event(), asyncio.Event()
    finishing = asyncio.create_task(_finish_slowly(autonomous, run, written, may_commit))
    await written.wait()
    pruning = asyncio.create_task(prune(executor, older_than_s=DAY_S))
    if autonomous.url.startswith("postgresql"):
        assert await pruning == Pruned()
    may_commit.set()
    await finishing
    assert await pruning == Pruned()
    assert len(await autonomous.outside.payloads()) == 2
    assert await unreadable(autonomous.outside) == []


async def test_a_finish_that_begins_before_the_deletion_is_committed_stores_its_texts_again(
    autonomous: Ledger, executor: Paused
):
    """I20."""
    run = again(await orphaned(autonomous))
    repo = autonomous.repo()
    await repo.create_started(run)
    statements: list[int] = []
    finishing: list[asyncio.Task[Any]] = []

    def finish() -> None:
        statements.append(1)
        if len(statements) == 2:  # the second one deletes
            finishing.append(asyncio.create_task(repo.mark_succeeded(run, success(run))))

    executor.between = finish
    assert await prune(executor, older_than_s=DAY_S) == Pruned(payloads=2)
    (finished,) = await asyncio.gather(*finishing)
    assert finished == Finished()
    assert len(await autonomous.outside.payloads()) == 2
    assert await unreadable(autonomous.outside) == []


@pytest.fixture
async def postgres(pg_url: str) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        made = Ledger(pg_url, "autonomous", stack)
        stack.push_async_callback(made.outside.close)
        yield made


@pytest.fixture
async def pg_executor(pg_url: str) -> AsyncIterator[Executor]:
    made = connect(pg_url, timeout_s=5)
    yield made
    await made.close()


@pytest.mark.pg
async def test_finishes_and_prunes_at_the_same_time_lose_no_text(postgres: Ledger, pg_executor: Executor):
    """I20. All runs share two texts, which look long unused whenever nobody touches them."""
    repo, seen = postgres.repo(), postgres.outside
    done = asyncio.Event()

    async def finishes() -> None:
        try:
            for _ in range(25):
                run = one_text()
                await repo.create_started(run)
                assert await repo.mark_succeeded(run, success(run)) == Finished()
                assert await unreadable(seen) == []
                await aged(seen, run)
        finally:
            done.set()

    async def prunes() -> None:
        while not done.is_set():
            await prune(pg_executor, older_than_s=DAY_S)

    await asyncio.gather(finishes(), prunes())
    await prune(pg_executor, older_than_s=DAY_S)
    assert await ids(seen) == set()
    assert await seen.payloads() == []


@pytest.mark.pg
async def test_rows_that_somebody_writes_to_are_passed_by(postgres: Ledger, pg_executor: Executor):
    """A prune waits for nobody, so it can deadlock with nobody."""
    held, free = [await answered(postgres, one_text(name)) for name in ("held", "free")]
    seen = postgres.outside
    await aged(seen, held, free)
    async with seen.engine.connect() as connection:
        table = LLMRun.__table__
        await connection.execute(sa.update(table).where(table.c.id == held.run_id).values(replayed_count=1))
        assert (await prune(pg_executor, older_than_s=DAY_S)).runs == 1
        await connection.commit()
    assert await ids(seen) == {held.run_id}
    assert len(await seen.attempts(held.run_id)) == 1
    assert (await prune(pg_executor, older_than_s=DAY_S)).runs == 1


async def _finish_slowly(
    autonomous: Ledger, run: NewRun, written: asyncio.Event, may_commit: asyncio.Event
) -> None:
    """Execute the finish of `run` on a connection of our own, and commit it when we may."""
    settled = settlement.of_success(
        run,
        success(run),
        owner=rules_of(settings_for(autonomous.url), "one").owner,
        key_ttl_s=None,
        keep=True,
    )
    engine = build_engine(autonomous.url, timeout_s=5)
    async with AsyncSession(engine) as session:
        await SessionExecutor(session, timeout_s=5).transaction(lambda: protocol.finish(settled))
        written.set()
        await may_commit.wait()
        await session.commit()
    await engine.dispose()


async def test_a_cancelled_prune_ends_with_a_whole_transaction(
    autonomous: Ledger, executor: Paused, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retention, "LONGEST_WRITE_S", 60.0)
    runs = [await answered(autonomous, one_text(f"{n}")) for n in range(4)]
    seen = autonomous.outside
    await aged(seen, *runs)
    job: list[asyncio.Task[Pruned]] = []
    executor.between = lambda: job[0].cancel() and None
    job.append(asyncio.create_task(prune(executor, older_than_s=DAY_S, batch=2)))
    with pytest.raises(asyncio.CancelledError):
        await job[0]
    executor.between = lambda: None
    left = await ids(seen)
    assert left == {run.run_id for run in runs[2:]}
    table = LLMAttempt.__table__
    assert {row["run_id"] for row in await seen.rows(sa.select(table.c.run_id))} == left
    assert executor.transactions == 1
    assert (await prune(executor, older_than_s=DAY_S)).payloads == 5


@pytest.mark.pg
async def test_a_prune_in_the_middle_of_a_hit_leaves_it_no_dangling_reference(
    postgres: Ledger, pg_executor: Executor
):
    """I20. The prune runs after the claim's first statement, for the next hit after its second, and so on."""
    rules = rules_of(settings_for(postgres.url), "two")
    for pause in (1, 2, 3):
        source = await answered(postgres, one_text(f"{pause}", cache=True), cache_enabled=True)
        repo = postgres.repo(cache_enabled=True)
        (found,) = (await repo.get_cached("w1", source.prompt_sha256, source.cache_candidates)).values()
        await aged(postgres.outside, source)
        async with AsyncSession(postgres.outside.engine) as session:
            inner = SessionExecutor(session, timeout_s=5)
            steps = protocol.claim(again(source), rules, found)
            step, taken = next(steps), 0
            with suppress(StopIteration):
                while True:
                    result = await inner.read(step)
                    taken += 1
                    if taken == pause:
                        await prune(pg_executor, older_than_s=DAY_S)
                    step = steps.send(result)
            await session.commit()
        assert taken == 3
        assert await unreadable(postgres.outside) == []

"""Pruning: what is old goes, whoever holds a live key stays, and no answer loses its text to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.engine import build_engine
from app.llm.errors import LLMAnswerNotStored
from app.llm.persistence import ledger as protocol
from app.llm.persistence import retention, settlement, statements_retention
from app.llm.persistence.executor import EngineExecutor, Result, SessionExecutor, Step, Steps
from app.llm.persistence.models import LLMAttempt, LLMPayload
from app.llm.persistence.retention import Pruned, preview, prune
from app.llm.ports import Hit, NewRun, Replay, Won
from app.llm.testing.client import ScriptedClient
from tests.conformance.conftest import Ledger
from tests.support.ledger import Outside, again, failure, new_run, request, settings_for, success
from tests.support.service import rules_of, service

DAY_S = 86_400.0
KEYED = request(idempotency_key="k1")


class Paused:
    """An executor that lets a test act before each transaction and between its steps, which run as ever."""

    def __init__(self, inner: EngineExecutor) -> None:
        self._inner = inner
        self.before: Callable[[], Any] | None = None
        self.between: Callable[[], None] = lambda: None
        """Called after each statement, and before the commit."""
        self.transactions = 0

    async def transaction(self, steps: Callable[[], Steps[Any]]) -> Any:
        self.transactions += 1
        if self.before is not None:
            await self.before()

        return await self._inner.transaction(lambda: self._watched(steps()))

    def _watched(self, steps: Steps[Any]) -> Steps[Any]:
        step = next(steps)
        try:
            while True:
                result = yield step
                self.between()
                step = steps.send(result)
        except StopIteration as end:
            return end.value

    async def read(self, step: Step) -> Result:
        return await self._inner.read(step)

    async def close(self) -> None:
        await self._inner.close()


@pytest.fixture
async def executor(db_url: str) -> AsyncIterator[Paused]:
    made = Paused(EngineExecutor(db_url, timeout_s=5))
    yield made
    await made.close()


async def answered(ledger: Ledger, run: NewRun, text: str = "A box.", **values: Any) -> NewRun:
    """Return a run that was claimed and has its answer."""
    repo = ledger.repo(**values)
    assert isinstance(await repo.create_started(run), Won)
    await repo.mark_succeeded(run, success(run, text))
    return run


async def aged(seen: Outside, *runs: NewRun, seconds: float = 2 * DAY_S, payloads: bool = True) -> None:
    """Let runs have finished, and all payloads have been referred to, `seconds` ago."""
    for run in runs:
        await seen.age(run.run_id, seconds)
    if payloads:
        await age_payloads(seen, seconds)


async def age_payloads(seen: Outside, seconds: float = 2 * DAY_S) -> None:
    async with seen.engine.begin() as connection:
        past = datetime.now(UTC) - timedelta(seconds=seconds)
        await connection.execute(sa.update(LLMPayload).values(last_ref_at=past))


async def delete_rows(seen: Outside, *runs: NewRun) -> None:
    """Leave the texts of runs behind, as a prune that was stopped does."""
    table = protocol.sql.runs
    async with seen.engine.begin() as connection:
        await connection.execute(sa.delete(table).where(table.c.id.in_([run.run_id for run in runs])))


async def ids(seen: Outside) -> set[str]:
    return {row["id"] for row in await seen.runs()}


async def unreadable(seen: Outside) -> list[str]:
    """Return the runs with an answer whose request or response is not there."""
    stored = {(row["workspace_id"], row["sha256"]) for row in await seen.payloads()}
    return [
        row["id"]
        for row in await seen.runs(status="SUCCEEDED")
        for name in ("request_payload", "response_payload")
        if row[name] is not None and (row["workspace_id"], row[name]) not in stored
    ]


def one_text(text: str = "same", **fields: Any) -> NewRun:
    """Return a run without a key: several of them share their payloads."""
    return new_run(request(text), **fields)


# -- which runs go


async def test_an_old_run_goes_with_its_attempts_and_its_texts(autonomous: Ledger, executor: Paused):
    old, young = one_text("old"), one_text("young")
    for run in (old, young):
        await answered(autonomous, run, f"answer to {run.run_id}")
    seen = autonomous.outside
    await aged(seen, old)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(runs=1, attempts=1, payloads=2)
    assert await ids(seen) == {young.run_id}
    assert [len(await seen.attempts(run.run_id)) for run in (old, young)] == [0, 1]
    assert len(await seen.payloads()) == 2
    assert await unreadable(seen) == []


async def test_runs_that_failed_or_were_abandoned_go_as_well(autonomous: Ledger, executor: Paused):
    repo, seen = autonomous.repo(), autonomous.outside
    failed, abandoned = one_text("failed"), one_text("abandoned")
    for run in (failed, abandoned):
        await repo.create_started(run)
    await repo.mark_failed(failed, failure())
    assert await repo.release(abandoned.run_id)
    await aged(seen, failed, abandoned)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(runs=2, attempts=1, payloads=1)
    assert await ids(seen) == set()


async def test_a_started_run_is_never_touched(autonomous: Ledger, executor: Paused):
    """I18. However old it is, and even if a damaged row says that it has finished."""
    repo, seen = autonomous.repo(), autonomous.outside
    live, odd = one_text("live"), one_text("odd")
    for run in (live, odd):
        await repo.create_started(run)
        await seen.update(run.run_id, created_at=datetime(2020, 1, 1, tzinfo=UTC))
    await aged(seen, odd)
    before = await seen.runs()
    for payloads_only in (False, True):
        assert await prune(executor, older_than_s=0, keys=True, payloads_only=payloads_only) == Pruned()
    assert await seen.runs() == before


async def test_a_live_key_keeps_its_run_unless_keys_are_given_up(autonomous: Ledger, executor: Paused):
    """I18. A key without an expiry is live for ever."""
    run = await answered(autonomous, new_run(KEYED))
    seen = autonomous.outside
    await aged(seen, run)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(kept_live_keys=1)
    assert isinstance(await autonomous.repo().create_started(again(run)), Replay)

    assert await prune(executor, older_than_s=DAY_S, keys=True) == Pruned(runs=1, attempts=1, payloads=2)
    assert isinstance(await autonomous.repo().create_started(again(run)), Won)


async def test_a_key_that_has_expired_keeps_nothing(autonomous: Ledger, executor: Paused):
    expired = await answered(autonomous, new_run(KEYED), idempotency_ttl_s=3600)
    other = new_run(request(idempotency_key="k2"))
    await answered(autonomous, other, idempotency_ttl_s=3600)
    seen = autonomous.outside
    await aged(seen, expired, other)
    await seen.expire(expired.run_id)
    pruned = await prune(executor, older_than_s=DAY_S)
    assert (pruned.runs, pruned.kept_live_keys) == (1, 1)
    assert await ids(seen) == {other.run_id}


async def test_another_workspace_is_left_alone(autonomous: Ledger, executor: Paused):
    """I13. The same text is stored once for each workspace, and theirs stays even where no run refers to it."""
    mine, *theirs = [one_text(workspace=name) for name in ("w1", "w0", "w2")]
    for run in (mine, *theirs):
        await answered(autonomous, run)
    seen = autonomous.outside
    await aged(seen, mine, *theirs)
    pruned = await prune(executor, older_than_s=DAY_S, workspace_id="w1")
    assert pruned == Pruned(runs=1, attempts=1, payloads=2)
    assert await ids(seen) == {run.run_id for run in theirs}
    await delete_rows(seen, *theirs)
    assert await prune(executor, older_than_s=DAY_S, workspace_id="w1") == Pruned()
    assert {row["workspace_id"] for row in await seen.payloads()} == {"w0", "w2"}
    assert (await prune(executor, older_than_s=DAY_S)).payloads == 4


async def test_batches_of_two_do_what_one_batch_does(
    autonomous: Ledger, executor: Paused, monkeypatch: pytest.MonkeyPatch
):
    """Rows that stay lie between rows that go, and more of them than one read looks at."""
    monkeypatch.setattr(statements_retention, "SCAN", 3)
    old, kept = [], []
    for n in range(4):
        old.append(await answered(autonomous, one_text(f"old {n}"), f"{n}"))
        kept.append(await answered(autonomous, new_run(request(f"kept {n}", idempotency_key=f"k{n}"))))
    old += [await answered(autonomous, one_text(f"later {n}"), f"later {n}") for n in range(3)]
    young = [await answered(autonomous, one_text(f"young {n}"), f"young {n}") for n in range(5)]
    seen = autonomous.outside
    await aged(seen, *old, *kept)
    async with seen.engine.begin() as connection:
        table = protocol.sql.runs
        past = datetime.now(UTC) - timedelta(days=3)
        await connection.execute(
            sa.update(table)
            .where(table.c.id.in_([run.run_id for run in (*old, *kept)]))
            .values(created_at=past)
        )
    foretold = await preview(executor, older_than_s=DAY_S)
    told: list[Pruned] = []
    pruned = await prune(executor, older_than_s=DAY_S, batch=2, progress=told.append)
    assert pruned == Pruned(runs=7, attempts=7, payloads=14, kept_live_keys=4)
    assert foretold == replace(pruned, payloads=0)
    assert await ids(seen) == {run.run_id for run in (*kept, *young)}
    assert await unreadable(seen) == []
    assert told[-1] == pruned
    assert len(told) == executor.transactions > 7
    sizes = [
        (later.runs - sooner.runs, later.payloads - sooner.payloads)
        for sooner, later in zip([Pruned(), *told], told, strict=False)
    ]
    assert max(max(size) for size in sizes) == 2


async def test_a_preview_changes_nothing(autonomous: Ledger, executor: Paused):
    old = await answered(autonomous, one_text())
    keyed = await answered(autonomous, new_run(KEYED))
    seen = autonomous.outside
    await aged(seen, old, keyed)
    before = await seen.runs(), await seen.payloads()
    assert await preview(executor, older_than_s=DAY_S) == Pruned(runs=1, attempts=1, kept_live_keys=1)
    assert await preview(executor, older_than_s=DAY_S, keys=True) == Pruned(runs=2, attempts=2)
    assert await preview(executor, older_than_s=DAY_S, payloads_only=True) == Pruned(runs=2)
    assert (await seen.runs(), await seen.payloads()) == before
    assert executor.transactions == 0


@pytest.mark.parametrize(
    "wrong",
    [{"older_than_s": -1}, {"older_than_s": float("nan")}, {"older_than_s": 1e12}, {"batch": 0}],
    ids=["before now", "no number", "before writing", "no rows"],
)
async def test_what_is_out_of_range_is_refused_before_anything_goes(
    autonomous: Ledger, executor: Paused, wrong: dict[str, Any]
):
    old = await answered(autonomous, one_text())
    await aged(autonomous.outside, old)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        await prune(executor, **{"older_than_s": DAY_S, **wrong})
    assert await ids(autonomous.outside) == {old.run_id}


# -- payloads


async def test_a_text_stays_while_any_run_refers_to_it(autonomous: Ledger, executor: Paused):
    old, young = one_text(), one_text()
    for run in (old, young):
        await answered(autonomous, run)
    seen = autonomous.outside
    await aged(seen, old)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(runs=1, attempts=1)
    assert await unreadable(seen) == []
    await aged(seen, young)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(runs=1, attempts=1, payloads=2)


async def test_a_hit_keeps_the_answer_of_a_source_that_is_gone(autonomous: Ledger, executor: Paused):
    source = one_text(cache=True)
    await answered(autonomous, source, "kept", cache_enabled=True)
    seen = autonomous.outside
    hit = again(source)
    assert isinstance(await autonomous.repo(cache_enabled=True).create_started(hit), Hit)
    await aged(seen, source)
    assert (await prune(executor, older_than_s=DAY_S)).runs == 1
    assert await ids(seen) == {hit.run_id}
    assert (await seen.run(hit.run_id))["response_payload"] is not None
    assert await unreadable(seen) == []


async def test_a_text_of_the_last_hour_is_left_to_a_later_prune(autonomous: Ledger, executor: Paused):
    """Somebody may be about to refer to it."""
    run = await answered(autonomous, one_text())
    seen = autonomous.outside
    await aged(seen, run, payloads=False)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(runs=1, attempts=1)
    await age_payloads(seen, 3500)
    assert await prune(executor, older_than_s=DAY_S) == Pruned()
    await age_payloads(seen, 3700)
    assert await prune(executor, older_than_s=DAY_S) == Pruned(payloads=2)


async def test_large_texts_go_in_smaller_batches(
    autonomous: Ledger, executor: Paused, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retention, "MAX_BATCH_BYTES", 5000)
    runs = [await answered(autonomous, one_text(f"{n}" + "x" * 2000), f"{n}" + "y" * 2000) for n in range(4)]
    await aged(autonomous.outside, *runs)
    assert (await prune(executor, older_than_s=DAY_S)).payloads == 8
    assert executor.transactions == 1 + 4
    assert await autonomous.outside.payloads() == []


async def test_payloads_only_keeps_the_row_and_its_key_and_forgets_the_words(
    autonomous: Ledger, executor: Paused
):
    """I16. Nothing of the row but its two references changes."""
    keyed, young = new_run(KEYED), one_text("young")
    await answered(autonomous, keyed, "old words")
    await answered(autonomous, young, "new words")
    seen = autonomous.outside
    await aged(seen, keyed)
    before = await seen.run(keyed.run_id)
    assert await prune(executor, older_than_s=DAY_S, payloads_only=True) == Pruned(runs=1, payloads=2)
    after = await seen.run(keyed.run_id)
    assert after == {**before, "request_payload": None, "response_payload": None}
    assert len(await seen.attempts(keyed.run_id)) == 1
    assert await unreadable(seen) == []
    state = await autonomous.repo().create_started(again(keyed))
    assert isinstance(state, Replay)
    assert state.answer.response is None
    assert await prune(executor, older_than_s=DAY_S, payloads_only=True) == Pruned()


async def test_a_key_whose_words_were_forgotten_says_so_and_is_not_executed_again(
    autonomous: Ledger, executor: Paused
):
    client = ScriptedClient()
    async with service(autonomous.url, client) as llm:
        run_id = (await llm.chat(KEYED)).run_id
        await autonomous.outside.age(run_id, 2 * DAY_S)
        await age_payloads(autonomous.outside)
        await prune(executor, older_than_s=DAY_S, payloads_only=True)
        with pytest.raises(LLMAnswerNotStored):
            await llm.chat(KEYED)
    assert client.sends == 1


# -- beside the ledger's own writes


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
    finishing: list[asyncio.Task[Any]] = []

    def finish() -> None:
        finishing.append(asyncio.create_task(repo.mark_succeeded(run, success(run))))

    executor.between = finish
    assert await prune(executor, older_than_s=DAY_S) == Pruned(payloads=2)
    await asyncio.gather(*finishing)
    assert len(finishing) == 1
    assert len(await autonomous.outside.payloads()) == 2
    assert await unreadable(autonomous.outside) == []


async def test_finishes_and_prunes_at_the_same_time_lose_no_text(autonomous: Ledger, executor: Paused):
    """I20. All runs share two texts, which look long unused whenever nobody touches them."""
    repo, seen = autonomous.repo(), autonomous.outside
    done = asyncio.Event()

    async def finishes() -> None:
        try:
            for _ in range(25):
                run = one_text()
                await repo.create_started(run)
                await repo.mark_succeeded(run, success(run))
                assert await unreadable(seen) == []
                await aged(seen, run)
        finally:
            done.set()

    async def prunes() -> None:
        while not done.is_set():
            await prune(executor, older_than_s=DAY_S)

    await asyncio.gather(finishes(), prunes())
    await prune(executor, older_than_s=DAY_S)
    assert await ids(seen) == set()
    assert await seen.payloads() == []


@pytest.mark.pg
async def test_rows_that_somebody_writes_to_are_passed_by(pg_url: str):
    """PostgreSQL: a prune waits for nobody, so it can deadlock with nobody."""
    async with AsyncExitStack() as stack:
        ledger = Ledger(pg_url, "autonomous", stack)
        stack.push_async_callback(ledger.outside.close)
        executor = EngineExecutor(pg_url, timeout_s=5)
        stack.push_async_callback(executor.close)
        held, free = await answered(ledger, one_text("held")), await answered(ledger, one_text("free"))
        await aged(ledger.outside, held, free)
        async with ledger.outside.engine.connect() as connection:
            table = protocol.sql.runs
            await connection.execute(
                sa.update(table).where(table.c.id == held.run_id).values(replayed_count=1)
            )
            assert (await prune(executor, older_than_s=DAY_S)).runs == 1
            await connection.commit()
        assert await ids(ledger.outside) == {held.run_id}
        assert len(await ledger.outside.attempts(held.run_id)) == 1
        assert (await prune(executor, older_than_s=DAY_S)).runs == 1


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


async def test_a_cancelled_prune_ends_with_a_whole_batch(autonomous: Ledger, executor: Paused):
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


async def test_a_prune_looks_up_references_by_index(autonomous: Ledger, executor: Paused):
    """Without these indexes each payload would cost a look at every run."""
    for n in range(3):
        await answered(autonomous, one_text(f"{n}"))
    which = statements_retention.Selection(older_than_s=0, workspace_id=None, payloads_only=False, keys=False)
    step = statements_retention.find_orphans(which, ("", ""), 10)
    async with autonomous.outside.engine.connect() as connection:
        dialect = connection.dialect
        text = str(step.statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))  # type: ignore[attr-defined]
        sqlite = dialect.name == "sqlite"
        if not sqlite:
            await connection.exec_driver_sql("SET enable_seqscan = off")  # so few rows need no index
        plan = str(
            (
                await connection.exec_driver_sql(f"{'EXPLAIN QUERY PLAN' if sqlite else 'EXPLAIN'} {text}")
            ).all()
        )
    assert "ix_llm_runs_request_payload" in plan
    assert "ix_llm_runs_response_payload" in plan

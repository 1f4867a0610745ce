"""Pruning: what is old goes, whoever holds a live key stays, and what was said goes last."""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.sql.visitors import cloned_traverse

from app.bootstrap import connect
from app.llm.errors import LLMAnswerNotStored
from app.llm.persistence import retention, statements_retention
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.executor import Step
from app.llm.persistence.models import LLMRun
from app.llm.persistence.retention import Pruned, preview, prune
from app.llm.ports import Hit, Replay, Won
from app.llm.testing.client import ScriptedClient
from tests.conformance.conftest import Ledger
from tests.support.ledger import Outside, again, failure, new_run, request
from tests.support.retention import (
    DAY_S,
    Paused,
    age_payloads,
    aged,
    answered,
    delete_rows,
    ids,
    one_text,
    unreadable,
)
from tests.support.service import service

KEYED = request(idempotency_key="k1")


@pytest.fixture
async def executor(db_url: str) -> AsyncIterator[Paused]:
    made = Paused(connect(db_url, timeout_s=5))
    yield made
    await made.close()


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
    assert await repo.release(abandoned.run_id, "w1")
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
        table = LLMRun.__table__
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


async def test_a_write_that_has_taken_long_leaves_the_rest_to_the_next_one(
    autonomous: Ledger, executor: Paused, monkeypatch: pytest.MonkeyPatch
):
    """Every write takes the first piece only: one run, or one payload."""
    monkeypatch.setattr(retention, "LONGEST_WRITE_S", -1.0)
    old = [await answered(autonomous, one_text(f"{n}"), f"{n}") for n in range(5)]
    seen = autonomous.outside
    await aged(seen, *old)
    assert await prune(executor, older_than_s=DAY_S, batch=39) == Pruned(runs=5, attempts=5, payloads=10)
    assert executor.transactions == 15
    assert (await seen.runs(), await seen.payloads()) == ([], [])


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
    chance = random.Random(1)  # noqa: S311  # no compression makes these small
    asked, said = ([chance.randbytes(2000).hex() for _ in range(4)] for _ in range(2))
    runs = [await answered(autonomous, one_text(ask), say) for ask, say in zip(asked, said, strict=True)]
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


async def test_a_page_is_found_by_its_keys_and_its_references_by_index(autonomous: Ledger):
    """Nothing that a prune does may read a whole table for each page, or for each payload."""
    which = statements_retention.Selection(older_than_s=0, workspace_id=None, payloads_only=False, keys=False)
    sql, seen = statements_retention, autonomous.outside
    look = await plan_of(seen, sql.find_orphans(which, ("", ""), 10))
    deletion = await plan_of(seen, sql.delete_orphans(("", ""), ("w1", "f")))
    if seen.engine.dialect.name == "sqlite":  # PostgreSQL may prefer any index of so small a table
        for plan in (look, deletion):
            assert "ix_llm_runs_request_payload" in plan
            assert "ix_llm_runs_response_payload" in plan
    runs = await plan_of(seen, sql.delete_runs(which, "", "f"))
    emptied = await plan_of(seen, sql.empty_runs(which, "", "f"))
    for plan in (deletion, runs, emptied, await plan_of(seen, sql.delete_attempts("", "f"))):
        assert "SCAN " not in plan  # SQLite, where SEARCH uses an index
        assert "Seq Scan" not in plan


async def plan_of(seen: Outside, step: Step) -> str:
    def given(bind: sa.BindParameter[str]) -> None:
        bind.value = step.params.get(bind.key.removeprefix(PREFIX), bind.value)  # type: ignore[union-attr]

    async with seen.engine.connect() as connection:
        dialect = connection.dialect
        statement = cloned_traverse(step.statement, {}, {"bindparam": given})  # type: ignore[call-overload]
        text = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        if dialect.name == "sqlite":
            return str((await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")).all())
        await connection.exec_driver_sql("SET enable_seqscan = off")  # so few rows need no index
        return str((await connection.exec_driver_sql(f"EXPLAIN {text}")).all())

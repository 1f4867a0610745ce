"""What a rule must hold on its own, without the rules beside it that usually cover for it."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app.bootstrap import connect
from app.llm.errors import LLMError, LLMLedgerError
from app.llm.persistence import statements as sql
from app.llm.persistence.executor import Executor, Step, Steps
from app.llm.persistence.ledger import record_hits
from app.llm.persistence.models import LLMPayload
from app.llm.persistence.retention import prune
from app.llm.ports import FlightHeld, Hit, Won
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, new_run, request, success

KEYED = request(idempotency_key="k1")


async def test_a_takeover_judges_the_lease_itself(autonomous: Ledger):
    """I7: between the look and the takeover the database's clock may be set back; then nothing is over yet."""
    run = new_run(KEYED)
    one = autonomous.repo()
    await one.create_started(run)

    def take_over() -> Steps[int]:
        return (yield Step(sql.TAKE_OVER, {"id": run.run_id})).rowcount

    assert await one._executor.transaction(take_over) == 0
    assert (await autonomous.outside.run(run.run_id))["status"] == "STARTED"
    await autonomous.outside.end_lease(run.run_id)
    assert await one._executor.transaction(take_over) == 1


async def test_a_fenced_owner_is_not_given_the_answer_of_another_request(ledger: Ledger):
    """I15: its key was released, and somebody used it for something else."""
    run, other = new_run(KEYED), new_run(request("Something else", idempotency_key="k1"))
    one, two = ledger.repo("one"), ledger.repo("two")
    await one.create_started(run)
    await ledger.seen()
    assert await two.release(run.run_id, "w1")
    assert await two.create_started(other) == Won(run_id=other.run_id)
    await two.mark_succeeded(other, success(other, "not yours"))
    await ledger.seen()

    finished = await one.mark_succeeded(run, success(run))
    assert (finished.fenced, finished.winner, finished.successor_run_id) == (True, None, None)


async def test_a_run_that_waits_for_a_flight_fences_nobody(autonomous: Ledger):
    """I8: the holder of its key is dead, and stays as it is until the key can be had."""
    holder, leader = new_run(KEYED), new_run(request(), flight=True)
    one, two = autonomous.repo("one"), autonomous.repo("two")
    await one.create_started(holder)
    await autonomous.outside.end_lease(holder.run_id)
    await two.create_started(leader)
    before = await autonomous.outside.run(holder.run_id)
    held = await two.create_started(new_run(KEYED, flight=True))
    assert isinstance(held, FlightHeld)
    assert held.run_id == leader.run_id
    assert await autonomous.outside.run(holder.run_id) == before
    assert before["status"] == "STARTED"


async def test_an_answer_of_another_candidate_is_not_found(ledger: Ledger):
    one, run = ledger.repo(), new_run()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run))
    first, second = (candidate.identity for candidate in run.route.kept)
    assert list(await one.get_cached("w1", run.prompt_sha256, [first])) == [first]
    assert await one.get_cached("w1", run.prompt_sha256, [second]) == {}


async def test_an_answer_whose_text_is_gone_is_not_found(ledger: Ledger):
    one, run = ledger.repo(), new_run()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run))
    await (await ledger.seen()).update(run.run_id, response_payload="0" * 64)
    assert await one.get_cached("w1", run.prompt_sha256, [each.identity for each in run.route.kept]) == {}
    assert await one.get_cached("w1", run.prompt_sha256, []) == {}


async def test_a_hit_renews_the_texts_that_it_refers_to(ledger: Ledger):
    """I20: a prune that cannot see the hit's row yet must see that its texts are needed."""
    one, source = ledger.repo(cache_enabled=True), new_run(cache=True)
    await one.create_started(source)
    await one.mark_succeeded(source, success(source))
    await _let_texts_age(ledger)
    assert isinstance(await one.create_started(again(source)), Hit)
    await _were_renewed(ledger, texts=2)


async def test_hits_that_are_recorded_together_renew_the_texts_that_they_refer_to(ledger: Ledger):
    """I20: as above, of several sources and several times of one."""
    one = ledger.repo(cache_enabled=True)
    hits = []
    for source in [new_run(request(said), cache=True) for said in ("This", "That")]:
        await one.create_started(source)
        await one.mark_succeeded(source, success(source))
        found = await one.get_cached("w1", source.prompt_sha256, source.cache_candidates)
        hits += [(again(source), answer) for answer in found.values() for _ in range(2)]
    await _let_texts_age(ledger)
    await one._transact(lambda: record_hits(hits, one.rules))
    await _were_renewed(ledger, texts=3)  # two questions, one answer
    assert len(await (await ledger.seen()).runs(status="SUCCEEDED")) == 6


async def _let_texts_age(ledger: Ledger) -> None:
    async with (await ledger.seen()).engine.begin() as connection:
        long_ago = datetime.now(UTC) - timedelta(days=1)
        await connection.execute(sa.update(LLMPayload.__table__).values(last_ref_at=long_ago))


async def _were_renewed(ledger: Ledger, *, texts: int) -> None:
    ages = [row["last_ref_at"] for row in await (await ledger.seen()).payloads()]
    assert len(ages) == texts
    assert min(ages) > datetime.now(UTC) - timedelta(hours=1)


async def test_a_prune_judges_every_row_of_a_page(autonomous: Ledger):
    """I18: a page is a range of ids, and what must stay may lie between two rows that go."""
    one, seen = autonomous.repo(), autonomous.outside
    old, keyed, young, started, last = runs = [new_run(), new_run(KEYED), new_run(), new_run(), new_run()]
    for run in runs:
        await one.create_started(run)
        if run is not started:
            await one.mark_succeeded(run, success(run))
        if run is not young:
            await seen.update(run.run_id, created_at=datetime.now(UTC) - timedelta(days=3))
    for run in (old, keyed, last):
        await seen.age(run.run_id, 2 * 86_400)
    executor = connect(autonomous.url, timeout_s=5)
    try:
        pruned = await prune(executor, older_than_s=86_400)
    finally:
        await executor.close()
    assert (pruned.runs, pruned.kept_live_keys) == (2, 1)
    assert {row["id"] for row in await seen.runs()} == {keyed.run_id, young.run_id, started.run_id}


async def test_a_fault_has_no_error_of_the_driver_behind_it(autonomous: Ledger):
    """I17: such an error holds the statement and, in its details, the values of a row."""

    def steps() -> Steps[None]:
        yield Step(sa.text("SELECT * FROM nowhere WHERE x = :p"), {"p": "my prompt"})

    executor: Executor = autonomous.repo()._executor
    for work in (executor.transaction(steps), executor.read(next(steps()))):
        with pytest.raises(LLMLedgerError) as caught:
            await work
        error: BaseException | None = caught.value
        while error is not None:
            assert isinstance(error, LLMError)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def test_an_error_of_the_driver_shows_no_values(engine: AsyncEngine):
    """I17: in a log of the application that uses an engine of ours, too."""
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            await connection.execute(sa.text("SELECT * FROM nowhere WHERE x = :p"), {"p": "my prompt"})
    assert "my prompt" not in str(caught.value)

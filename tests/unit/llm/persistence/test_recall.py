"""Answers at hand: never another tenant's, never another request's, never one that has had its time."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.llm.errors import LLMKeyConflict
from app.llm.persistence.recall import FRESH_S, Recall, of_key, of_prompt
from app.llm.ports import StoredAnswer
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import CacheMode, ServedFrom
from tests.support.ledger import Outside, new_run, request, response
from tests.support.service import QuickClock, rig

KEYED = request(idempotency_key="k1")
KEY = of_key("w1", "k1")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def answer(text: str = "said", *, left_s: float | None = None, size: int = 10) -> StoredAnswer:
    run = new_run()
    return StoredAnswer(
        run_id=run.run_id,
        candidate_sha256="c",
        request_sha256=run.request_sha256,
        response=response(run, text),
        left_s=left_s,
        size_bytes=size,
    )


def test_an_answer_is_at_hand_for_as_long_as_a_look_up_counts():
    clock = Clock()
    recall = Recall(100, now_s=clock)
    recall.keep(KEY, said := answer(), since=recall.forgotten)
    clock.now_s += FRESH_S - 0.01
    assert recall.get(KEY) is said
    clock.now_s += 0.01
    assert recall.get(KEY) is None


def test_an_answer_that_expires_sooner_is_at_hand_until_then():
    clock = Clock()
    recall = Recall(100, now_s=clock)
    recall.keep(KEY, answer(left_s=0.25), since=recall.forgotten)
    clock.now_s += 0.25
    assert recall.get(KEY) is None


def test_places_of_other_tenants_keys_prompts_and_candidates_do_not_meet():
    places = [
        of_key("a", "bc"), of_key("ab", "c"), of_key("a", "b"), of_prompt("a", "b", "c"), of_prompt("x", "b", "c"),
        of_prompt("a", "x", "c"), of_prompt("a", "b", "x"),
    ]  # fmt: skip
    recall = Recall(1000, now_s=Clock())
    for place in places:
        recall.keep(place, answer(str(place)), since=recall.forgotten)
    assert [recall.get(place).response.text for place in places] == [str(place) for place in places]  # type: ignore[union-attr]


def test_together_they_take_no_more_than_they_may_and_the_least_used_goes_first():
    recall = Recall(25, now_s=Clock())
    first, second, third = (of_key("w", name) for name in "abc")
    recall.keep(first, answer(), since=0)
    recall.keep(second, answer(), since=0)
    assert recall.get(first)
    recall.keep(third, answer(), since=0)
    assert [recall.get(place) is not None for place in (first, second, third)] == [True, False, True]
    recall.keep(second, answer(size=26), since=0)
    assert recall.get(second) is None
    recall.keep(first, answer(size=20), since=0)
    assert [recall.get(place) is not None for place in (first, third)] == [True, False]


def test_nothing_is_kept_where_nothing_may_be_or_nothing_is():
    recall = Recall(0, now_s=Clock())
    recall.keep(KEY, answer(), since=0)
    assert recall.get(KEY) is None
    recall, unsaid = Recall(100, now_s=Clock()), answer()
    hashes_only = StoredAnswer(
        run_id="r", candidate_sha256="c", request_sha256=unsaid.request_sha256, response=None
    )
    recall.keep(KEY, hashes_only, since=0)
    assert recall.get(KEY) is None


def test_a_look_up_that_began_before_something_was_forgotten_is_not_kept():
    recall = Recall(100, now_s=Clock())
    since = recall.forgotten
    recall.forget(KEY)
    recall.keep(KEY, answer(), since=since)
    assert recall.get(KEY) is None


# -- in a service


async def test_a_burst_of_replays_asks_the_database_once(db_url: str):
    async with rig(db_url) as rigged:
        first = await rigged.llm.chat(KEYED)
        rigged.ledger.seen.clear()
        again = [await rigged.llm.chat(KEYED) for _ in range(5)]
        assert {(each.text, each.run_id, each.served_from) for each in again} == {
            (first.text, first.run_id, ServedFrom.REPLAY)
        }
        assert rigged.ledger.seen == ["read"]
        rigged.repo._clock.slept.append(FRESH_S)  # type: ignore[attr-defined]
        await rigged.llm.chat(KEYED)
        assert rigged.ledger.seen == ["read", "read"]


async def test_another_tenant_with_the_same_key_gets_nothing_from_memory(db_url: str):
    """I13."""
    async with rig(db_url, cache_enabled=True) as rigged:
        for _ in range(2):
            await rigged.llm.chat(KEYED)
        theirs = await rigged.llm.chat(request(idempotency_key="k1", metadata={"workspace_id": "w2"}))
        assert (theirs.text, theirs.served_from) == ("answer 2", ServedFrom.LIVE)


async def test_another_request_under_a_key_in_memory_is_a_conflict(db_url: str):
    """I15."""
    async with rig(db_url) as rigged:
        for _ in range(2):
            await rigged.llm.chat(KEYED)
        with pytest.raises(LLMKeyConflict):
            await rigged.llm.chat(request("Other", idempotency_key="k1"))


async def test_a_key_that_expires_is_executed_again_to_the_second(db_url: str):
    clock = QuickClock()
    async with rig(db_url, clock=clock, idempotency_ttl_s=0.4) as rigged:
        await rigged.llm.chat(KEYED)
        assert (await rigged.llm.chat(KEYED)).served_from is ServedFrom.REPLAY
        outside = Outside(db_url)
        (row,) = await outside.runs()
        await outside.expire(row["id"])
        await outside.close()
        clock.slept.append(0.4)  # of the second that a look-up counts, less than half is over
        assert (await rigged.llm.chat(KEYED)).text == "answer 2"


async def test_a_key_that_is_forced_here_gives_its_new_answer_at_once(db_url: str):
    """I5."""
    async with rig(db_url) as rigged:
        for _ in range(2):
            assert (await rigged.llm.chat(KEYED)).text == "answer 1"
        forced = await rigged.llm.chat(request(idempotency_key="k1", force_new_execution=True))
        assert (await rigged.llm.chat(KEYED)).text == forced.text == "answer 2"


async def test_a_key_that_is_forced_elsewhere_gives_its_new_answer_when_the_look_up_is_old(db_url: str):
    clock = QuickClock()
    async with (
        rig(db_url, clock=clock) as rigged,
        rig(db_url, ScriptedClient([text_reply("theirs")])) as elsewhere,
    ):
        for _ in range(2):
            await rigged.llm.chat(KEYED)
        await elsewhere.llm.chat(request(idempotency_key="k1", force_new_execution=True))
        clock.slept.append(FRESH_S)
        assert (await rigged.llm.chat(KEYED)).text == "theirs"


async def test_a_burst_of_hits_asks_the_database_once_and_leaves_a_row_each(db_url: str):
    async with rig(db_url, cache_enabled=True) as rigged:
        await rigged.llm.chat(request())
        rigged.ledger.seen.clear()
        hits = [await rigged.llm.chat(request()) for _ in range(4)]
        assert {each.served_from for each in hits} == {ServedFrom.CACHE}
        assert rigged.ledger.seen.count("read") == 1
        await rigged.llm.drain()
        outside = Outside(db_url)
        assert {row["id"] for row in await outside.runs()} >= {each.run_id for each in hits}
        await outside.close()


async def test_an_answer_that_was_refreshed_here_replaces_the_one_in_memory(db_url: str):
    async with rig(db_url, cache_enabled=True) as rigged:
        for _ in range(2):
            await rigged.llm.chat(request())
        await rigged.llm.chat(request(cache=CacheMode.REFRESH))
        assert (await rigged.llm.chat(request())).text == "answer 2"


async def test_a_hit_in_memory_ends_with_its_time_to_live(db_url: str):
    clock = QuickClock()
    async with rig(db_url, clock=clock, cache_enabled=True, cache_ttl_s=60.0) as rigged:
        await rigged.llm.chat(request())
        outside = Outside(db_url)
        (row,) = await outside.runs()
        await outside.age(row["id"], 59.7)
        assert (await rigged.llm.chat(request())).served_from is ServedFrom.CACHE
        await outside.age(row["id"], 61.0)
        await outside.close()
        clock.slept.append(0.4)
        assert (await rigged.llm.chat(request())).text == "answer 2"


async def test_memory_can_be_switched_off(db_url: str):
    async with rig(db_url, memory_cache_bytes=0) as rigged:
        await rigged.llm.chat(KEYED)
        rigged.ledger.seen.clear()
        for _ in range(3):
            await rigged.llm.chat(KEYED)
        assert rigged.ledger.seen == ["read"] * 3


async def test_a_joined_call_leaves_nothing_in_memory(db_url: str, engine: Any):
    from sqlalchemy.ext.asyncio import AsyncSession

    async with rig(db_url) as rigged:
        async with AsyncSession(engine) as session:
            joined = rigged.llm.joined(session)
            for _ in range(2):
                await joined.chat(KEYED)
            await session.rollback()
        assert (await rigged.llm.chat(KEYED)).text == "answer 2"


async def test_more_hits_than_may_wait_are_written_at_once(db_url: str, monkeypatch: pytest.MonkeyPatch):
    from app.llm.persistence import behind

    monkeypatch.setattr(behind, "MAX_HITS", 3)
    async with rig(db_url, cache_enabled=True) as rigged:
        await rigged.llm.chat(request())
        await asyncio.gather(*(rigged.llm.chat(request()) for _ in range(10)))
        assert rigged.repo._behind._unwritten <= 3
        await rigged.llm.drain()
        outside = Outside(db_url)
        assert len(await outside.runs(status="SUCCEEDED")) == 11
        await outside.close()


async def test_a_hit_that_cannot_be_written_takes_no_other_with_it(db_url: str):
    async with rig(db_url, cache_enabled=True) as rigged:
        source = await rigged.llm.chat(request())
        known = replace(answer(), run_id=source.run_id)
        good, bad = new_run(), new_run(stage=object())
        for run in (good, bad):
            await rigged.repo.record_hit(run, known)
        await rigged.llm.drain()
        outside = Outside(db_url)
        assert {row["id"] for row in await outside.runs()} == {source.run_id, good.run_id}
        await outside.close()

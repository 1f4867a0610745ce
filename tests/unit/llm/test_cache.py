"""The content cache and the single flight, end to end: who is served what, and who waits for whom."""

import asyncio
from typing import Any

import pytest

from app.llm.cache import CacheRules, may_be_hit, slot_for
from app.llm.errors import LLMLedgerUnavailable, LLMProviderError
from app.llm.messages import ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.settings import CacheMatch
from app.llm.testing.client import ScriptedClient
from app.llm.types import CacheMode, FinishReason, LLMCallContext, ServedFrom, TokenUsage
from tests.support.ledger import Outside, new_run, request, response, route_of
from tests.support.service import Watched, cut_off, limited, refused, rig, service

KEYED = request(idempotency_key="k1")


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


# -- rules


@pytest.mark.parametrize("mode", CacheMode)
def test_only_use_reads(mode: CacheMode):
    rules = CacheRules(enabled=True, match=CacheMatch.FIRST)
    assert rules.reads(request(cache=mode)) is (mode is CacheMode.USE)
    assert not CacheRules(enabled=False, match=CacheMatch.FIRST).reads(request(cache=mode))


def test_a_forced_execution_reads_nothing():
    rules = CacheRules(enabled=True, match=CacheMatch.ANY)
    assert not rules.reads(request(idempotency_key="k", force_new_execution=True))


@pytest.mark.parametrize(("match", "served"), [(CacheMatch.FIRST, 1), (CacheMatch.ANY, 2)])
def test_match_says_whose_answer_may_be_served_before_a_send(match: CacheMatch, served: int):
    route = route_of(request())
    identities = tuple(candidate.identity for candidate in route.kept)
    assert CacheRules(enabled=True, match=match).servable_now(route) == identities[:served]


def test_flight_slots_differ_by_workspace_prompt_and_first_candidate():
    """I13."""
    first, second = route_of(request()).kept
    slots = {slot_for("w1", "p", first), slot_for("w2", "p", first), slot_for("w1", "q", first)}
    assert len(slots | {slot_for("w1", "p", second)}) == 4
    assert slot_for("w1", "p", first) in slots


@pytest.mark.parametrize("finish", FinishReason)
def test_only_whole_answers_are_hits(finish: FinishReason):
    whole = finish in {FinishReason.STOP, FinishReason.TOOL_CALLS}
    assert may_be_hit(response(new_run(), finish=finish)) is whole


# -- hits


async def test_the_cache_is_off_unless_asked_for(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client) as llm:
        await llm.chat(request())
        await llm.chat(request())
    assert client.sends == 2


async def test_an_equal_prompt_is_a_hit_with_a_row_of_its_own(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client, cache_enabled=True) as llm:
        first = await llm.chat(request())
        second = await llm.chat(request())
    assert client.sends == 1
    assert second.served_from is ServedFrom.CACHE
    assert second.text == first.text
    assert second.run_id != first.run_id
    assert (second.usage.total_tokens, second.original_usage, second.cost_usd) == (0, first.usage, 0.0)
    row = await outside.run(second.run_id)
    assert (row["status"], row["source_run_id"], row["sends_noted"]) == ("SUCCEEDED", first.run_id, 0)
    assert (row["total_tokens"], row["saved_input_tokens"], row["saved_output_tokens"], row["cost_usd"]) == (
        0, 3, 5, 0.0,
    )  # fmt: skip
    assert await outside.attempts(second.run_id) == []


async def test_a_hit_with_a_key_owns_the_key_before_it_returns(db_url: str, outside: Outside):
    async with service(db_url, cache_enabled=True) as llm:
        first = await llm.chat(request())
        second = await llm.chat(KEYED)
        row = await outside.run(second.run_id)
        third = await llm.chat(KEYED)
    assert second.served_from is ServedFrom.CACHE
    assert (row["status"], row["idem_slot"], row["source_run_id"]) == ("SUCCEEDED", "k1", first.run_id)
    assert (third.served_from, third.run_id, third.text) == (ServedFrom.REPLAY, second.run_id, first.text)


async def test_a_hit_that_cannot_own_its_key_is_not_returned(db_url: str):
    async with rig(db_url, cache_enabled=True) as one:
        await one.llm.chat(request())
        one.ledger.away_for.add("claim")
        with pytest.raises(LLMLedgerUnavailable):
            await one.llm.chat(KEYED)


async def test_a_receiver_that_changes_its_answer_changes_nobody_elses(db_url: str):
    """Answers stay at hand in memory, and the arguments of a tool call are no frozen values."""
    call = ToolCallPart(id="x", name="look_up", arguments={"names": ["a"]})
    client = ScriptedClient(
        [ProviderReply(parts=(call,), finish_reason=FinishReason.TOOL_CALLS, usage=TokenUsage())]
    )
    async with service(db_url, client, cache_enabled=True) as llm:
        await llm.chat(KEYED)
        for asked in (KEYED, KEYED, request(), request()):
            (served,) = (await llm.chat(asked)).tool_calls
            assert served.arguments == {"names": ["a"]}
            served.arguments["names"].append("b")


async def test_keys_do_not_split_the_cache(sqlite_url: str):
    """Key, profile and metadata say nothing about what a given model answers."""
    client = ScriptedClient()
    async with service(sqlite_url, client, cache_enabled=True) as llm:
        await llm.chat(KEYED)
        for asked in (
            request(idempotency_key="k2"), request(profile="fast"), request(metadata={"page": 1}), request(timeout_s=9),
        ):  # fmt: skip
            assert (await llm.chat(asked)).served_from is ServedFrom.CACHE
    assert client.sends == 1


async def test_a_hit_of_another_workspace_is_none(db_url: str):
    """I13."""
    client = ScriptedClient()
    async with service(db_url, client, cache_enabled=True) as llm:
        await llm.chat(request())
        other = await llm.chat(request(), context=LLMCallContext(workspace_id="w2"))
    assert other.served_from is ServedFrom.LIVE
    assert client.sends == 2


async def test_refresh_feeds_the_cache_and_bypass_leaves_it_alone(db_url: str):
    client = ScriptedClient()
    async with service(db_url, client, cache_enabled=True) as llm:
        assert (await llm.chat(request())).text == "answer 1"
        assert (await llm.chat(request(cache="bypass"))).text == "answer 2"
        assert (await llm.chat(request())).text == "answer 1"
        assert (await llm.chat(request(cache="refresh"))).text == "answer 3"
        last = await llm.chat(request())
    assert (last.text, last.served_from, client.sends) == ("answer 3", ServedFrom.CACHE, 3)


async def test_an_answer_that_was_cut_off_is_asked_for_again(db_url: str):
    client = ScriptedClient([cut_off()])
    async with service(db_url, client, cache_enabled=True) as llm:
        first = await llm.chat(request())
        second = await llm.chat(request())
    assert (first.finish_reason, second.served_from, client.sends) == ("length", ServedFrom.LIVE, 2)


async def test_other_options_of_a_candidate_are_another_candidate(db_url: str):
    """The identity holds what changes answers: here the context window."""
    client = ScriptedClient()
    async with service(db_url, client, cache_enabled=True) as llm:
        await llm.chat(request())
    async with service(db_url, client, cache_enabled=True, ollama_num_ctx=4096) as llm:
        assert (await llm.chat(request())).served_from is ServedFrom.LIVE


@pytest.mark.parametrize(("match", "sends"), [("first", 1), ("any", 0)])
async def test_an_answer_of_a_later_candidate_is_served_as_match_says(db_url: str, match: str, sends: int):
    """`first` asks the first candidate, `any` serves what there is."""
    async with service(db_url, cache_enabled=True) as llm:
        await llm.chat(request(profile="advanced"))
    client = ScriptedClient()
    async with service(db_url, client, cache_enabled=True, cache_match=match) as llm:
        answer = await llm.chat(request())
    assert client.sends == sends
    assert answer.provider == ("ollama" if sends else "gemini")


async def test_a_fallback_candidates_match_is_served_instead_of_sending(db_url: str, outside: Outside):
    async with service(db_url, cache_enabled=True) as llm:
        source = await llm.chat(request(profile="advanced"))
    client = ScriptedClient([limited(), limited()])
    async with service(db_url, client, cache_enabled=True) as llm:
        answer = await llm.chat(KEYED)
        replay = await llm.chat(KEYED)
    assert [candidate.name for candidate, _ in client.sent] == ["ollama:first", "ollama:first"]
    assert (answer.served_from, answer.text, answer.provider) == (ServedFrom.CACHE, source.text, "gemini")
    assert (answer.usage.total_tokens, len(answer.attempts)) == (0, 2)
    assert (replay.text, replay.run_id) == (source.text, answer.run_id)
    row = await outside.run(answer.run_id)
    assert (row["status"], row["source_run_id"], row["sends_noted"], row["saved_output_tokens"]) == (
        "SUCCEEDED", source.run_id, 2, 5,
    )  # fmt: skip
    assert (row["total_tokens"], row["idem_slot"]) == (0, "k1")
    assert [each["status"] for each in await outside.attempts(answer.run_id)] == ["FAILED", "FAILED"]


async def test_without_persistence_the_cache_lives_in_the_process(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client, cache_enabled=True, persist_runs=False) as llm:
        first = await llm.chat(request())
        second = await llm.chat(request())
    assert (second.served_from, second.text, second.persisted) == (ServedFrom.CACHE, first.text, False)
    async with service(sqlite_url, client, cache_enabled=True, persist_runs=False) as llm:
        assert (await llm.chat(request())).served_from is ServedFrom.LIVE


async def test_a_damaged_answer_in_the_cache_is_asked_for_again(sqlite_url: str):
    """Whatever a stored answer has become, an unkeyed call can still be answered live."""
    import sqlalchemy as sa

    outside = Outside(sqlite_url)
    async with service(sqlite_url, cache_enabled=True) as llm:
        await llm.chat(request())
        async with outside.engine.begin() as connection:
            await connection.execute(sa.text("UPDATE llm_payloads SET bytes = :b"), {"b": b'{"v":99}'})
        answer = await llm.chat(request())
    assert answer.served_from is ServedFrom.LIVE
    await outside.close()


# -- one flight


async def _leader(client: ScriptedClient) -> None:
    """Let the first send begin."""
    while not client.sends:  # noqa: ASYNC110  # the scripted client has no event for it
        await asyncio.sleep(0)


async def test_twenty_equal_calls_are_one_send(db_url: str, outside: Outside):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, cache_enabled=True) as llm:
        calls = [asyncio.create_task(llm.chat(request())) for _ in range(20)]
        await _leader(client)
        client.gate.set()  # type: ignore[union-attr]
        answers = await asyncio.gather(*calls)
    assert client.sends == 1
    assert {answer.text for answer in answers} == {"answer 1"}
    assert sorted(answer.served_from for answer in answers) == ["cache"] * 19 + ["live"]
    rows = await outside.runs()
    assert len(rows) == len({answer.run_id for answer in answers}) == 20
    assert [row["status"] for row in rows] == ["SUCCEEDED"] * 20
    assert [row["flight_slot"] for row in rows] == [None] * 20


async def test_twenty_equal_calls_without_persistence_are_one_send(sqlite_url: str):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(sqlite_url, client, cache_enabled=True, persist_runs=False) as llm:
        calls = [asyncio.create_task(llm.chat(request())) for _ in range(20)]
        await _leader(client)
        client.gate.set()  # type: ignore[union-attr]
        answers = await asyncio.gather(*calls)
    assert client.sends == 1
    assert {answer.text for answer in answers} == {"answer 1"}


@pytest.mark.parametrize("persist", [True, False])
async def test_when_the_leader_fails_one_follower_becomes_the_leader(db_url: str, *, persist: bool):
    client = ScriptedClient([refused()], gate=asyncio.Event())
    async with service(db_url, client, cache_enabled=True, max_attempts=1, persist_runs=persist) as llm:
        leader = asyncio.create_task(llm.chat(request()))
        await _leader(client)
        followers = [asyncio.create_task(llm.chat(request())) for _ in range(5)]
        await asyncio.sleep(0)
        client.gate.set()  # type: ignore[union-attr]
        with pytest.raises(LLMProviderError):
            await leader
        answers = await asyncio.gather(*followers)
    assert client.sends == 2
    assert {answer.text for answer in answers} == {"answer 2"}
    assert sorted(answer.served_from for answer in answers) == ["cache"] * 4 + ["live"]


@pytest.mark.parametrize("persist", [True, False])
async def test_a_cancelled_leader_takes_no_follower_along(db_url: str, *, persist: bool):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, cache_enabled=True, persist_runs=persist) as llm:
        leader = asyncio.create_task(llm.chat(request()))
        await _leader(client)
        followers = [asyncio.create_task(llm.chat(request())) for _ in range(3)]
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        client.gate.set()  # type: ignore[union-attr]
        answers = await asyncio.gather(*followers)
    assert client.sends == 2
    assert {answer.text for answer in answers} == {"answer 2"}


async def test_a_cancelled_follower_leaves_the_leader_alone(db_url: str, outside: Outside):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, cache_enabled=True) as llm:
        leader = asyncio.create_task(llm.chat(request()))
        await _leader(client)
        follower = asyncio.create_task(llm.chat(request()))
        while not any(llm._repo._live.values()):  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
        client.gate.set()  # type: ignore[union-attr]
        assert (await leader).text == "answer 1"
    assert [row["status"] for row in await outside.runs()] == ["SUCCEEDED"]


async def test_followers_of_an_answer_that_is_no_hit_go_on_alone(db_url: str):
    """Nobody waits for a second leader: each is answered by its own send."""
    client = ScriptedClient([cut_off()], gate=asyncio.Event())
    async with service(db_url, client, cache_enabled=True) as llm:
        leader = asyncio.create_task(llm.chat(request()))
        await _leader(client)
        followers = [asyncio.create_task(llm.chat(request())) for _ in range(2)]
        await asyncio.sleep(0)
        client.gate.set()  # type: ignore[union-attr]
        assert (await leader).finish_reason == "length"
        answers = await asyncio.gather(*followers)
    assert all(answer.finish_reason == "stop" for answer in answers)
    assert 2 <= client.sends <= 3


async def test_a_follower_whose_time_runs_out_goes_on_alone(db_url: str):
    """A leader that hangs costs a follower a part of its deadline, not its answer."""
    gate = asyncio.Event()

    async def first_hangs(*_: Any) -> None:
        if client.sends == 1:
            await gate.wait()

    client = Watched(first_hangs)
    async with service(db_url, client, cache_enabled=True) as llm:
        leader = asyncio.create_task(llm.chat(request(timeout_s=60)))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        follower = await llm.chat(request(timeout_s=0.4))
        assert (follower.text, follower.served_from) == ("answer 2", ServedFrom.LIVE)
        gate.set()
        assert (await leader).served_from is ServedFrom.LIVE


@pytest.mark.parametrize("asked", [request(cache="refresh"), request(cache="bypass")], ids=lambda r: r.cache)
async def test_calls_that_do_not_read_the_cache_do_not_wait_for_each_other(db_url: str, asked: Any):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, cache_enabled=True) as llm:
        calls = [asyncio.create_task(llm.chat(asked)) for _ in range(3)]
        while client.sends < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.gate.set()  # type: ignore[union-attr]
        answers = await asyncio.gather(*calls)
    assert [answer.served_from for answer in answers] == [ServedFrom.LIVE] * 3


@pytest.mark.parametrize("key", [None, "k1"])
async def test_a_hit_is_served_and_recorded_while_a_flight_is_in_the_air(
    db_url: str, outside: Outside, key: str | None
):
    """A refresh landed after the leader took off: its answer is there, nobody needs to wait for the leader."""
    gate = asyncio.Event()

    async def first_hangs(*_: Any) -> None:
        if client.sends == 1:
            await gate.wait()

    client = Watched(first_hangs)
    async with service(db_url, client, cache_enabled=True) as llm:
        leader = asyncio.create_task(llm.chat(request()))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        fresh = await llm.chat(request(cache="refresh"))
        async with asyncio.timeout(20):
            hit = await llm.chat(request(idempotency_key=key))
        await llm.drain() if key is None else None
        rows = {row["id"]: row for row in await outside.runs()}
        gate.set()
        await leader
    assert (hit.served_from, hit.text) == (ServedFrom.CACHE, fresh.text)
    assert rows[hit.run_id]["source_run_id"] == fresh.run_id


async def test_a_hit_row_that_cannot_be_written_does_not_cost_the_answer(sqlite_url: str, caplog: Any):
    async with rig(sqlite_url, cache_enabled=True) as rigged:
        first = await rigged.llm.chat(request())
        rigged.ledger.away_for = {"record_hits"}
        second = await rigged.llm.chat(request())
        await rigged.llm.drain()
        assert second.text == first.text
    assert "llm_background_fault" in caplog.text

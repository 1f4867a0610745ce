"""The content cache and the flights at the port: what is a hit, for whom, and who waits for whom."""

from typing import Any

import pytest

from app.llm.ports import FlightHeld, Hit, StoredAnswer, Won
from app.llm.types import CacheMode, FinishReason
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, failure, new_run, request, success


async def _answered(repo: Any, text: str = "A box.", **kw: Any) -> Any:
    """Store an answer; return its run."""
    finish, candidate = kw.pop("finish", FinishReason.STOP), kw.pop("candidate", 0)
    run = new_run(request(**kw.pop("asked", {})), **kw)
    await repo.create_started(run)
    await repo.mark_succeeded(run, success(run, text, candidate=run.route.kept[candidate], finish=finish))
    return run


def _identities(run: Any) -> list[str]:
    return [candidate.identity for candidate in run.route.kept]


async def test_an_answer_is_found_by_its_prompt_and_candidate(ledger: Ledger):
    one = ledger.repo()
    run = await _answered(one, "from the second", candidate=1)
    found = await one.get_cached("w1", run.prompt_sha256, _identities(run))
    assert list(found) == [_identities(run)[1]]
    answer = found[_identities(run)[1]]
    assert answer.run_id == run.run_id
    assert answer.response is not None
    assert answer.response.text == "from the second"
    assert answer.response.served_from == "cache"
    assert (answer.response.usage.total_tokens, answer.response.original_usage.total_tokens) == (0, 8)


async def test_an_answer_of_one_workspace_is_no_hit_in_another(ledger: Ledger):
    """I13."""
    one = ledger.repo()
    run = await _answered(one)
    assert await one.get_cached("w2", run.prompt_sha256, _identities(run)) == {}


async def test_another_prompt_is_no_hit(ledger: Ledger):
    one = ledger.repo()
    run = await _answered(one)
    assert await one.get_cached("w1", new_run(request("Else?")).prompt_sha256, _identities(run)) == {}


async def test_the_freshest_of_several_answers_is_served(ledger: Ledger):
    one = ledger.repo()
    old = await _answered(one, "old")
    new = await _answered(one, "new")
    await (await ledger.seen()).age(old.run_id, 60)
    found = await one.get_cached("w1", new.prompt_sha256, _identities(new))
    assert found[_identities(new)[0]].run_id == new.run_id


async def test_an_answer_older_than_the_time_to_live_is_no_hit(ledger: Ledger):
    """Freshness is judged at the look-up: the same row serves whoever allows more."""
    run = await _answered(ledger.repo())
    await (await ledger.seen()).age(run.run_id, 100)
    identities = _identities(run)
    assert await ledger.repo("two", cache_ttl_s=99).get_cached("w1", run.prompt_sha256, identities) == {}
    await ledger.seen()
    assert await ledger.repo("three", cache_ttl_s=3600).get_cached("w1", run.prompt_sha256, identities)


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.CONTENT_FILTER])
async def test_a_truncated_or_filtered_answer_is_no_hit(ledger: Ledger, finish: FinishReason):
    one = ledger.repo()
    run = await _answered(one, finish=finish)
    assert await one.get_cached("w1", run.prompt_sha256, _identities(run)) == {}


async def test_an_answer_that_bypassed_the_cache_is_no_hit(ledger: Ledger):
    one = ledger.repo()
    run = await _answered(one, asked={"cache": CacheMode.BYPASS})
    assert await one.get_cached("w1", run.prompt_sha256, _identities(run)) == {}


async def test_an_answer_that_refreshed_the_cache_is_a_hit(ledger: Ledger):
    one = ledger.repo()
    run = await _answered(one, asked={"cache": CacheMode.REFRESH})
    assert await one.get_cached("w1", run.prompt_sha256, _identities(run))


@pytest.mark.parametrize("ended", ["started", "failed", "hash"])
async def test_a_run_without_a_readable_answer_is_no_hit(ledger: Ledger, ended: str):
    one = ledger.repo(store_payloads="hash" if ended == "hash" else "full")
    run = new_run(request())
    await one.create_started(run)
    if ended == "failed":
        await one.mark_failed(run, failure())
    if ended == "hash":
        await one.mark_succeeded(run, success(run))
    assert await one.get_cached("w1", run.prompt_sha256, _identities(run)) == {}


async def test_a_claim_finds_the_cached_answer_and_becomes_its_hit_row(ledger: Ledger):
    """The look-up inside the claim: between a caller's first look and its claim somebody may have answered."""
    one = ledger.repo()
    source = await _answered(one)
    run = new_run(request(idempotency_key="k1"), cache=True, flight=one.inline is False)
    hit = await one.create_started(run)
    assert isinstance(hit, Hit)
    assert (hit.run_id, hit.answer.run_id) == (run.run_id, source.run_id)

    seen = await ledger.seen()
    row, original = await seen.run(run.run_id), await seen.run(source.run_id)
    expected = {
        "status": "SUCCEEDED",
        "source_run_id": source.run_id,
        "idem_slot": "k1",
        "flight_slot": None,
        "sends_noted": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "saved_input_tokens": 3,
        "saved_output_tokens": 5,
        "cost_usd": 0.0,
        "finish_reason": "stop",
        "provider": "ollama",
        "model": "first",
        "candidate_sha256": _identities(source)[0],
        "request_payload": original["request_payload"],
        "response_payload": original["response_payload"],
    }
    assert {name: row[name] for name in expected} == expected
    assert row["finished_at"] is not None
    assert await seen.attempts(run.run_id) == []
    assert len(await seen.payloads()) == 2


async def test_a_hit_row_is_replayed_under_its_own_id(ledger: Ledger):
    """I5: a hit with a key owns the key like any other answer."""
    one = ledger.repo()
    await _answered(one, "cached")
    run = new_run(request(idempotency_key="k1"), cache=True)
    await one.create_started(run)
    await ledger.seen()
    state = await ledger.repo("two").create_started(again(run))
    assert state.answer.run_id == run.run_id
    assert state.answer.response.text == "cached"
    assert state.answer.response.original_usage.total_tokens == 8


async def test_a_hit_row_feeds_no_further_hits(ledger: Ledger):
    """Else an answer would stay fresh for as long as somebody asks for it."""
    one = ledger.repo()
    source = await _answered(one)
    run = new_run(request(), cache=True)
    await one.create_started(run)
    await (await ledger.seen()).age(source.run_id, 100_000)
    assert await one.get_cached("w1", run.prompt_sha256, _identities(run)) == {}


async def test_a_known_answer_is_claimed_for_a_key_in_one_step(ledger: Ledger):
    one = ledger.repo()
    source = await _answered(one)
    answer = (await one.get_cached("w1", source.prompt_sha256, _identities(source)))[_identities(source)[0]]
    run = new_run(request(idempotency_key="k1"))
    assert isinstance(await one.save_result_for_idempotency_key(run, answer), Hit)
    row = await (await ledger.seen()).run(run.run_id)
    assert (row["status"], row["idem_slot"], row["source_run_id"]) == ("SUCCEEDED", "k1", source.run_id)
    assert await (await ledger.seen()).runs(status="STARTED") == []


async def test_a_hit_without_a_key_is_recorded(ledger: Ledger):
    one = ledger.repo()
    source = await _answered(one)
    answer = (await one.get_cached("w1", source.prompt_sha256, _identities(source)))[_identities(source)[0]]
    run = new_run(request())
    await one.record_hit(run, answer)
    row = await (await ledger.seen()).run(run.run_id)
    assert (row["status"], row["idem_slot"], row["source_run_id"]) == ("SUCCEEDED", None, source.run_id)


async def test_a_recorded_hit_leaves_the_row_that_a_claim_would(ledger: Ledger):
    one = ledger.repo()
    source = await _answered(one)
    answer = (await one.get_cached("w1", source.prompt_sha256, _identities(source)))[_identities(source)[0]]
    claimed, recorded = new_run(request()), new_run(request())
    await one.save_result_for_idempotency_key(claimed, answer)
    await one.record_hit(recorded, answer)
    seen = await ledger.seen()
    rows = [await seen.run(run.run_id) for run in (claimed, recorded)]
    own = {"id", "created_at", "lease_until", "finished_at"}
    assert [{name: row[name] for name in row if name not in own} for row in rows] == [
        {name: rows[0][name] for name in rows[0] if name not in own}
    ] * 2
    assert all((row[name] is None) == (rows[0][name] is None) for row in rows for name in own)


async def test_a_hit_of_a_key_expires_with_the_key(ledger: Ledger):
    one = ledger.repo(idempotency_ttl_s=60)
    await _answered(one)
    keyed, plain = new_run(request(idempotency_key="k1"), cache=True), new_run(request(), cache=True)
    for run in (keyed, plain):
        assert isinstance(await one.create_started(run), Hit)
    seen = await ledger.seen()
    assert (await seen.run(keyed.run_id))["expires_at"] is not None
    assert (await seen.run(plain.run_id))["expires_at"] is None


async def test_an_answer_cached_for_another_candidate_is_not_taken_by_the_claim(ledger: Ledger):
    one = ledger.repo()
    await _answered(one, candidate=1)
    run = new_run(request(), cache=True)
    assert isinstance(await one.create_started(run), Won)


# -- flights, with and without a database


async def test_a_second_flight_is_told_of_the_first(flights: Any):
    leader = new_run(request(), flight=True, cache=True)
    assert isinstance(await flights.create_started(leader), Won)
    held = await flights.create_started(again(leader))
    assert isinstance(held, FlightHeld)
    assert held.run_id == leader.run_id


async def test_a_landed_flight_serves_the_next_claim_from_the_cache(flights: Any):
    leader = new_run(request(), flight=True, cache=True)
    await flights.create_started(leader)
    await flights.mark_succeeded(leader, success(leader, "landed"))
    follower = again(leader)
    hit = await flights.create_started(follower)
    assert isinstance(hit, Hit)
    assert hit.answer.run_id == leader.run_id
    assert hit.answer.response is not None
    assert hit.answer.response.text == "landed"
    assert hit.answer.response.usage.total_tokens == 0


@pytest.mark.parametrize("how", ["mark_failed", "mark_cancelled"])
async def test_a_flight_that_failed_is_free(flights: Any, how: str):
    leader = new_run(request(), flight=True, cache=True)
    await flights.create_started(leader)
    await getattr(flights, how)(leader, failure())
    await flights.drain()
    assert await flights.wait_finished(leader.run_id, 0.01) in {"FAILED", "CANCELLED"}
    assert isinstance(await flights.create_started(again(leader)), Won)


async def test_flights_of_other_workspaces_prompts_and_candidates_do_not_meet(flights: Any):
    """I13."""
    for run in (
        new_run(request(), flight=True),
        new_run(request(), flight=True, workspace="w2"),
        new_run(request("Else?"), flight=True),
        new_run(request(profile="advanced"), flight=True),
    ):
        assert isinstance(await flights.create_started(run), Won)


async def test_an_answer_that_bypasses_or_is_cut_off_is_never_served(flights: Any):
    for changes, finish in (({"cache": "bypass"}, FinishReason.STOP), ({}, FinishReason.LENGTH)):
        leader = new_run(request(**changes), flight=True)
        await flights.create_started(leader)
        await flights.mark_succeeded(leader, success(leader, finish=finish))
        assert await flights.get_cached("w1", leader.prompt_sha256, _identities(leader)) == {}


async def test_the_cache_of_one_workspace_is_closed_to_others(flights: Any):
    """I13."""
    leader = new_run(request(), flight=True)
    await flights.create_started(leader)
    await flights.mark_succeeded(leader, success(leader))
    found = await flights.get_cached("w1", leader.prompt_sha256, _identities(leader))
    assert [answer.run_id for answer in found.values()] == [leader.run_id]
    assert all(isinstance(answer, StoredAnswer) for answer in found.values())
    assert await flights.get_cached("w2", leader.prompt_sha256, _identities(leader)) == {}


# -- flights of dead leaders


async def test_a_dead_leader_without_a_key_is_abandoned_by_its_follower(autonomous: Ledger):
    leader = new_run(request(), flight=True, cache=True)
    await autonomous.repo("dead").create_started(leader)
    await autonomous.outside.end_lease(leader.run_id)
    assert isinstance(await autonomous.repo().create_started(again(leader)), Won)
    row = await autonomous.outside.run(leader.run_id)
    assert (row["status"], row["flight_slot"]) == ("ABANDONED", None)


async def test_a_dead_leader_with_a_key_loses_its_flight_and_keeps_its_key(autonomous: Ledger):
    """I10: only the callers of a key decide about it."""
    leader = new_run(request(idempotency_key="k1"), flight=True, cache=True)
    await autonomous.repo("dead").create_started(leader)
    await autonomous.outside.end_lease(leader.run_id)
    follower = new_run(request(), flight=True, cache=True)
    assert isinstance(await autonomous.repo().create_started(follower), Won)
    row = await autonomous.outside.run(leader.run_id)
    assert (row["status"], row["flight_slot"], row["idem_slot"]) == ("STARTED", None, "k1")


async def test_a_key_and_a_flight_held_by_two_runs_are_told_apart(autonomous: Ledger):
    """The key is asked first: conflicts are decided on keys only."""
    one = autonomous.repo()
    keyed = new_run(request(idempotency_key="k1"), flight=True)
    await one.create_started(keyed)
    assert isinstance(await one.create_started(new_run(request(), flight=True)), FlightHeld)
    other_key = await one.create_started(new_run(request(idempotency_key="k2"), flight=True))
    assert isinstance(other_key, FlightHeld)
    same_key = await one.create_started(new_run(request(idempotency_key="k1"), flight=True))
    assert type(same_key).__name__ == "InProgress"

"""Many callers of one key: by `LLM_ON_IN_PROGRESS` they wait or are told, and there is one send."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from app.llm.errors import LLMError, LLMKeyConflict, LLMKeyInProgress, LLMProviderError
from app.llm.idempotency import CLAIM_AGAIN_S, LONGEST_PAUSE_S, Claimer, ClaimPolicy, replayed
from app.llm.ports import (
    Abandoned,
    Conflict,
    Effect,
    FlightHeld,
    InProgress,
    NewRun,
    Replay,
    StoredAnswer,
    Won,
)
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMResponse, ServedFrom
from tests.support.ledger import Outside, new_run, request
from tests.support.service import Watched, refused, rig, service

KEYED = request(idempotency_key="k1")
RACERS = 16


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


def test_what_a_key_holds_is_an_answer_nothing_or_an_error():
    assert replayed(None) is None
    assert replayed(InProgress(run_id="r", lease_left_s=1)) is None
    for state, code in ((Conflict(run_id="r"), "key_conflict"), (Abandoned(run_id="r"), "outcome_unknown")):
        with pytest.raises(LLMError) as caught:
            replayed(state)
        assert (caught.value.code, caught.value.run_id) == (code, "r")


async def _held(llm: Any, client: Any, asked: Any = KEYED) -> asyncio.Task[LLMResponse]:
    """Start a call whose send has begun."""
    call = asyncio.create_task(llm.chat(asked))
    while not client.sends:  # noqa: ASYNC110  # the scripted client has no event for it
        await asyncio.sleep(0)
    return call


async def test_a_key_in_progress_is_an_error_with_its_run_and_its_time(db_url: str):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, lease_grace_s=15) as llm, service(db_url, client) as elsewhere:
        call = await _held(llm, client, KEYED.model_copy(update={"timeout_s": 30}))
        errors = []
        for other in (llm, elsewhere):
            with pytest.raises(LLMKeyInProgress) as caught:
                await other.chat(KEYED)
            errors.append(caught.value)
        client.gate.set()  # type: ignore[union-attr]
        answer = await call
    assert [error.run_id for error in errors] == [answer.run_id] * 2
    assert all(0 < (error.retry_after_s or 0) <= 45 for error in errors)
    assert client.sends == 1


@pytest.mark.parametrize("where", ["the same service", "another one"])
async def test_a_waiter_gets_the_holders_answer(db_url: str, where: str):
    """I5: the same within a process and across."""
    client = ScriptedClient(gate=asyncio.Event())
    async with (
        service(db_url, client, on_in_progress="wait") as llm,
        service(db_url, client, on_in_progress="wait") as elsewhere,
    ):
        call = await _held(llm, client)
        waiter = asyncio.create_task((llm if where == "the same service" else elsewhere).chat(KEYED))
        await asyncio.sleep(0.01)
        assert not waiter.done()
        client.gate.set()  # type: ignore[union-attr]
        first, second = await asyncio.gather(call, waiter)
    assert client.sends == 1
    assert (second.text, second.run_id, second.served_from) == (first.text, first.run_id, ServedFrom.REPLAY)


async def test_a_waiter_whose_time_is_over_is_told_who_holds_the_key(db_url: str):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, on_in_progress="wait") as llm:
        call = await _held(llm, client)
        with pytest.raises(LLMKeyInProgress) as caught:
            await llm.chat(KEYED.model_copy(update={"timeout_s": 0.1}))
        client.gate.set()  # type: ignore[union-attr]
        assert caught.value.run_id == (await call).run_id
    assert client.sends == 1


async def test_a_waiter_of_a_call_that_fails_executes_itself(db_url: str, outside: Outside):
    """I10: the key is free at once, and exactly one of the waiters takes it."""
    client = ScriptedClient([refused()], gate=asyncio.Event())
    async with service(db_url, client, on_in_progress="wait", max_attempts=1) as llm:
        call = await _held(llm, client)
        waiters = [asyncio.create_task(llm.chat(KEYED)) for _ in range(4)]
        await asyncio.sleep(0.01)
        client.gate.set()  # type: ignore[union-attr]
        with pytest.raises(LLMProviderError):
            await call
        answers = await asyncio.gather(*waiters)
    assert client.sends == 2
    assert {answer.text for answer in answers} == {"answer 2"}
    assert [row["status"] for row in await outside.runs()] == ["FAILED", "SUCCEEDED"]


async def test_a_waiter_takes_over_when_the_holder_turns_out_dead(db_url: str, outside: Outside):
    """I7."""
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client, on_in_progress="wait") as llm, service(db_url) as dead:
        hung = ScriptedClient(gate=asyncio.Event())
        async with service(db_url, hung) as owner:
            call = await _held(owner, hung)
            waiter = asyncio.create_task(llm.chat(KEYED))
            await asyncio.sleep(0.01)
            (row,) = await outside.runs()
            await outside.end_lease(row["id"])
            client.gate.set()  # type: ignore[union-attr]
            assert (await waiter).served_from is ServedFrom.LIVE
            hung.gate.set()  # type: ignore[union-attr]
            assert (await call).text == (await waiter).text
        assert (await dead.chat(KEYED)).text == (await waiter).text


@pytest.mark.parametrize("services", [1, 2])
async def test_of_racers_that_do_not_wait_one_answers_and_the_others_are_told(
    db_url: str, outside: Outside, services: int
):
    """I2."""
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client) as one, service(db_url, client) as two:
        racers = [asyncio.create_task((one, two)[n % services].chat(KEYED)) for n in range(RACERS)]
        while sum(racer.done() for racer in racers) < RACERS - 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.gate.set()  # type: ignore[union-attr]
        outcomes = await asyncio.gather(*racers, return_exceptions=True)
    assert client.sends == 1
    assert sum(isinstance(outcome, LLMResponse) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, LLMKeyInProgress) for outcome in outcomes) == RACERS - 1
    assert [row["status"] for row in await outside.runs()] == ["SUCCEEDED"]


@pytest.mark.parametrize("services", [1, 2])
async def test_of_racers_that_wait_all_get_one_answer(db_url: str, outside: Outside, services: int):
    """I2, I5."""
    client = ScriptedClient(gate=asyncio.Event())
    async with (
        service(db_url, client, on_in_progress="wait") as one,
        service(db_url, client, on_in_progress="wait") as two,
    ):
        racers = [asyncio.create_task((one, two)[n % services].chat(KEYED)) for n in range(RACERS)]
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.gate.set()  # type: ignore[union-attr]
        answers = await asyncio.gather(*racers)
    assert client.sends == 1
    assert len({(answer.text, answer.run_id) for answer in answers}) == 1
    assert sorted(answer.served_from for answer in answers) == ["live"] + ["replay"] * (RACERS - 1)
    (row,) = await outside.runs()
    assert (row["status"], row["replayed_count"]) == ("SUCCEEDED", RACERS - 1)


async def test_racers_with_two_requests_for_one_key_never_share_an_answer(db_url: str):
    """I15."""
    client = ScriptedClient()
    async with service(db_url, client, on_in_progress="wait") as llm:
        other = request("Another question", idempotency_key="k1")
        outcomes = await asyncio.gather(
            *(llm.chat((KEYED, other)[n % 2]) for n in range(RACERS)), return_exceptions=True
        )
    assert client.sends == 1
    answers = [outcome for outcome in outcomes if isinstance(outcome, LLMResponse)]
    assert len(answers) == sum(isinstance(outcome, LLMKeyConflict) for outcome in outcomes) == RACERS // 2
    sides = {n % 2 for n, outcome in enumerate(outcomes) if isinstance(outcome, LLMResponse)}
    assert len(sides) == 1


async def test_many_keys_at_once_do_not_starve_each_other(db_url: str, outside: Outside):
    """I4: more calls in flight than the pool has connections."""
    client = ScriptedClient(gate=asyncio.Event())
    async with rig(db_url, client) as rigged:
        calls = [asyncio.create_task(rigged.llm.chat(request(idempotency_key=f"k{n}"))) for n in range(40)]
        while client.sends < 40:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert rigged.checked_out() == 0
        assert len(await outside.runs(status="STARTED")) == 40
        client.gate.set()  # type: ignore[union-attr]
        await asyncio.gather(*calls)
    assert len(await outside.runs(status="SUCCEEDED")) == 40


async def test_a_wait_holds_no_connection(db_url: str):
    """I4."""
    held = ScriptedClient(gate=asyncio.Event())

    async def nothing(*_: Any) -> None: ...

    async with rig(db_url, held) as owner, rig(db_url, Watched(nothing), on_in_progress="wait") as waiting:
        call = await _held(owner.llm, held)
        waiter = asyncio.create_task(waiting.llm.chat(KEYED))
        while "claim" not in waiting.ledger.seen or waiting.checked_out():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not waiter.done()
        held.gate.set()  # type: ignore[union-attr]
        assert (await call).text == (await waiter).text


# -- waiting, over a ledger that only counts


HELD = InProgress(run_id="holder", lease_left_s=60.0)
POLICY = ClaimPolicy(wait_for_key=True, lease_grace_s=15.0)


@dataclass
class Holder:
    """A ledger in which run `holder` lives for `looks` looks; every look takes as long as it may."""

    looks: int
    left_s: float = 100.0
    outcomes: list[Any] = field(default_factory=list)
    """What the claims say, one after another, then the last one for ever."""
    ends: str = "SUCCEEDED"
    key: Any = None
    """What a read of the key says."""
    claims: list[NewRun] = field(default_factory=list)
    read: int = 0
    inline = False

    async def create_started(self, run: NewRun) -> Any:
        self.claims.append(run)
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    async def wait_finished(self, run_id: str, timeout_s: float) -> str | None:
        assert run_id == "holder"
        assert timeout_s > 0
        self.read += 1
        self.left_s -= timeout_s
        return None if self.read < self.looks else self.ends

    async def get_by_idempotency_key(self, *_: str) -> Any:
        return self.key

    def claimer(self, *, reserve_s: float = 10.0) -> Claimer:
        return Claimer(
            repo=self,  # type: ignore[arg-type]  # what a waiter needs of it
            policy=POLICY,
            left_s=lambda: self.left_s,
            reserve_s=reserve_s,
            jitter=lambda: 0.5,
        )


async def test_a_waiter_reads_while_the_holder_lives_and_claims_no_more_when_it_has_answered():
    answer = Replay(answer=StoredAnswer(run_id="h", candidate_sha256=None, request_sha256="", response=None))
    ledger = Holder(looks=7, outcomes=[HELD], key=answer)
    assert await ledger.claimer().claim(new_run(KEYED)) is answer
    assert (len(ledger.claims), ledger.read) == (1, 7)


async def test_a_waiter_claims_when_the_holder_ended_without_an_answer():
    ledger = Holder(looks=3, outcomes=[HELD, Won(run_id="mine")], ends="FAILED")
    assert await ledger.claimer().claim(new_run(KEYED)) == Won(run_id="mine")
    assert (len(ledger.claims), ledger.read) == (2, 3)
    assert ledger.claims[1].lease_s == ledger.left_s + POLICY.lease_grace_s


async def test_an_effect_that_had_to_wait_has_the_lease_of_any_other():
    """It is renewed while the work goes on; a process that dies must not hold the key for its callers' time as well."""
    pay = replace(new_run(KEYED), request=Effect(name="pay", arguments={}), lease_s=15.0)
    ledger = Holder(looks=3, outcomes=[HELD, Won(run_id="mine")], ends="FAILED")
    assert await ledger.claimer().claim(pay) == Won(run_id="mine")
    assert [run.lease_s for run in ledger.claims] == [15.0, 15.0]


async def test_a_waiter_claims_when_the_holders_lease_can_be_over():
    held = InProgress(run_id="holder", lease_left_s=2.0)
    ledger = Holder(looks=999, outcomes=[held, Won(run_id="mine")])
    await ledger.claimer().claim(new_run(KEYED))
    assert 100 - 2 - LONGEST_PAUSE_S <= ledger.left_s <= 100 - 2


async def test_a_waiter_claims_now_and_then_and_once_more_when_its_time_is_up():
    ledger = Holder(looks=999, outcomes=[HELD])
    with pytest.raises(LLMKeyInProgress):
        await ledger.claimer().claim(new_run(KEYED))
    assert ledger.left_s == 0
    assert len(ledger.claims) == pytest.approx(1 + 100 / CLAIM_AGAIN_S, abs=2)
    assert ledger.read > 5 * len(ledger.claims) / 2


async def test_two_hundred_waiters_write_nothing_while_they_wait():
    ledgers = [Holder(looks=5, outcomes=[HELD, Won(run_id="mine")], ends="FAILED") for _ in range(200)]
    await asyncio.gather(*(ledger.claimer().claim(new_run(KEYED)) for ledger in ledgers))
    assert sum(len(ledger.claims) for ledger in ledgers) == 2 * len(ledgers)


async def test_a_follower_goes_alone_with_time_for_one_attempt_left():
    held = FlightHeld(run_id="holder", lease_left_s=600.0)
    ledger = Holder(looks=999, outcomes=[*[held] * 18, Won(run_id="mine")])
    await ledger.claimer(reserve_s=10.0).claim(replace(new_run(), flight_slot="slot"))
    assert [run.flight_slot for run in ledger.claims] == ["slot"] * 18 + [None]
    assert ledger.left_s == 10.0


@pytest.mark.parametrize(("ended", "slot"), [("SUCCEEDED", None), ("FAILED", "slot")])
async def test_a_follower_flies_again_only_behind_a_leader_without_an_answer(ended: str, slot: str | None):
    held = FlightHeld(run_id="holder", lease_left_s=600.0)
    ledger = Holder(looks=2, outcomes=[held, Won(run_id="mine")], ends=ended)
    await ledger.claimer().claim(replace(new_run(), flight_slot="slot"))
    assert [run.flight_slot for run in ledger.claims] == ["slot", slot]

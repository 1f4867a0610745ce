"""A dead provider costs three sends a window; one that merely refuses costs nothing."""

import asyncio

import pytest

from app.core.clock import SystemClock
from app.llm.breaker import OPEN_S, THRESHOLD, Breaker
from app.llm.candidates import Candidate
from app.llm.errors import LLMAuth, LLMBadRequest, LLMError, LLMRateLimited, LLMTimeout, LLMUnavailable
from app.llm.ports import ProviderReply
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMRequest
from tests.support.ledger import request
from tests.support.service import refused, service

NAME = "ollama:llama3.2"


class MovedClock(SystemClock):
    __slots__ = ("at_s",)

    def __init__(self) -> None:
        self.at_s = 0.0

    def monotonic_s(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def breaker(clock: MovedClock) -> Breaker:
    return Breaker(clock)


def fail(breaker: Breaker, times: int = THRESHOLD, error: LLMError | None = None) -> None:
    for _ in range(times):
        assert breaker.admits(NAME)
        breaker.report(NAME, error or LLMUnavailable("down"))


def test_it_opens_after_three_consecutive_infrastructure_errors(breaker: Breaker):
    fail(breaker, THRESHOLD - 1)
    assert breaker.admits(NAME)
    breaker.report(NAME, LLMTimeout("slow"))
    assert not breaker.admits(NAME)
    assert breaker.closed_in_s(NAME) == OPEN_S
    assert dict(breaker.health()) == {NAME: False}
    assert breaker.admits("gemini:other")


def test_an_answer_between_two_failures_starts_the_count_again(breaker: Breaker):
    fail(breaker, THRESHOLD - 1)
    breaker.report(NAME, None)
    fail(breaker, THRESHOLD - 1)
    assert breaker.admits(NAME)


@pytest.mark.parametrize("error", [LLMBadRequest("no"), LLMAuth("no"), LLMRateLimited("later")])
def test_a_provider_that_refuses_is_alive(breaker: Breaker, error: LLMError):
    fail(breaker, 10 * THRESHOLD, error)
    assert dict(breaker.health()) == {}


def test_after_the_window_one_probe_is_sent_and_its_answer_closes(breaker: Breaker, clock: MovedClock):
    fail(breaker)
    clock.at_s = OPEN_S - 0.1
    assert not breaker.admits(NAME)
    clock.at_s = OPEN_S
    assert [breaker.admits(NAME) for _ in range(3)] == [True, False, False]
    breaker.report(NAME, None)
    assert [breaker.admits(NAME) for _ in range(3)] == [True, True, True]


def test_a_probe_that_fails_opens_for_another_window(breaker: Breaker, clock: MovedClock):
    fail(breaker)
    clock.at_s = OPEN_S
    assert breaker.admits(NAME)
    breaker.report(NAME, LLMUnavailable("still down"))
    clock.at_s = 2 * OPEN_S - 0.1
    assert not breaker.admits(NAME)
    clock.at_s = 2 * OPEN_S
    assert breaker.admits(NAME)


def test_a_probe_that_never_happened_leaves_its_place_to_another(breaker: Breaker, clock: MovedClock):
    fail(breaker)
    clock.at_s = OPEN_S
    assert breaker.admits(NAME)
    breaker.withdraw(NAME)
    assert breaker.admits(NAME)


def dead_primary(request: LLMRequest, candidate: Candidate) -> ProviderReply:
    if candidate.name.startswith("ollama:"):
        raise refused()
    return text_reply("from the second")


async def test_a_thousand_calls_at_a_dead_primary_are_three_sends_to_it():
    client = ScriptedClient([dead_primary] * 2000)
    async with service("sqlite+aiosqlite:///unused.db", client, persist_runs=False) as llm:
        texts = {(await llm.chat(request())).text for _ in range(1000)}
    assert texts == {"from the second"}
    assert sum(candidate.provider == "ollama" for candidate, _ in client.sent) == THRESHOLD


async def test_with_nobody_else_left_the_error_says_when_to_come_back_and_nothing_is_sent(db_url: str):
    client = ScriptedClient([refused() for _ in range(9)])
    async with service(db_url, client, profile_balanced="ollama", attempts_per_candidate=1) as llm:
        for _ in range(THRESHOLD):
            with pytest.raises(LLMUnavailable):
                await llm.chat(request())
        with pytest.raises(LLMUnavailable, match=r"left alone for \d+ s more; nothing was sent") as caught:
            await llm.chat(request())
    assert client.sends == THRESHOLD
    assert caught.value.attempts == ()
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= OPEN_S


async def test_an_open_circuit_never_hides_a_cached_answer(db_url: str):
    client = ScriptedClient([text_reply("kept"), *[refused() for _ in range(9)]])
    rules = {"profile_balanced": "ollama", "attempts_per_candidate": 1, "cache_enabled": True}
    async with service(db_url, client, **rules) as llm:
        await llm.chat(request())
        for n in range(THRESHOLD):
            with pytest.raises(LLMUnavailable):
                await llm.chat(request(f"other {n}"))
        assert (await llm.chat(request())).served_from == "cache"
        assert llm.explain(request()).entries[0].detail == {"unhealthy": True}


async def test_a_cancelled_call_says_nothing_about_its_provider(db_url: str):
    client = ScriptedClient(gate=asyncio.Event())
    async with service(db_url, client) as llm:
        for _ in range(2 * THRESHOLD):
            call = asyncio.create_task(llm.chat(request()))
            sends = client.sends
            while client.sends == sends:  # noqa: ASYNC110
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        client.gate = None
        assert (await llm.chat(request())).provider == "ollama"

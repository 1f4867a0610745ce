"""A dead provider costs three sends a window; one that merely refuses costs nothing."""

import asyncio

import pytest

from app.core.clock import SystemClock
from app.llm.breaker import OPEN_S, THRESHOLD, Breaker, Permit
from app.llm.candidates import Candidate
from app.llm.errors import (
    LLMAuth,
    LLMBadRequest,
    LLMError,
    LLMInternal,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
)
from app.llm.ports import ProviderReply
from app.llm.settings import isolated_settings
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


def begun(breaker: Breaker) -> Permit:
    permit = breaker.begin(NAME)
    assert permit is not None
    return permit


def fail(breaker: Breaker, times: int = THRESHOLD, error: LLMError | None = None) -> None:
    for _ in range(times):
        breaker.report(begun(breaker), error or LLMUnavailable("down"), had_s=60)


def admitted(breaker: Breaker, times: int = 3) -> list[bool]:
    """Begin as many sends, and leave them under way."""
    return [breaker.begin(NAME) is not None for _ in range(times)]


def test_it_opens_after_three_consecutive_infrastructure_errors(breaker: Breaker):
    fail(breaker, THRESHOLD - 1)
    fail(breaker, 1, LLMTimeout("slow"))
    assert not breaker.admits(NAME)
    assert breaker.begin(NAME) is None
    assert breaker.closed_in_s(NAME) == OPEN_S
    assert dict(breaker.health()) == {NAME: False}
    assert breaker.begin("gemini:other")


def test_an_answer_between_two_failures_starts_the_count_again(breaker: Breaker):
    fail(breaker, THRESHOLD - 1)
    breaker.report(begun(breaker), None, had_s=60)
    fail(breaker, THRESHOLD - 1)
    assert breaker.admits(NAME)


@pytest.mark.parametrize("error", [LLMBadRequest("no"), LLMAuth("no"), LLMRateLimited("later")])
def test_a_provider_that_refuses_is_alive(breaker: Breaker, error: LLMError):
    fail(breaker, THRESHOLD - 1)
    fail(breaker, 10 * THRESHOLD, error)
    fail(breaker, THRESHOLD - 1)
    assert dict(breaker.health()) == {}


def test_a_timeout_counts_from_half_the_time_that_the_settings_give_a_send(clock: MovedClock):
    breaker = Breaker.from_settings(isolated_settings(attempt_timeout_s=60, default_timeout_s=40), clock)
    for _ in range(10 * THRESHOLD):
        breaker.report(begun(breaker), LLMTimeout("in haste"), had_s=19.9)
    assert breaker.admits(NAME)
    for _ in range(THRESHOLD):
        breaker.report(begun(breaker), LLMTimeout("slow"), had_s=20)
    assert not breaker.admits(NAME)


def test_a_timeout_that_the_provider_itself_tells_counts_however_short(clock: MovedClock):
    breaker = Breaker(clock, patience_s=30)
    for _ in range(THRESHOLD):
        breaker.report(begun(breaker), LLMTimeout("408", http_status=408), had_s=1)
    assert not breaker.admits(NAME)


@pytest.mark.parametrize("error", [LLMTimeout("in haste"), LLMInternal("a defect")])
def test_what_says_nothing_of_the_provider_neither_counts_nor_starts_the_count_again(
    clock: MovedClock, error: LLMError
):
    breaker = Breaker(clock, patience_s=30)
    fail(breaker, THRESHOLD - 1)
    breaker.report(begun(breaker), error, had_s=1)
    assert breaker.admits(NAME)
    fail(breaker, 1)
    assert not breaker.admits(NAME)


def test_after_the_window_one_probe_is_sent_and_its_answer_closes(breaker: Breaker, clock: MovedClock):
    fail(breaker)
    clock.at_s = OPEN_S - 0.1
    assert not breaker.admits(NAME)
    clock.at_s = OPEN_S
    probe = begun(breaker)
    assert admitted(breaker) == [False] * 3
    breaker.report(probe, None, had_s=60)
    assert admitted(breaker) == [True] * 3


def test_asking_whether_a_send_could_begin_takes_nothing(breaker: Breaker, clock: MovedClock):
    fail(breaker)
    clock.at_s = OPEN_S
    assert [breaker.admits(NAME) for _ in range(3)] == [True] * 3
    assert admitted(breaker) == [True, False, False]


def test_a_probe_that_fails_opens_for_another_window(breaker: Breaker, clock: MovedClock):
    fail(breaker)
    clock.at_s = OPEN_S
    fail(breaker, 1)
    clock.at_s = 2 * OPEN_S - 0.1
    assert not breaker.admits(NAME)
    clock.at_s = 2 * OPEN_S
    assert breaker.admits(NAME)


@pytest.mark.parametrize("how", ["withdrawn", "in haste"])
def test_a_probe_that_says_nothing_leaves_its_place_to_another(clock: MovedClock, how: str):
    breaker = Breaker(clock, patience_s=30)
    fail(breaker)
    clock.at_s = OPEN_S
    if how == "withdrawn":
        breaker.withdraw(begun(breaker))
    else:
        breaker.report(begun(breaker), LLMTimeout("in haste"), had_s=1)
    assert admitted(breaker) == [True, False, False]


def test_an_old_send_that_is_cancelled_does_not_let_a_second_probe_in(breaker: Breaker, clock: MovedClock):
    old = begun(breaker)
    fail(breaker)
    clock.at_s = OPEN_S
    assert begun(breaker)
    breaker.withdraw(old)
    assert not breaker.admits(NAME)


def test_an_answer_from_before_the_opening_does_not_close(breaker: Breaker):
    old = begun(breaker)
    fail(breaker)
    breaker.report(old, None, had_s=60)
    assert not breaker.admits(NAME)


def test_an_answer_from_before_the_opening_does_not_start_the_count_again(
    breaker: Breaker, clock: MovedClock
):
    old = begun(breaker)
    fail(breaker)
    clock.at_s = OPEN_S
    breaker.report(begun(breaker), None, had_s=60)
    fail(breaker, THRESHOLD - 1)
    breaker.report(old, None, had_s=60)
    fail(breaker, 1)
    assert not breaker.admits(NAME)


@pytest.mark.parametrize("probed", [False, True], ids=["while open", "after the probe"])
def test_failures_from_before_the_opening_do_not_open_again(
    breaker: Breaker, clock: MovedClock, *, probed: bool
):
    old = [begun(breaker) for _ in range(THRESHOLD)]
    fail(breaker)
    clock.at_s = OPEN_S
    if probed:
        breaker.report(begun(breaker), None, had_s=60)
    for permit in old:
        breaker.report(permit, LLMUnavailable("down"), had_s=60)
    assert breaker.admits(NAME)
    assert breaker.closed_in_s(NAME) == 0


def dead_primary(request: LLMRequest, candidate: Candidate) -> ProviderReply:
    if candidate.name.startswith("ollama:"):
        raise refused()
    return text_reply("from the second")


async def test_a_thousand_calls_one_after_another_at_a_dead_primary_are_three_sends_to_it():
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

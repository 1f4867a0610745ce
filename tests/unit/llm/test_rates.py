"""Turns: at the rate that is set, first come first served, refused at once where waiting is no use, never lost."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from app.llm.candidates import Candidate
from app.llm.errors import (
    LLMLedgerUnavailable,
    LLMOverRate,
    LLMQueueFull,
    LLMRateLimited,
    LLMSettingsError,
    LLMUnavailable,
)
from app.llm.fields.own import _fields
from app.llm.pacing import LocalMeter, Quota, Rate, Told, quotas_of
from app.llm.rates import LONGEST_HOLD_S, NO_WAIT, Rates, tokens_of
from app.llm.settings import LLMSettings, load_settings
from app.llm.testing.client import text_reply
from app.llm.types import LLMProvider, TokenUsage
from tests.support.clocks import HandClock, settled
from tests.support.ledger import request, route_of

OLLAMA = LLMProvider.OLLAMA
FIRST, OTHERS = route_of(request()).kept
SIBLING = FIRST.model_copy(update={"model": "another"})
ONE_A_SECOND = Rate(burst=2, each_s=1.0)


class Caller:
    """A task that waits for its turn, and sends at once unless it is to keep the line."""

    def __init__(
        self,
        rates: Rates,
        candidate: Candidate = FIRST,
        *,
        tokens: int = 1,
        patience_s: float = 600.0,
        sent: list["Caller"] | None = None,
        slot: asyncio.Event | None = None,
    ) -> None:
        self._sent = [] if sent is None else sent
        self._slot = slot
        self.at_s: float | None = None
        self.task = asyncio.create_task(self._call(rates, candidate, tokens, patience_s))

    async def _call(self, rates: Rates, candidate: Candidate, tokens: int, patience_s: float) -> None:
        with await rates.turn(candidate, tokens=tokens, patience_s=patience_s) as turn:
            if self._slot is not None:
                await self._slot.wait()
            turn.leaves()
            self.at_s = rates._clock.monotonic_s()
            self._sent.append(self)

    async def left(self) -> bool:
        await settled()
        return self.at_s is not None


def paced(clock: HandClock, *, queue: int = 1000, **rates: Rate) -> Rates:
    return Rates(clock, quotas={OLLAMA: Quota(**(rates or {"requests": ONE_A_SECOND}))}, queue=queue)


async def ended(*callers: Caller) -> list[Any]:
    return await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)


def asked_to_wait(seconds: float, status: int = 429) -> LLMRateLimited:
    return LLMRateLimited("slow down", http_status=status, retry_after_s=seconds)


# -- rates


@pytest.mark.parametrize(("count", "burst"), [(1, 1), (9, 1), (60, 6), (1_000_000, 100_000)])
def test_a_rate_lets_a_tenth_of_a_minute_go_at_once(count: int, burst: int):
    rate = Rate.per_minute(count)
    assert rate.burst == burst
    assert rate.burst - 1 + 60 / rate.each_s == pytest.approx(count)


async def test_who_has_no_rate_has_its_turn_and_nothing_is_counted():
    rates = paced(HandClock())
    assert await rates.turn(OTHERS, tokens=10**9, patience_s=0) is NO_WAIT


async def test_a_burst_goes_at_once_and_the_others_go_one_by_one():
    clock, sent = HandClock(), list[Caller]()
    rates = paced(clock)
    callers = [Caller(rates, sent=sent) for _ in range(5)]
    for seconds in (0, 1, 1, 1):
        await clock.move(seconds)
        await settled()
    assert sent == callers
    assert [caller.at_s for caller in callers] == [1000, 1000, 1001, 1002, 1003]


async def test_tokens_have_a_rate_of_their_own():
    clock = HandClock()
    rates = paced(clock, tokens=Rate(burst=100, each_s=0.01))
    first, second, third = (Caller(rates, tokens=tokens) for tokens in (60, 60, 1))
    await clock.move(0.0)
    assert (first.at_s, second.at_s) == (1000, None)
    await clock.move(0.3)
    await ended(first, second, third)
    assert second.at_s == pytest.approx(1000.2)


async def test_a_call_that_is_larger_than_a_burst_goes_when_the_whole_burst_is_there():
    clock = HandClock()
    rates = paced(clock, tokens=Rate(burst=100, each_s=0.01))
    await ended(Caller(rates, tokens=500, patience_s=0))
    after = Caller(rates, tokens=1)
    await clock.move(5.1)
    await ended(after)
    assert after.at_s == pytest.approx(1000 + 5 - 0.99)


async def test_who_cannot_wait_so_long_is_told_at_once_when_to_come_back():
    clock = HandClock()
    rates = paced(clock)
    waiting = [Caller(rates) for _ in range(4)]
    await settled()
    with pytest.raises(LLMOverRate, match=r"LLM_OLLAMA_REQUESTS_PER_MINUTE.*nothing was sent") as caught:
        rates.turn(FIRST, tokens=1, patience_s=2.5).send(None)  # before it waits for anything
    error = caught.value
    assert (error.retry_after_s, error.facts["provider"], error.facts["model"]) == (3.0, OLLAMA, "first")
    assert (error.retryable, error.fallback, error.possibly_paid) == (False, True, False)
    assert isinstance(error, LLMRateLimited)
    await clock.move(2)
    await ended(*waiting)
    after = Caller(rates, patience_s=2.5)
    await clock.move(1)
    await ended(after)
    assert after.at_s == 1003


async def test_what_a_send_took_in_the_end_takes_the_place_of_its_estimate():
    clock = HandClock()
    rates = paced(clock, tokens=Rate(burst=100, each_s=0.01))
    with await rates.turn(FIRST, tokens=100, patience_s=0) as turn:
        turn.leaves()
    turn.used(10)
    assert await Caller(rates, tokens=90, patience_s=0).left()
    with await rates.turn(FIRST, tokens=0, patience_s=0) as turn:
        turn.leaves()
    turn.used(200)
    with pytest.raises(LLMOverRate) as caught:
        await rates.turn(FIRST, tokens=100, patience_s=0)
    assert caught.value.retry_after_s == pytest.approx(3.0)


async def test_who_is_first_in_line_hears_of_answers_that_took_less():
    clock = HandClock()
    rates = paced(clock, tokens=Rate(burst=100, each_s=0.1))
    with await rates.turn(FIRST, tokens=1000, patience_s=0) as turn:
        turn.leaves()
    waiting = Caller(rates, tokens=50)
    await clock.move(2.5)
    turn.used(10)
    await clock.move(1.0)
    assert waiting.at_s == 1003
    await ended(waiting)


@pytest.mark.parametrize(
    ("outcome", "tokens"),
    [
        (text_reply("yes", input_tokens=3, output_tokens=5), 8),
        (text_reply("yes", input_tokens=3, output_tokens=None), None),
        (asked_to_wait(1), 0),
        (LLMUnavailable("reset", possibly_paid=True), None),
        (LLMUnavailable("filtered", usage=TokenUsage(input_tokens=3, output_tokens=0)), 3),
        (asyncio.CancelledError(), None),
    ],
)
def test_what_is_known_of_the_tokens_of_a_send(outcome: object, tokens: int | None):
    assert tokens_of(outcome) == tokens


# -- the line


async def test_places_do_not_gather_behind_a_slot_that_is_not_free():
    """While the first one waits for its slot, the quota fills up again, but nobody else takes of it."""
    clock, slot = HandClock(), asyncio.Event()
    rates = paced(clock)
    callers = [Caller(rates, slot=slot) for _ in range(5)]
    await clock.move(60)
    slot.set()
    await settled()
    assert [caller.at_s for caller in callers] == [1060, 1060, 1060, None, None]
    await clock.move(2)
    await ended(*callers)


async def test_a_full_queue_refuses_and_a_free_turn_is_never_refused_by_an_empty_one():
    clock = HandClock()
    rates = paced(clock, queue=1)
    sent = [Caller(rates), Caller(rates)]
    await settled()
    waiting = Caller(rates)
    await settled()
    with pytest.raises(LLMQueueFull, match="1 calls wait for their turn at ollama already"):
        await rates.turn(FIRST, tokens=1, patience_s=600)
    await clock.move(1)
    await ended(*sent, waiting)
    await clock.move(60)
    rates._queue = 0
    assert await Caller(rates).left()


async def test_a_turn_that_did_not_send_leaves_the_rate_as_it_was():
    clock = HandClock()
    rates = paced(clock)
    for _ in range(10):
        with pytest.raises(RuntimeError), await rates.turn(FIRST, tokens=1, patience_s=0):
            raise RuntimeError("it was cancelled before its slot")
    assert [await Caller(rates, patience_s=0).left() for _ in range(2)] == [True, True]


async def test_a_storm_of_cancellations_leaves_the_gates_as_they_were():
    clock, chance = HandClock(), random.Random(20_261_121)  # noqa: S311  # repeatable, not secret
    rates = paced(clock, requests=ONE_A_SECOND, tokens=Rate(burst=50, each_s=0.02))
    stuck = asyncio.Event()
    for _ in range(20):
        await clock.move(600)
        callers = [
            Caller(rates, tokens=chance.randrange(1, 50), slot=stuck if chance.random() < 0.5 else None)
            for _ in range(30)
        ]
        rates.heed(SIBLING, asked_to_wait(1))
        held = [Caller(rates, SIBLING) for _ in range(5)]
        for caller in chance.sample(callers + held, k=35):
            if chance.random() < 0.3:
                await clock.move(chance.random())
            caller.task.cancel()
        await ended(*callers, *held)
    line = rates._line_of(OLLAMA)
    assert (line.waiting, line.places, line.tokens, line.door.locked()) == (0, 0, 0, False)
    await clock.move(600)
    after = [Caller(rates, tokens=1, patience_s=0) for _ in range(2)]
    assert [await caller.left() for caller in after] == [True, True]
    with pytest.raises(LLMOverRate) as caught:
        await rates.turn(FIRST, tokens=1, patience_s=0)
    assert caught.value.retry_after_s == 1.0


async def test_who_is_cancelled_in_line_lets_the_next_one_come_earlier():
    clock = HandClock()
    rates = paced(clock)
    callers = [Caller(rates) for _ in range(6)]
    await settled()
    for caller in callers[2:5]:
        caller.task.cancel()
    await clock.move(1)
    await ended(*callers)
    assert callers[5].at_s == 1001


def test_threads_with_loops_of_their_own_share_one_rate():
    clock, sent = HandClock(), list[int]()
    rates = paced(clock, requests=Rate(burst=10, each_s=60.0))

    async def crowd() -> None:
        for _ in range(10):
            try:
                with await rates.turn(FIRST, tokens=1, patience_s=0) as turn:
                    turn.leaves()
                    sent.append(1)
            except LLMOverRate:
                await asyncio.sleep(0)

    threads = [threading.Thread(target=asyncio.run, args=(crowd(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 10


async def test_nothing_is_sent_while_nobody_can_count():
    class Away(LocalMeter):
        async def ask(self, candidate: Candidate, tokens: int) -> Told:  # noqa: ARG002  # the port's signature
            raise LLMLedgerUnavailable("the database is away")

    clock, quotas = HandClock(), {OLLAMA: Quota(requests=ONE_A_SECOND)}
    rates = Rates(clock, quotas=quotas, meter=Away(quotas, clock))
    with pytest.raises(LLMLedgerUnavailable):
        await rates.turn(FIRST, tokens=1, patience_s=600)
    assert not rates._line_of(OLLAMA).door.locked()


# -- a provider that asks to be left alone


@pytest.mark.parametrize("status", [429, 503])
async def test_a_provider_that_names_a_time_is_left_alone_by_everybody(status: int):
    clock = HandClock()
    rates = Rates(clock)
    assert rates.heed(FIRST, asked_to_wait(5, status)) == 5
    waiting = [Caller(rates) for _ in range(3)]
    assert not await waiting[0].left()
    with pytest.raises(LLMOverRate, match="asked to be left alone") as caught:
        await rates.turn(FIRST, tokens=1, patience_s=4)
    assert caught.value.retry_after_s == 5
    await clock.move(5)
    await ended(*waiting)
    assert [caller.at_s for caller in waiting] == [1005] * 3
    assert await rates.turn(FIRST, tokens=1, patience_s=0) is NO_WAIT


async def test_another_model_of_the_provider_is_asked_meanwhile():
    """Providers count by model; and a call that waits for one model does not stand before those of another."""
    clock = HandClock()
    rates = paced(clock)
    rates.heed(FIRST, asked_to_wait(30))
    held = Caller(rates)
    assert await Caller(rates, SIBLING, patience_s=0).left()
    assert not await held.left()
    await clock.move(30)
    await ended(held)


async def test_a_longer_time_counts_and_none_is_endless():
    clock = HandClock()
    rates = Rates(clock)
    rates.heed(FIRST, asked_to_wait(30))
    rates.heed(FIRST, asked_to_wait(5))
    assert rates.held_s(FIRST) == 30
    rates.heed(FIRST, asked_to_wait(1e9))
    assert rates.held_s(FIRST) == LONGEST_HOLD_S


@pytest.mark.parametrize(
    "outcome",
    [
        asked_to_wait(0),
        LLMRateLimited("429", http_status=429),
        LLMUnavailable("500", http_status=500, retry_after_s=5),
        LLMUnavailable("left alone by the breaker", retry_after_s=30),
        text_reply("yes"),
    ],
)
async def test_who_names_no_time_is_not_left_alone(outcome: object):
    rates = Rates(HandClock())
    assert rates.heed(FIRST, outcome) is None
    assert rates.held_s(FIRST) == 0


async def test_what_a_cassette_says_holds_nobody_back():
    rates, said = Rates(HandClock()), asked_to_wait(5)
    assert rates.heed(FIRST, said.with_facts(served_from="cassette")) is None
    assert rates.is_free(FIRST)


async def test_a_send_with_its_slot_in_hand_does_not_run_into_the_wall():
    rates = Rates(HandClock())
    rates.refuse_held(FIRST)
    rates.heed(FIRST, asked_to_wait(5))
    rates.refuse_held(SIBLING)
    with pytest.raises(LLMOverRate):
        rates.refuse_held(FIRST)


# -- settings


def test_the_settings_say_who_has_which_rate():
    settings: LLMSettings = load_settings(
        _env_file=None, ollama_requests_per_minute=60, groq_tokens_per_minute=6000, queue_limit=7
    )
    rates = Rates.from_settings(settings, HandClock())
    assert set(rates._quotas) == {OLLAMA, LLMProvider.GROQ}
    assert rates._quotas[OLLAMA].requests == Rate.per_minute(60)
    assert rates._quotas[LLMProvider.GROQ].tokens == Rate.per_minute(6000)
    assert rates._queue == 7


def test_a_routing_file_may_say_so_too(tmp_path: Path):
    (tmp_path / "routing.yaml").write_text(
        "providers:\n  groq:\n    requests_per_minute: 30\n    tokens_per_minute: 6000\nshared_rates: on\n"
    )
    settings = load_settings(config_file=tmp_path / "routing.yaml")
    assert quotas_of(settings, [LLMProvider.GROQ, OLLAMA]) == {
        LLMProvider.GROQ: Quota(requests=Rate.per_minute(30), tokens=Rate.per_minute(6000))
    }
    assert settings.shared_rates


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"groq_requests_per_minute": 0}, "LLM_GROQ_REQUESTS_PER_MINUTE"),
        ({"shared_rates": True, "persist_runs": False}, "LLM_SHARED_RATES=true: needs LLM_PERSIST_RUNS=true"),
        ({"concurrency_min": 0}, "LLM_CONCURRENCY_MIN"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_start(values: dict[str, Any], named: str):
    with pytest.raises(LLMSettingsError, match=named):
        load_settings(**values)


def test_a_provider_of_ones_own_has_rates_as_well():
    class Lighthouse:
        default_model, default_api_base = "beam", "http://localhost:1"

    assert {"lighthouse_requests_per_minute", "lighthouse_tokens_per_minute"} <= set(
        _fields("lighthouse", Lighthouse).model_fields
    )

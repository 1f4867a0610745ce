"""Rates where things end early: processes that ask as fast as they can, and callers who leave at any moment."""

import asyncio
import random

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app.llm.errors import LLMError
from app.llm.pacing import Meter, Rate, quotas_of
from app.llm.persistence.models import LLMRate
from app.llm.persistence.rates import SharedMeter
from app.llm.providers import known
from app.llm.rates import Rates
from app.llm.telemetry import Telemetry
from app.llm.types import LLMProvider, LLMResponse
from tests.crash.weather import Moody
from tests.support.ledger import request
from tests.support.rounds import in_full
from tests.support.service import QuickClock, Rig, rig
from tests.support.worker import run_jobs

pytestmark = pytest.mark.crash
PROCESSES, ASKS, PER_MINUTE = 4, 60, 200
SEED = 20_261_121
PACE, IDLE_S = 600, 600.0
RATES = LLMRate.__table__
CALLS = in_full(1_000, in_short=150)
EXPECTED = (LLMResponse, LLMError, asyncio.CancelledError)


async def test_processes_that_ask_as_fast_as_they_can_keep_one_rate(db_url: str):
    job = {"job": "take_places", "url": db_url, "asks": ASKS, "per_minute": PER_MINUTE}
    told = await asyncio.to_thread(run_jobs, [dict(job) for _ in range(PROCESSES)])
    times_s = sorted(at_s for each in told for at_s in each)
    rate = Rate.per_minute(PER_MINUTE)
    span_s = times_s[-1] - times_s[0]
    assert rate.burst <= len(times_s) <= rate.burst + span_s / rate.each_s + 1e-3
    assert len(times_s) < PROCESSES * ASKS, "some were told to wait"


def _share(rigged: Rig, clock: QuickClock) -> SharedMeter:
    quotas = quotas_of(rigged.llm._settings, known())
    meter = SharedMeter(rigged.ledger, quotas, telemetry=Telemetry())
    rigged.llm._story.rates = Rates(clock, quotas=quotas, meter=meter)
    return meter


@pytest.mark.tried(CALLS)
@pytest.mark.parametrize("counted", ["here", "together"])
async def test_callers_who_leave_at_any_moment_leave_the_gates_as_they_were(
    db_url: str, engine: AsyncEngine, counted: str, turn: int
):
    chance = random.Random(SEED + turn)  # noqa: S311  # repeatable, not secret
    client, clock = Moody(chance, 0.3), QuickClock()
    paced = {"ollama_requests_per_minute": PACE, "ollama_tokens_per_minute": 100_000, "queue_limit": CALLS}
    async with rig(db_url, client, clock=clock, **paced) as rigged:
        meter = _share(rigged, clock) if counted == "together" else None
        calls = []
        for n in range(CALLS):
            calls.append(asyncio.create_task(rigged.llm.chat(request(f"question {n}"))))
            for _ in range(chance.choice((0, 0, 1, 3, 30))):
                await asyncio.sleep(0)
            if chance.random() < 0.6:
                chance.choice(calls).cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await rigged.llm.drain()
        if meter is not None:
            await meter.close()
        assert [each for each in outcomes if not isinstance(each, EXPECTED)] == []
        assert {type(each) for each in outcomes} >= {LLMResponse, asyncio.CancelledError}
        rates = rigged.llm._story.rates
        line = rates._line_of(LLMProvider.OLLAMA)
        assert (line.waiting, line.places, line.tokens, line.door.locked()) == (0, 0, 0, False)
        assert client.limits.in_flight() == 0
        clock.slept.append(IDLE_S)
        async with engine.begin() as connection:
            moved = {each: each - IDLE_S for each in (RATES.c.requests_at_s, RATES.c.tokens_at_s)}
            await connection.execute(sa.update(RATES).values(moved))
        await _has_its_burst(rates._meter, rigged)


async def _has_its_burst(meter: Meter, rigged: Rig) -> None:
    """After a while without calls a burst goes at once, and no more: nothing was lost, nothing given back twice."""
    rate, candidate = Rate.per_minute(PACE), rigged.llm.candidates()[0]
    told = [await meter.ask(candidate, 1) for _ in range(2 * rate.burst)]
    times_s = [each.at_s for each in told if not each.wait_s]
    assert rate.burst <= len(times_s) <= rate.burst + (times_s[-1] - times_s[0]) / rate.each_s + 1e-3

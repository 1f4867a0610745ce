"""Callers leave by the thousand, at their own requests and in fallbacks: nothing of them stays behind."""

import asyncio
import gc
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from app.llm.errors import LLMError
from app.llm.limits import Limits
from app.llm.persistence.models import LLMAttempt
from app.llm.types import LLMResponse
from tests.crash.weather import SLOTS, Observed, Stubs
from tests.support.ledger import Outside, request
from tests.support.rounds import IN_FULL, in_full
from tests.support.service import rig

pytestmark = pytest.mark.crash
SEED = 20_261_121
LULLS = (1, 1, 2, 3, 5, 8, 13, 100)
"""Events between two cancels: often so few that callers leave together, at times so many that calls get far."""
CANCELS = in_full(2_000, in_short=500)
EXPECTED = (LLMResponse, LLMError, asyncio.CancelledError)


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


class Storm:
    """Cancels a random one of the calls that are under way, after a random number of events."""

    def __init__(self, chance: random.Random, cancels: int) -> None:
        self.left = cancels
        self.outcomes: list[object] = []
        self._chance = chance
        self._live: list[asyncio.Task[LLMResponse]] = []
        self._countdown = 1

    def event(self, _: object = None) -> None:
        self._countdown -= 1
        if self._countdown <= 0 and self._live and self.left:
            self._countdown = self._chance.choice(LULLS)
            self.left -= 1
            self._chance.choice(self._live).cancel()

    async def caller(self, call: Callable[[], Any]) -> None:
        """Call again and again until the storm is over."""
        while self.left:
            task = asyncio.create_task(call())
            self._live.append(task)
            self.outcomes += await asyncio.gather(task, return_exceptions=True)
            self._live.remove(task)


@pytest.mark.tried(CANCELS)
@pytest.mark.timeout(60 + CANCELS // 10)
async def test_a_storm_of_cancellations_leaves_nothing_behind(db_url: str, outside: Outside, turn: int):
    """I11: no STARTED row, no slot, no connection, no session, no task whose exception nobody looked at."""
    chance = random.Random(SEED + turn)  # noqa: S311  # repeatable, not secret
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    numbers = itertools.count()
    storm = Storm(chance, CANCELS)

    async def call() -> LLMResponse:
        number = next(numbers)  # three calls share a question: some of them wait for another one's flight
        asked = request(f"Question {number // 3}", idempotency_key=f"k{number}" if number % 2 else None)
        if number % 5:
            return await rigged.llm.chat(asked)
        async with rigged.llm.stream(asked) as stream:
            async for _ in stream:
                storm.event()
        return stream.response

    with Stubs(chance, 4 * CANCELS, delay_s=0.005) as stubs:
        client = Observed(stubs, storm.event)
        async with rig(db_url, client, cache_enabled=True) as rigged:
            await client.warm_up()
            rigged.llm._story.breaker._open_s = (
                0.05  # else a few faults in a row leave one provider for the rest
            )
            rigged.ledger.before = rigged.ledger.between = rigged.ledger.after = storm.event
            await asyncio.gather(*(storm.caller(call) for _ in range(3 * SLOTS)))
            await rigged.llm.drain()
            assert (rigged.checked_out(), client.limits.in_flight()) == (0, 0)
            _check_slots(client.limits)
            assert (rigged.repo._begun, rigged.repo._live) == (set(), {})
        assert stubs.sends <= client.sent.total(), "nothing reached a provider unnoted"
        assert (all if IN_FULL else any)(each.abandoned for each in stubs.both), "callers left in mid-send"
        for stub in stubs.both:
            assert stub.max_in_flight <= SLOTS + stub.abandoned
    gc.collect()
    assert unheard == []
    assert [each for each in storm.outcomes if not isinstance(each, EXPECTED)] == []
    await _check_rows(outside, client)


async def _check_rows(outside: Outside, client: Observed) -> None:
    rows = await outside.runs()
    assert {row["status"] for row in rows} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert all(client.sent[row["id"]] <= row["sends_noted"] for row in rows)
    paid = [row for row in rows if row["status"] == "CANCELLED" and client.sent[row["id"]]]
    assert paid, "calls were cancelled at their sends as well as in the ledger"
    if IN_FULL:  # a short storm may miss the fallbacks
        cut_off = sa.select(LLMAttempt.__table__).where(
            LLMAttempt.status == "CANCELLED", LLMAttempt.ordinal > 1
        )
        providers = {attempt["provider"] for attempt in await outside.rows(cut_off)}
        assert "gemini" in providers, "some were cancelled in a fallback"


def _check_slots(limits: Limits) -> None:
    gates = limits._gates_of(asyncio.get_running_loop())
    slots = [gates.total, *(gate.slots for gate in gates.of.values())]
    free = [each.size - each.taken for each in slots]
    assert (free, [gate.waiting for gate in gates.of.values()]) == ([SLOTS] * len(free), [0] * len(gates.of))

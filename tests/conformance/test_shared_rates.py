"""The meter that processes share, on both databases: one rate for all of them, by the database's clock."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bootstrap import connect
from app.llm.errors import LLMLedgerError
from app.llm.pacing import UNBOUND, Quota, Rate
from app.llm.persistence.models import LLMRate
from app.llm.persistence.rates import SharedMeter
from app.llm.telemetry import Telemetry
from app.llm.types import LLMProvider
from tests.support.clocks import settled
from tests.support.ledger import Outside, request, route_of
from tests.support.service import Faulty

OLLAMA, GEMINI = LLMProvider.OLLAMA, LLMProvider.GEMINI
FIRST, SECOND = route_of(request()).kept
SIBLING = FIRST.model_copy(update={"model": "another"})
HOURLY = Rate(burst=5, each_s=3600.0)
"""So slow that a burst is all that goes during a test."""
RATES = LLMRate.__table__


class Processes:
    """Meters with connections of their own, and a look at their table from outside."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.outside = Outside(url)
        self._url = url
        self._stack = stack

    def meter(self, **quota: Rate) -> SharedMeter:
        return self.faulty(**quota)[0]

    def faulty(self, **quota: Rate) -> tuple[SharedMeter, Faulty]:
        executor = Faulty(connect(self._url, timeout_s=5))
        self._stack.push_async_callback(executor.close)
        made = Quota(**(quota or {"requests": HOURLY}))
        meter = SharedMeter(executor, {OLLAMA: made, GEMINI: made}, telemetry=Telemetry())
        self._stack.push_async_callback(meter.close)
        return meter, executor

    async def pass_s(self, seconds: float) -> None:
        """Let time pass for all rates: what was taken was taken earlier."""
        columns = (RATES.c.requests_at_s, RATES.c.tokens_at_s, RATES.c.held_until_s)
        async with self.outside.engine.begin() as connection:
            await connection.execute(sa.update(RATES).values({each: each - seconds for each in columns}))

    async def row(self, name: str = "ollama") -> dict[str, Any]:
        return (await self.outside.rows(sa.select(RATES).where(RATES.c.name == name)))[0]


@pytest.fixture
async def processes(db_url: str) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        made = Processes(db_url, stack)
        stack.push_async_callback(made.outside.close)
        yield made


async def taken(meters: Sequence[SharedMeter], asks: int, tokens: int = 1) -> int:
    """Return how many places all of them got together, each asking so often at once."""
    told = await asyncio.gather(*(meter.ask(FIRST, tokens) for _ in range(asks) for meter in meters))
    return sum(not each.wait_s for each in told)


async def test_several_processes_have_one_rate_together(processes: Processes):
    meters = [processes.meter() for _ in range(3)]
    assert await taken(meters, 20) == HOURLY.burst
    await processes.pass_s(2 * HOURLY.each_s)
    assert await taken(meters, 20) == 2
    await processes.pass_s(1000 * HOURLY.each_s)
    assert await taken(meters, 20) == HOURLY.burst


async def test_each_provider_has_a_rate_of_its_own(processes: Processes):
    meter = processes.meter()
    assert await taken([meter], 10) == HOURLY.burst
    assert (await meter.ask(SECOND, 1)).wait_s == 0


async def test_who_gets_no_place_is_told_how_long_to_wait_and_takes_nothing(processes: Processes):
    meter = processes.meter(requests=UNBOUND, tokens=Rate(burst=10, each_s=3600.0))
    assert (await meter.ask(FIRST, 8)).wait_s == 0
    before = await processes.row()
    told = await meter.ask(FIRST, 6)
    assert told.wait_s == pytest.approx(4 * 3600.0, rel=0.01)
    after = await processes.row()
    assert (after["tokens_at_s"], after["requests_at_s"]) == (before["tokens_at_s"], before["requests_at_s"])
    await processes.pass_s(told.wait_s + 1)
    assert (await meter.ask(FIRST, 6)).wait_s == 0


async def test_neither_rate_is_touched_where_only_the_other_has_room(processes: Processes):
    meter = processes.meter(requests=HOURLY, tokens=Rate(burst=10, each_s=3600.0))
    assert await taken([meter], 5, tokens=6) == 1
    row = await processes.row()
    assert row["requests_at_s"] == pytest.approx(row["asked_at_s"] + HOURLY.each_s, abs=60)


@pytest.mark.parametrize("gone_s", [0.0, 1800.0, 9 * 3600.0])
async def test_a_place_that_was_not_used_is_given_back_as_far_as_time_has_not_done_so(
    processes: Processes, gone_s: float
):
    meter, other = processes.meter(), processes.meter()
    told = await meter.ask(FIRST, 1)
    await processes.pass_s(gone_s)
    before = await processes.row()
    meter.give_back(OLLAMA, 1, type(told)(wait_s=0.0, at_s=told.at_s - gone_s))
    await meter.close()
    moved_s = before["requests_at_s"] - (await processes.row())["requests_at_s"]
    assert moved_s == pytest.approx(max(HOURLY.each_s - gone_s, 0), abs=60)
    assert await taken([meter, other], 20) == HOURLY.burst


async def test_what_a_send_took_is_corrected_for_everybody(processes: Processes):
    rate = Rate(burst=100, each_s=3600.0)
    meter, other = (processes.meter(requests=UNBOUND, tokens=rate) for _ in range(2))
    assert (await meter.ask(FIRST, 100)).wait_s == 0
    assert (await other.ask(FIRST, 90)).wait_s > 0
    meter.correct(OLLAMA, 10 - 100)
    await meter.close()
    assert (await other.ask(FIRST, 89)).wait_s == 0


async def test_a_candidate_that_asked_to_be_left_alone_is_so_by_everybody(processes: Processes):
    meter, other = processes.meter(), processes.meter()
    assert (await meter.ask(FIRST, 1)).wait_s == 0
    for seconds in (300, 30):
        meter.hold(FIRST, seconds)
        await meter.close()
    told = await other.ask(FIRST, 1)
    assert (told.wait_s, told.held_s) == (pytest.approx(300, abs=60), pytest.approx(300, abs=60))
    assert (await other.ask(SIBLING, 1)).wait_s == 0
    await processes.pass_s(301)
    told = await other.ask(FIRST, 1)
    assert (told.wait_s, told.held_s) == (0, 0)


async def test_who_is_cancelled_while_it_asks_leaves_no_place_taken(processes: Processes):
    meter, executor = processes.faulty()
    other = processes.meter()
    executor.gates["_take"] = asyncio.Event()
    asking = [asyncio.create_task(meter.ask(FIRST, 1)) for _ in range(20)]
    await settled()
    for each in asking:
        each.cancel()
    assert all(isinstance(each, asyncio.CancelledError) for each in await _ended(asking))
    executor.gates.pop("_take").set()
    await meter.close()
    await processes.pass_s(60)  # more than all of them took to ask, and far less than a place
    assert await taken([other], 20) == HOURLY.burst


async def test_nobody_is_told_yes_while_the_database_is_away(processes: Processes):
    meter, executor = processes.faulty()
    executor.away = True
    with pytest.raises(LLMLedgerError):
        await meter.ask(FIRST, 1)
    meter.give_back(OLLAMA, 1, (await processes.meter().ask(FIRST, 1)))
    await meter.close()


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_places_are_those_of_buckets_that_are_counted_piece_by_piece(
    sqlite_url: str, steps: list[tuple[int, int, int]]
):
    """Hours pass; what passes beside them is less than a piece of either."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            processes = Processes(sqlite_url, stack)
            stack.push_async_callback(processes.outside.close)
            quota = {"requests": Rate(burst=3, each_s=3600.0), "tokens": Rate(burst=10, each_s=3600.0)}
            meters = [processes.meter(**quota) for _ in range(4)]
            await processes.pass_s(10**6)
            requests, tokens = 3.0, 10.0
            for hours, count, who in steps:
                await processes.pass_s(hours * 3600.0 + 1)  # a bit more, for the clock has whole milliseconds
                requests, tokens = min(3.0, requests + hours), min(10.0, tokens + hours)
                told = await meters[who].ask(FIRST, count)
                has_room = requests >= 1 and tokens >= min(count, 10)
                assert (told.wait_s == 0) == has_room
                if has_room:
                    requests, tokens = requests - 1, tokens - count

    asyncio.run(run())

"""Processes that ask as fast as they can have one rate together, by the database's clock."""

import asyncio

import pytest

from app.llm.pacing import Rate
from tests.support.worker import run_jobs

pytestmark = pytest.mark.crash
PROCESSES, ASKS, PER_MINUTE = 4, 60, 200


async def test_processes_that_ask_as_fast_as_they_can_keep_one_rate(db_url: str):
    job = {"job": "take_places", "url": db_url, "asks": ASKS, "per_minute": PER_MINUTE}
    told = await asyncio.to_thread(run_jobs, [dict(job) for _ in range(PROCESSES)])
    times_s = sorted(at_s for each in told for at_s in each)
    rate = Rate.per_minute(PER_MINUTE)
    span_s = times_s[-1] - times_s[0]
    assert rate.burst <= len(times_s) <= rate.burst + span_s / rate.each_s + 1e-3
    assert len(times_s) < PROCESSES * ASKS, "some were told to wait"

"""Two processes on one budget: whatever they do at once, no more is sent than fits."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.llm.budgets import estimate
from app.llm.persistence.models import LLMBudget
from tests.support.budgets import PRICED
from tests.support.ledger import Outside, request
from tests.support.service import service
from tests.support.worker import run_jobs, sends

pytestmark = pytest.mark.crash
PROCESSES, TASKS, FITS = 2, 25, 9


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


async def test_fifty_calls_of_two_processes_send_no_more_than_fit(
    db_url: str, outside: Outside, tmp_path: Path
):
    """Each send lasts until all calls have asked, so nothing is given back meanwhile."""
    listed = {"profile_balanced": PRICED}
    async with service(db_url, **listed) as llm:
        route = llm.explain(request())
        usd = estimate(route, route.kept[0]).usd
    assert usd is not None
    over = [{"workspace": "*", "per": "day", "usd": str(FITS * usd + usd / 2)}]
    job = {
        "job": "race",
        "url": db_url,
        "file": str(tmp_path / "sends"),
        "keys": [None] * TASKS,
        "settings": {"budgets": over, **listed},
        "latency_s": 3.0,
    }
    made = await asyncio.to_thread(run_jobs, [job] * PROCESSES)
    kinds = Counter(kind for each in made for kind, _ in each["outcomes"])
    assert kinds == {"live": FITS, "budget_exceeded": PROCESSES * TASKS - FITS}
    assert len(sends(tmp_path / "sends")) == FITS
    (counter,) = await outside.rows(sa.select(LLMBudget.__table__))
    assert (counter["reserved_tokens"], counter["reserved_usd"]) == (0, 0)
    assert counter["spent_tokens"] == 8 * FITS
    ended = Counter((row["status"], row["error_code"]) for row in await outside.runs())
    assert ended == {("SUCCEEDED", None): FITS, ("FAILED", "budget_exceeded"): PROCESSES * TASKS - FITS}

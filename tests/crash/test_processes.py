"""Several processes on one ledger: spools that are inherited, and first starts at the same time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing.client import ScriptedClient
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import service
from tests.support.worker import run_jobs, sends

pytestmark = pytest.mark.crash
PROCESSES = 4


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


async def test_the_spool_of_a_killed_process_is_inherited(db_url: str, outside: Outside, tmp_path: Path):
    """The answer was paid for and returned; whoever comes next on this host writes it down."""
    file = tmp_path / "sends"
    assert await asyncio.to_thread(
        run_jobs, [{"job": "spool_and_die", "url": db_url, "file": str(file), "key": "k1"}]
    ) == [None]
    (row,) = await outside.runs()
    assert row["status"] == "STARTED"
    (left,) = _spools(tmp_path)
    assert left.stat().st_mode & 0o777 == 0o600

    client = ScriptedClient()
    async with service(db_url, client) as llm:
        answer = await llm.chat(request(idempotency_key="k1"))
    assert answer.served_from is ServedFrom.REPLAY
    assert answer.text.startswith("answer of process")
    assert (client.sends, sends(file)) == (0, ["k1"])
    (row,) = await outside.runs()
    assert (row["id"], row["status"]) == (answer.run_id, "SUCCEEDED")
    assert len(await outside.attempts(row["id"])) == 1
    assert _spools(tmp_path) == []


async def test_two_processes_that_inherit_one_spool_write_it_once(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I12."""
    file = tmp_path / "sends"
    await asyncio.to_thread(
        run_jobs,
        [{"job": "spool_and_die", "url": db_url, "file": str(file), "key": f"k{n}"} for n in range(2)],
    )
    assert _spools(tmp_path)  # one or two: the slower process may have inherited the other's
    await asyncio.to_thread(run_jobs, [{"job": "open_and_close", "url": db_url}] * 3)
    rows = await outside.runs()
    assert [row["status"] for row in rows] == ["SUCCEEDED"] * 2
    assert [len(await outside.attempts(row["id"])) for row in rows] == [1, 1]
    assert _spools(tmp_path) == []


async def test_processes_that_start_on_no_file_at_all_come_up(tmp_path: Path):
    """Concurrent first starts: one migrates, the others wait for it."""
    await _all_come_up(f"sqlite+aiosqlite:///{tmp_path / 'fresh.db'}")


async def test_processes_that_migrate_an_empty_postgres_come_up(pg_empty_url: str):
    await _all_come_up(pg_empty_url)


async def _all_come_up(url: str) -> None:
    jobs = [{"job": "open_and_close", "url": url}] * PROCESSES
    assert await asyncio.to_thread(run_jobs, jobs) == ["ok"] * PROCESSES


def _spools(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*.spool*") if path.is_file()]

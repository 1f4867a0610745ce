"""Several processes on one ledger: races, owners that are killed, spools that are inherited."""

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
PROCESSES, TASKS = 4, 10

POINTS = {
    "before claim": None,
    "in claim": None,
    "after claim": "STARTED",
    "send": "STARTED",
    "before finish": "STARTED",
    "in finish": "STARTED",
    "after finish": "SUCCEEDED",
}
"""Where a process is killed, and what its row says then."""
PAID = ("send", "before finish", "in finish", "after finish")


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


@pytest.mark.parametrize("mode", ["wait", "error"])
async def test_forty_callers_in_four_processes_make_one_send(
    db_url: str, outside: Outside, tmp_path: Path, mode: str
):
    """I1, I2, I5."""
    file = tmp_path / "sends"
    job = {"job": "race", "url": db_url, "file": str(file), "key": "k1", "tasks": TASKS, "mode": mode}
    outcomes = [each for made in await asyncio.to_thread(run_jobs, [job] * PROCESSES) for each in made]
    assert sends(file) == ["k1"]
    answers = [outcome for outcome in outcomes if outcome.startswith("answer of")]
    assert len(outcomes) == PROCESSES * TASKS
    assert len(set(answers)) == 1
    others = {outcome.partition(":")[0] for outcome in outcomes} - set(answers)
    assert others <= ({"key_in_progress"} if mode == "error" else set())
    (row,) = await outside.runs()
    assert row["status"] == "SUCCEEDED"
    assert len(await outside.attempts(row["id"])) == 1


async def test_different_keys_of_four_processes_never_meet_a_locked_database(
    db_url: str, outside: Outside, tmp_path: Path
):
    file = tmp_path / "sends"
    jobs = [
        {"job": "race", "url": db_url, "file": str(file), "key": f"k{n % 8}", "tasks": TASKS, "mode": "wait"}
        for n in range(2 * PROCESSES)
    ]
    outcomes = [each for made in await asyncio.to_thread(run_jobs, jobs) for each in made]
    assert [outcome for outcome in outcomes if not outcome.startswith("answer of")] == []
    assert sorted(sends(file)) == [f"k{n}" for n in range(8)]
    assert len(await outside.runs(status="SUCCEEDED")) == 8


async def test_an_owner_killed_anywhere_costs_at_most_one_further_run(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I1, I6, I7, I10: one key for each point; a key is free when the lease is over, and not before."""
    file = tmp_path / "sends"
    jobs = [{"job": "crash", "url": db_url, "file": str(file), "key": at, "at": at} for at in POINTS]
    assert await asyncio.to_thread(run_jobs, jobs) == [None] * len(POINTS)

    paid = sends(file)
    assert sorted(paid) == sorted(PAID)
    rows = {row["idempotency_key"]: row for row in await outside.runs()}
    assert {at: rows[at]["status"] if at in rows else None for at in POINTS} == POINTS
    for row in rows.values():
        assert paid.count(row["idempotency_key"]) <= row["sends_noted"]
        assert len(await outside.attempts(row["id"])) == (row["status"] == "SUCCEEDED")

    client = ScriptedClient()
    async with service(db_url, client) as llm:
        for at, status in POINTS.items():
            if status == "STARTED":
                with pytest.raises(Exception, match="holds this key"):
                    await llm.chat(request(idempotency_key=at))
        assert client.sends == 0
        await outside.end_leases()
        served = {at: (await llm.chat(request(idempotency_key=at))).served_from for at in POINTS}
    assert served == {
        at: ServedFrom.REPLAY if status == "SUCCEEDED" else ServedFrom.LIVE for at, status in POINTS.items()
    }
    for at, status in POINTS.items():
        story = await outside.runs(idempotency_key=at)
        if status == "STARTED":
            old, new = story
            assert (old["status"], new["status"]) == ("ABANDONED", "SUCCEEDED")
            assert (new["supersedes"], new["execution"]) == (old["id"], 2)
        else:
            assert [row["status"] for row in story] == ["SUCCEEDED"]


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

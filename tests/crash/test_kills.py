"""A process is killed at every step of the protocol; the next one pays at most once more, and the rows say why."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.llm.errors import LLMKeyInProgress
from app.llm.testing.client import ScriptedClient
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import service
from tests.support.worker import overlapping, run_jobs, sends

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class Left:
    """What a killed process leaves behind."""

    status: str | None
    sends: int = 0
    noted: int = 0
    answer: bool = False
    """Whether its answer survives, in the row or in the spool."""


KILLS = {
    "before claim": Left(None),
    "in claim": Left(None),
    "after claim": Left("STARTED", sends=0, noted=1),
    "send 1": Left("STARTED", sends=1, noted=1),
    "reply 1": Left("STARTED", sends=1, noted=1),
    "before note_send": Left("STARTED", sends=1, noted=1),
    "in note_send": Left("STARTED", sends=1, noted=1),
    "after note_send": Left("STARTED", sends=1, noted=2),
    "send 2": Left("STARTED", sends=2, noted=2),
    "before finish": Left("STARTED", sends=1, noted=1),
    "in finish 1": Left("STARTED", sends=1, noted=1),
    "in finish 3": Left("STARTED", sends=1, noted=1),
    "after finish": Left("SUCCEEDED", sends=1, noted=1, answer=True),
    "spool half a line": Left("STARTED", sends=1, noted=1),
    "spool line": Left("STARTED", sends=1, noted=1, answer=True),
    "drain before finish": Left("STARTED", sends=1, noted=1, answer=True),
    "drain in finish 1": Left("STARTED", sends=1, noted=1, answer=True),
    "drain in finish 3": Left("STARTED", sends=1, noted=1, answer=True),
    "drain after finish": Left("SUCCEEDED", sends=1, noted=1, answer=True),
}
"""In the order of a call. `in finish 3`: attempts and texts are written too, only the commit is missing."""


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


def _spools(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("signalbox-*") if path.suffix in {".spool", ".refused"}]


@pytest.mark.tried(len(KILLS))
async def test_an_owner_killed_anywhere_costs_at_most_one_further_run(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I1, I3, I6, I7, I10, I12: one key for each step, and a spool of its own for each process."""
    file = tmp_path / "sends"
    jobs = [
        {"job": "crash", "url": db_url, "file": str(file), "key": at, "at": at, "spool": str(tmp_path / at)}
        for at in KILLS
    ]
    assert await asyncio.to_thread(run_jobs, jobs) == [None] * len(KILLS)

    paid, rows = sends(file), {row["idempotency_key"]: row for row in await outside.runs()}
    for at, left in KILLS.items():
        row = rows.get(at)
        assert (at, row["status"] if row else None) == (at, left.status)
        assert (at, paid.count(at), row["sends_noted"] if row else 0) == (at, left.sends, left.noted)
        if row is not None:
            assert len(await outside.attempts(row["id"])) == (row["status"] == "SUCCEEDED")
    assert paid.count("-") == 0
    assert len(paid) == sum(left.sends for left in KILLS.values()), "who drains sends nothing before it has"
    assert overlapping(file) == []

    for at, left in KILLS.items():
        await _next_process(outside, db_url, tmp_path / at, at, left)
    assert await outside.runs(status="STARTED") == []


async def _next_process(outside: Outside, url: str, spool: Path, at: str, left: Left) -> None:
    client, asked = ScriptedClient(), request(idempotency_key=at)
    async with service(url, client, spool_dir=spool) as llm:
        if left.status == "STARTED" and not left.answer:
            with pytest.raises(LLMKeyInProgress):
                await llm.chat(asked)
            assert client.sends == 0
            for row in await outside.runs(idempotency_key=at):
                await outside.end_lease(row["id"])
        served = (await llm.chat(asked)).served_from
        assert (at, served) == (at, ServedFrom.REPLAY if left.answer else ServedFrom.LIVE)
        assert (await llm.chat(asked)).served_from is ServedFrom.REPLAY
    assert client.sends == (not left.answer)
    story = [
        (row["status"], row["execution"], row["sends_noted"], len(await outside.attempts(row["id"])))
        for row in await outside.runs(idempotency_key=at)
    ]
    last = ("SUCCEEDED", 1, 1, 1)
    if left.status == "STARTED" and not left.answer:
        last = ("SUCCEEDED", 2, 1, 1)
        assert story.pop(0) == ("ABANDONED", 1, left.noted, 0)
        old, new = await outside.runs(idempotency_key=at)
        assert (new["supersedes"], old["idem_slot"], old["possibly_paid"]) == (old["id"], None, True)
    assert story == [last]
    refused = [path.suffix for path in _spools(spool)]
    assert refused == ([".refused"] if at == "spool half a line" else [])


async def test_an_heir_that_is_killed_while_it_inherits_loses_nothing(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I12: half a line in the heir's file, the whole one still in the old."""
    file = tmp_path / "sends"
    owner = {"job": "spool_and_die", "url": db_url, "file": str(file), "key": "k1"}
    assert await asyncio.to_thread(run_jobs, [owner]) == [None]
    assert await asyncio.to_thread(run_jobs, [{"job": "inherit_and_die", "url": db_url}]) == [None]
    assert len(_spools(tmp_path)) == 2
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        assert (await llm.chat(request(idempotency_key="k1"))).served_from is ServedFrom.REPLAY
    assert (client.sends, sends(file)) == (0, ["k1"])
    (row,) = await outside.runs()
    assert (row["status"], len(await outside.attempts(row["id"]))) == ("SUCCEEDED", 1)
    assert [path.suffix for path in _spools(tmp_path)] == [".refused"]

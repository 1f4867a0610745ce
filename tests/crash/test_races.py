"""Four processes with two hundred callers: one run for each key, one flight for each question, no lock error."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.ledger import FIRST, SECOND, Outside
from tests.support.worker import overlapping, run_jobs, sends

pytestmark = pytest.mark.crash
PROCESSES, TASKS = 4, 50
CALLERS = PROCESSES * TASKS


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


async def _race(
    url: str, folder: Path, asked: list[list[str | None]], *, first: str | None = None, **more: Any
) -> list[list[str]]:
    """Ask for each process's keys at once; return what each caller was told."""
    job = {"job": "race", "url": url, "file": str(folder / "sends"), "first": first, **more}
    made = await asyncio.to_thread(run_jobs, [{**job, "keys": keys} for keys in asked])
    assert [each["checked_out"] for each in made] == [0] * len(asked)
    outcomes: list[list[str]] = [outcome for each in made for outcome in each["outcomes"]]
    assert [outcome for outcome in outcomes if outcome[0].startswith("ledger")] == []
    assert overlapping(folder / "sends") == []
    return outcomes


def _kinds(outcomes: list[list[str]]) -> Counter[str]:
    return Counter(outcome[0] for outcome in outcomes)


@pytest.mark.parametrize("mode", ["wait", "error"])
async def test_two_hundred_callers_of_one_key_make_one_send(
    db_url: str, outside: Outside, tmp_path: Path, mode: str
):
    """I1, I2, I5: with `error` the others are told who holds the key, or replayed when they come late."""
    outcomes = await _race(
        db_url, tmp_path, [["k1"] * TASKS] * PROCESSES, settings={"on_in_progress": mode}, latency_s=0.2
    )
    assert sends(tmp_path / "sends") == ["k1"]
    (row,) = await outside.runs()
    assert (row["status"], len(await outside.attempts(row["id"]))) == ("SUCCEEDED", 1)
    kinds = _kinds(outcomes)
    assert kinds["live"] == 1
    assert kinds["live"] + kinds["replay"] + kinds["key_in_progress"] == CALLERS
    assert len({text for kind, text in outcomes if kind != "key_in_progress"}) == 1
    if mode == "wait":
        assert kinds["key_in_progress"] == 0
        assert row["replayed_count"] == CALLERS - 1
    else:
        assert all(row["id"] in text for kind, text in outcomes if kind == "key_in_progress")


@pytest.mark.tried(CALLERS)
async def test_two_hundred_keys_at_once_are_two_hundred_sends(db_url: str, outside: Outside, tmp_path: Path):
    """I1, I5: each key is asked for by two processes."""
    keys = [f"k{n}" for n in range(CALLERS)]
    asked: list[list[str | None]] = [
        [keys[(n + first) % CALLERS] for n in range(2 * TASKS)] for first in range(0, CALLERS, TASKS)
    ]
    outcomes = await _race(db_url, tmp_path, asked, settings={"on_in_progress": "wait"})
    assert sorted(sends(tmp_path / "sends")) == sorted(keys)
    assert _kinds(outcomes) == {"live": CALLERS, "replay": CALLERS}
    rows = await outside.runs()
    assert [row["status"] for row in rows] == ["SUCCEEDED"] * CALLERS
    assert {row["replayed_count"] for row in rows} == {1}


CACHED: dict[str, Any] = {"cache_enabled": True}
NO_KEYS: list[list[str | None]] = [[None] * TASKS] * PROCESSES


async def test_two_hundred_callers_of_one_question_make_one_send(
    db_url: str, outside: Outside, tmp_path: Path
):
    """Single flight, across processes."""
    outcomes = await _race(db_url, tmp_path, NO_KEYS, settings=CACHED, latency_s=0.2)
    assert _kinds(outcomes) == {"live": 1, "cache": CALLERS - 1}
    assert len({text for _, text in outcomes}) == 1
    assert len(sends(tmp_path / "sends")) == 1
    rows = await outside.runs()
    assert [row["status"] for row in rows] == ["SUCCEEDED"] * CALLERS
    (source,) = [row["id"] for row in rows if row["source_run_id"] is None]
    assert {row["source_run_id"] for row in rows} == {None, source}


@pytest.mark.parametrize(
    ("fate", "told", "status"), [("fails", "bad_request", "FAILED"), ("cancelled", "cancelled", "CANCELLED")]
)
async def test_a_leader_that_gives_up_hands_its_flight_to_one_follower(
    db_url: str, outside: Outside, tmp_path: Path, fate: str, told: str, status: str
):
    outcomes = await _race(db_url, tmp_path, NO_KEYS, settings=CACHED, first=fate, latency_s=0.1)
    assert _kinds(outcomes) == {told: 1, "live": 1, "cache": CALLERS - 2}
    assert len(sends(tmp_path / "sends")) == 2
    statuses = Counter(row["status"] for row in await outside.runs())
    assert statuses == {status: 1, "SUCCEEDED": CALLERS - 1}


@pytest.mark.parametrize("match", ["first", "any"])
async def test_a_leader_that_falls_back_pays_the_second_candidate_once_for_all(
    db_url: str, outside: Outside, tmp_path: Path, match: str
):
    """`any`: its answer serves everybody. `first`: the others ask the first candidate themselves, then are served."""
    outcomes = await _race(
        db_url, tmp_path, NO_KEYS, settings={**CACHED, "cache_match": match}, dead=[FIRST], latency_s=0.1
    )
    assert len(outcomes) == CALLERS
    assert len({text for _, text in outcomes}) == 1
    asked = Counter(sends(tmp_path / "sends", "to"))
    assert asked[SECOND] == 1
    if match == "any":
        assert asked[FIRST] == 1
        assert _kinds(outcomes) == {"live": 1, "cache": CALLERS - 1}
    rows = await outside.runs()
    assert [row["status"] for row in rows] == ["SUCCEEDED"] * CALLERS
    attempts = [len(await outside.attempts(row["id"])) for row in rows]
    assert sum(attempts) == asked.total()

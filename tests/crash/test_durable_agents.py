"""An agent is killed at every point of its run and started again: what was finished is neither sent, paid nor done twice."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.ledger import Outside
from tests.support.worker import sends, worker

pytestmark = pytest.mark.crash

WORKER = "tests.support.durable_worker"
CALL, TOOL = "call", "tool"
STEPS = (CALL, TOOL, CALL, TOOL, CALL)
"""The runs of one agent's run, in order."""
OUTPUT = '{"receipt":"R-1"}, {"receipt":"R-2"}'
AT_ONCE = 14


def points() -> dict[str, tuple[int, bool]]:
    """Return where it is killed: how many of its runs are finished by then, and whether the next one's deed was done."""
    found: dict[str, tuple[int, bool]] = {}
    ordinals: Counter[str] = Counter()
    for finished, step in enumerate(STEPS):
        number, ordinals[step] = finished + 1, ordinals[step] + 1
        found[f"before claim {number}"] = (finished, False)
        found[f"after claim {number}"] = (finished, False)
        if step == TOOL:
            found[f"begin {ordinals[step]}"] = (finished, False)
            found[f"paid {ordinals[step]}"] = (finished, True)
        else:
            found[f"send {ordinals[step]}"] = (finished, True)
            found[f"reply {ordinals[step]}"] = (finished, True)
        found[f"before finish {number}"] = (finished, True)
        found[f"after finish {number}"] = (finished + 1, False)
    return found


POINTS = points()


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


def job(url: str, folder: Path, key: str, at: str = "", **how: Any) -> dict[str, Any]:
    files = {"file": str(folder / "sends"), "spool": str(folder / "spool" / key)}
    return {"job": "pay_orders", "url": url, **files, "key": key, "at": at, **how}


def paid(folder: Path, key: str) -> list[int]:
    """The orders that were paid under a key, in order."""
    path = folder / "sends.paid"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(order) for name, _, order in (line.rpartition(" ") for line in lines) if name == key]


@pytest.mark.tried(len(POINTS))
async def test_an_agent_killed_anywhere_ends_alike_and_repeats_only_what_it_died_in(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I3, I6, I7: after each point, what was finished was sent once, paid once and done once; the rest at most twice."""
    ats = list(POINTS)
    async with worker(WORKER) as process:
        for some in (ats[start : start + AT_ONCE] for start in range(0, len(ats), AT_ONCE)):
            assert await process.run([job(db_url, tmp_path, at, at) for at in some]) == [None] * len(some)
            await outside.end_leases()
            results = await process.run([job(db_url, tmp_path, at) for at in some])
            for at, result in zip(some, results, strict=True):
                assert (at, result.get("output")) == (at, OUTPUT)
        (third,) = await process.run([job(db_url, tmp_path, ats[-1])])
        assert third == {"output": OUTPUT, "tokens": 0, "cost": 0}
    for at, (finished, done) in POINTS.items():
        kinds = Counter(STEPS)
        if done:
            kinds[STEPS[finished]] += 1
        sent = [key for key in sends(tmp_path / "sends") if key.startswith(f"{at}/clerk/")]
        assert (at, len(sent), len(paid(tmp_path, at))) == (at, kinds[CALL], kinds[TOOL])
        replayed = Counter(sent)
        assert (at, [n for n in replayed.values() if n > 1]) == (
            at,
            [2] if done and STEPS[finished] == CALL else [],
        )
    rows = await outside.runs()
    assert Counter(row["status"] for row in rows)["SUCCEEDED"] == len(POINTS) * len(STEPS)
    keys = [row["idempotency_key"] for row in rows if row["status"] == "SUCCEEDED"]
    assert len(set(keys)) == len(keys)
    tools = [row for row in rows if row["provider"] == "tool"]
    assert {(row["model"], row["cost_usd"] or 0, row["sends_noted"]) for row in tools} == {("pay", 0, 0)}


async def test_a_tool_that_died_half_way_is_left_to_a_person_where_takeovers_are_refused(
    db_url: str, outside: Outside, tmp_path: Path
):
    """The order was paid, and nobody knows: it is not paid again before somebody says so."""
    async with worker(WORKER) as process:
        assert await process.run([job(db_url, tmp_path, "k1", "paid 1")]) == [None]
        (told,) = await process.run([job(db_url, tmp_path, "k1", on_abandoned="refuse")])
        assert told["error"] == "key_in_progress"
        await outside.end_leases()
        careful = job(db_url, tmp_path, "k1", on_abandoned="refuse")
        (told,) = await process.run([careful])
        (died,) = await outside.runs(status="STARTED")
        assert told == {"error": "outcome_unknown", "run": died["id"]}
        assert paid(tmp_path, "k1") == [1]
        (result,) = await process.run([{**careful, "on_abandoned": "retry"}])
    assert result["output"] == OUTPUT
    assert paid(tmp_path, "k1") == [1, 1, 2]
    assert len(sends(tmp_path / "sends")) == 3


async def test_a_forced_run_sends_and_does_everything_again(db_url: str, tmp_path: Path):
    async with worker(WORKER) as process:
        (first,) = await process.run([job(db_url, tmp_path, "k1")])
        (forced,) = await process.run([job(db_url, tmp_path, "k1", force=True)])
        (last,) = await process.run([job(db_url, tmp_path, "k1")])
    assert first["output"] == forced["output"] == last["output"] == OUTPUT
    assert first["tokens"] == forced["tokens"] > 0
    assert last["tokens"] == 0
    assert paid(tmp_path, "k1") == [1, 2, 1, 2]
    assert len(sends(tmp_path / "sends")) == 6

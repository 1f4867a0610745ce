"""Reports and costs from the command line: what they say, and what they refuse. What is counted is tested with the ledger."""

import asyncio
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing.client import ScriptedClient
from tests.support.ledger import Outside
from tests.support.usage import LONG_AGO, TODAY, hit_row, put, put_send, run_row
from tests.unit.cli.conftest import Run

FLASH = {"provider": "gemini", "model": "gemini-2.5-flash"}
UNPRICED = run_row(TODAY, stage="draft", cost_usd=None, **FLASH)


@pytest.fixture
def filled(on_each_database: str) -> str:
    """Four calls and a tool of today, and one call of long ago."""

    async def fill() -> None:
        seen = Outside(on_each_database)
        await put(
            seen,
            run_row(TODAY, stage="draft", cost_usd=Decimal("0.001234567")),
            run_row(TODAY, stage="check", cost_usd=Decimal("0.5"), replayed_count=2),
            UNPRICED,
            hit_row(TODAY, stage="draft"),
            run_row(TODAY, provider="tool", model="pay", cost_usd=Decimal(0), status="FAILED"),
            run_row(LONG_AGO, cost_usd=Decimal(7)),
        )
        await put_send(seen, UNPRICED)
        await seen.close()

    asyncio.run(fill())
    return on_each_database


def document(signalbox: Run, *args: str) -> Any:
    done = signalbox("report", "--json", *args)
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


@pytest.mark.usefixtures("filled")
def test_a_report_has_a_line_for_each_day_and_says_what_is_unknown(signalbox: Run):
    told = document(signalbox)
    (line,) = told["lines"]
    assert (line["day"], line["runs"], line["hits"], line["replays"]) == (TODAY.date().isoformat(), 4, 1, 2)
    assert (line["cost_usd"], line["unknown_cost"]) == (0.501234567, 1)
    assert line["saved_cost_usd"] == 1.25
    assert abs(line["p50_ms"] - 100) < 5
    assert [tool["failed"] for tool in told["tools"]] == [1]
    assert document(signalbox, "--since", "52w")["total"]["runs"] == 5


@pytest.mark.usefixtures("filled")
def test_lines_may_stand_for_stages_and_models_and_be_of_one_stage_only(signalbox: Run):
    lines = document(signalbox, "--by", "stage", "--by", "model")["lines"]
    assert [(line["stage"], line["provider"], line["model"], line["runs"]) for line in lines] == [
        ("check", "gemini", "m", 1),
        ("draft", "gemini", "gemini-2.5-flash", 1),
        ("draft", "gemini", "m", 2),
    ]
    assert document(signalbox, "--stage", "draft")["total"]["runs"] == 3
    assert document(signalbox, "--workspace", "nobody")["lines"] == []


@pytest.mark.usefixtures("filled")
def test_a_person_sees_a_bar_for_each_line_and_the_tools_apart(signalbox: Run):
    done = signalbox("report", "--by", "stage")
    lines = done.out.splitlines()
    assert "\u2588" * 24 in next(line for line in lines if "check" in line)
    assert "0.001235 + 1 unknown" in next(line for line in lines if "draft" in line)
    assert "tools, not counted above: 1 runs, 1 failed, 0 replayed" in lines
    assert lines[-2].startswith("total: runs 4, failed 0, hits 1, replays 2")


def test_without_runs_there_is_nothing_to_report(signalbox: Run, on_each_database: str):
    done = signalbox("report")
    assert (done.code, done.out, done.err) == (0, "", "no runs\n")


def test_where_nothing_was_paid_bars_are_of_runs(signalbox: Run, client: ScriptedClient):
    signalbox("chat", "hello")
    assert "\u2588" * 24 in signalbox("report").out


def test_a_report_makes_no_database(signalbox: Run):
    assert "there is no database" in signalbox("report").told
    assert "there is no database" in signalbox("costs", "backfill").told


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--since", "soon"), "'soon' is no age"), (("--by", "hour"), "hour")],
)
def test_nonsense_is_refused_in_one_line(signalbox: Run, options: tuple[str, ...], message: str):
    done = signalbox("report", *options)
    assert (done.code, message in done.told) == (2, True)


def test_a_picture_needs_its_extra(signalbox: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "app.cli.plot", raising=False)
    done = signalbox("report", "--png", str(tmp_path / "costs.png"))
    assert (done.code, "pip install 'signalbox[plot]'" in done.told) == (2, True)


@pytest.mark.usefixtures("filled")
def test_a_picture_is_drawn(signalbox: Run, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not in the lock")
    file = tmp_path / "costs.png"
    assert signalbox("report", "--png", str(file)).code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("filled")
def test_a_backfill_says_what_it_priced_and_the_next_report_knows(signalbox: Run):
    foretold = json.loads(signalbox("costs", "backfill", "--dry-run", "--json").out)
    assert foretold == {"dry_run": True, "runs": 1, "sends": 1, "hits": 0, "unknown": 0}
    assert document(signalbox)["total"]["unknown_cost"] == 1
    done = signalbox("costs", "backfill", "--since", "7d")
    assert done.out == "1 runs got a cost (1 sends), 0 hits what they saved\n"
    total = document(signalbox)["total"]
    assert (total["unknown_cost"], total["cost_usd"]) == (0, 0.801234567)
    assert "0 runs would get" in signalbox("costs", "backfill", "--dry-run").out

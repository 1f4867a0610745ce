"""A probe measured alone joins the recorded run under its own date, and nothing else of the run changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench
from bench import records
from bench.alone import standing_alone, with_probe
from bench.blocks import BLOCKS
from bench.probes import PROBES
from bench.runner import Plan
from tests.house.test_bench import recorded_run

FACTS = {"date": "2026-05-02", "cpu": "A CPU", "cores": 2, "kernel": "Linux 6.1", "python": "3.11.8",
         "lane": "default", "versions": {"litellm": "1.2.3"}}  # fmt: skip
PRUNED = {
    "runs": 1_000_000,
    "rows_per_s": 5.0,
    "worst_write_s": 0.5,
    "rss_growth": 1.01,
    "rss_mb": [40.0, 41.0],
}


def alone(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return a run of one probe."""
    return {
        "facts": FACTS,
        "flush": {"p50_ms": 0.25, "p99_ms": 0.5},
        "took_s": 9.0,
        "rounds": {name: [found]},
    }


def without_a_million() -> dict[str, Any]:
    """Return a recorded run whose long probe failed."""
    document = recorded_run()
    document["rounds"]["prune_million"] = [{"fault": "no answer within 1800 s"}]
    for row in document["targets"]:
        if row["name"].startswith("prune a million"):
            row |= {"verdict": "ERROR", "measured": None, "why": "no answer"}
    return document


def test_only_a_probe_whose_target_is_a_ratio_to_a_cell_cannot_be_measured_alone():
    assert set(PROBES) - set(standing_alone()) == {"route"}


def test_a_probe_joins_the_run_and_only_its_own_targets_are_judged_again():
    before = without_a_million()
    after = with_probe(before, alone("prune_million", PRUNED), "prune_million")
    assert after["rounds"] == {**before["rounds"], "prune_million": [PRUNED]}
    assert after["facts"] == before["facts"]
    assert [row["name"] for row in after["targets"]] == [row["name"] for row in before["targets"]]
    changed = [row for row, was in zip(after["targets"], before["targets"], strict=True) if row != was]
    assert [(row["verdict"], row["measured"], row["date"]) for row in changed] == [
        ("FAIL", 0.5, "2026-05-02"),
        ("PASS", 1.01, "2026-05-02"),
    ]


def test_the_tables_say_what_was_measured_alone_and_when():
    document = with_probe(without_a_million(), alone("prune_million", PRUNED), "prune_million")
    note = "`prune_million` was measured alone on 2026-05-02, when writing 4 KB took 0.250 ms; python 3.11.8."
    blocks = {name: make(document) for name, make in BLOCKS.items()}
    assert blocks["bench-prune"].endswith(f"\n\n{note}")
    assert "| 1,000,000 | 5.00 | 0.500 | 41.0 |" in blocks["bench-prune"]
    assert "0.500 s, alone on 2026-05-02 |" in blocks["bench"]
    assert [name for name, text in blocks.items() if note in text] == ["bench-prune"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of results that nobody else reads."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(
        "signal.signal", lambda *_: None
    )  # the handler of the command line is not this process's
    return tmp_path


def answering(monkeypatch: pytest.MonkeyPatch, *names: str, found: dict[str, Any]) -> list[Plan]:
    """Let the next runs be of these probes."""
    plans: list[Plan] = []

    def run(plan: Plan, _say: object) -> dict[str, Any]:
        plans.append(plan)
        return alone(names[len(plans) - 1], found)

    monkeypatch.setattr(bench, "run", run)
    return plans


def test_each_probe_that_is_asked_for_is_run_by_itself_and_recorded(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    records.record(without_a_million())
    plans = answering(monkeypatch, "prune", "prune_million", found=PRUNED)
    assert bench.main(["probe", "prune", "prune_million"]) == 1  # a target of the long one is not kept
    assert [(list(plan.cells), list(plan.probes)) for plan in plans] == [
        ([], ["prune"]),
        ([], ["prune_million"]),
    ]
    document = json.loads((results / "full.json").read_text())
    assert set(document["alone"]) == {"prune", "prune_million"}
    assert document["rounds"]["prune"] == document["rounds"]["prune_million"] == [PRUNED]
    assert "FAIL  prune a million runs: a writer's longest wait" in capsys.readouterr().out


def test_a_probe_that_fails_leaves_the_record_as_it_was(results: Path, monkeypatch: pytest.MonkeyPatch):
    before = records.record(without_a_million()).read_text()
    answering(monkeypatch, "soak", found={"fault": "OSError: no space"})
    assert bench.main(["probe", "soak"]) == 1
    assert (results / "full.json").read_text() == before


def test_a_probe_without_a_recorded_run_is_not_started(results: Path, monkeypatch: pytest.MonkeyPatch):
    plans = answering(monkeypatch, "soak", found={})
    assert bench.main(["probe", "soak"]) == 1
    assert plans == []
    assert list(results.iterdir()) == []


def test_a_probe_that_cannot_stand_alone_is_refused(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    records.record(without_a_million())
    answering(monkeypatch, "route", found={"route_us": 7.0})
    with pytest.raises(SystemExit):
        bench.main(["probe", "route"])
    assert "invalid choice: 'route'" in capsys.readouterr().err
    assert "alone" not in json.loads((results / "full.json").read_text())

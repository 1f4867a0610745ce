"""The page of promises says what was tried, and `make check` fails where that is not what the suites and breaks say."""

import json
import sys
from pathlib import Path

import pytest

from tests.sabotage.breaks import BREAKS
from tools import reliability

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.crash.test_a" name="test_one[sqlite]"/>
<testcase classname="tests.crash.test_a" name="test_one[postgres]"><skipped/></testcase>
<testcase classname="tests.crash.test_a" name="test_many">
 <properties><property name="tried" value="300"/></properties><failure/></testcase>
<testcase classname="tests.crash.test_a" name="test_skipped"><properties><property name="tried" value="300"/></properties>
 <skipped/></testcase>
</testsuite></testsuites>"""
TEST = "tests/crash/test_kills.py::test_an_owner_killed_anywhere_costs_at_most_one_further_run"
ALL_CAUGHT = [{"name": each.name, "promise": each.promise, "caught_by": TEST} for each in BREAKS]


@pytest.fixture(scope="module")
def named() -> reliability.Named:
    return dict(reliability.tests_and_promises())


@pytest.fixture(scope="module")
def all_tried(named: reliability.Named) -> dict[str, dict[str, int]]:
    return {test: {"tried": 1, "failed": 0} for test in named}


def test_what_was_skipped_has_tried_nothing_and_what_failed_is_recorded(tmp_path: Path):
    report = tmp_path / "junit.xml"
    report.write_text(JUNIT)
    assert reliability._tried(report, 2)["tests"] == {
        "tests/crash/test_a.py::test_many": {"tried": 300, "failed": 1},
        "tests/crash/test_a.py::test_one": {"tried": 1, "failed": 0},
        "tests/crash/test_a.py::test_skipped": {"tried": 0, "failed": 0},
    }


def test_nothing_is_said_where_all_agrees(named, all_tried):
    assert reliability.disagreements(named, ALL_CAUGHT, all_tried) == []


@pytest.mark.parametrize(
    ("breaks", "tests", "said"),
    [
        (ALL_CAUGHT[1:], {}, "never made"),
        ([*ALL_CAUGHT, {**ALL_CAUGHT[0], "name": "gone"}], {}, "no such break"),
        ([{**ALL_CAUGHT[0], "promise": "I20"}, *ALL_CAUGHT[1:]], {}, "never made"),
        ([{**ALL_CAUGHT[0], "caught_by": None}, *ALL_CAUGHT[1:]], {}, "survived"),
        (
            [{**ALL_CAUGHT[0], "caught_by": "tests/crash/test_a.py::test_b"}, *ALL_CAUGHT[1:]],
            {},
            "which is gone",
        ),
        (ALL_CAUGHT, {TEST: {"tried": 19, "failed": 1}}, "failed in the crash run"),
        (ALL_CAUGHT, {TEST: {"tried": 0, "failed": 0}}, "skipped in the crash run"),
    ],
)
def test_each_disagreement_is_told(named, all_tried, breaks, tests, said: str):
    faults = reliability.disagreements(named, breaks, {**all_tried, **tests})
    assert any(said in fault for fault in faults), faults


def test_a_promise_without_a_test_or_a_try_or_a_break_is_told(named, all_tried):
    nothing_names_it = {test: promises - {"I9"} for test, promises in named.items()}
    nobody_tried = {test: {"tried": 0, "failed": 0} for test in named}
    not_broken = [each for each in ALL_CAUGHT if each["promise"] != "I9"]
    faults = [
        *reliability.disagreements(nothing_names_it, ALL_CAUGHT, all_tried),
        *reliability.disagreements(named, ALL_CAUGHT, nobody_tried),
        *reliability.disagreements(named, not_broken, all_tried),
    ]
    told = {"I9: no test names it", "I9: no test of the crash run tried it", "I9: no break tries it"}
    assert told <= set(faults)


def test_a_page_that_says_something_else_is_told_and_left_alone_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "RELIABILITY.md"
    page.write_text(reliability.PAGE.read_text().replace("| I9: ", "| I9: perhaps "))
    before = page.read_text()
    monkeypatch.setattr(reliability, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["reliability", "--check"])
    assert reliability.main() == 1
    assert "RELIABILITY.md: stale" in capsys.readouterr().err
    assert page.read_text() == before


def test_the_columns_are_counted_from_the_results(named):
    breaks = [{**each, "caught_by": None} for each in ALL_CAUGHT if each["promise"] == "I1"]
    run = {"date": "", "rounds": 1, "tests": {TEST: {"tried": 19, "failed": 2}}}
    rows = reliability.renewed(f"{reliability.BEGIN}{reliability.END}", named, breaks, run).splitlines()
    (first,) = (row for row in rows if row.startswith("| I1:"))
    (last,) = (row for row in rows if row.startswith("| all,"))
    assert first.endswith(f"| 19 | 2 | {len(breaks)} | 0 |")
    assert last.endswith(f"| 1 | 19 | 2 | {len(breaks)} | 0 |")


def test_a_run_without_a_test_that_names_a_promise_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report, record = tmp_path / "junit.xml", tmp_path / "crash.json"
    report.write_text(JUNIT)
    record.write_text(json.dumps({}))
    monkeypatch.setattr(reliability, "CRASH", record)
    monkeypatch.setattr(sys, "argv", ["reliability", "--tried", str(report)])
    assert reliability.main() == 1
    assert f"{TEST}: not in that run" in capsys.readouterr().err
    assert json.loads(record.read_text()) == {}

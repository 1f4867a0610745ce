"""Pruning from the command line: what it asks, what it says, what it refuses. The rules are tested with the ledger."""

import json

import pytest

from app.llm.testing.client import ScriptedClient
from tests.unit.cli.conftest import Run, Terminal
from tests.unit.cli.test_runs import listed


@pytest.fixture
def three_runs(signalbox: Run, client: ScriptedClient) -> None:
    signalbox("chat", "one")
    signalbox("chat", "two", "--workspace", "other")
    signalbox("chat", "three", "--key", "held")


@pytest.mark.usefixtures("on_each_database", "three_runs")
def test_old_runs_go_and_a_live_key_keeps_its_own(signalbox: Run):
    done = signalbox("prune", "--older-than", "0s", "--yes")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "2 runs with 2 attempts deleted, 0 payloads deleted",
        "1 old run kept for a live key (--keys would not)",
    ]
    assert [run["idempotency_key"] for run in listed(signalbox)] == ["held"]


@pytest.mark.usefixtures("three_runs")
def test_a_dry_run_deletes_nothing_and_says_what_would_go(signalbox: Run):
    told = json.loads(
        signalbox("prune", "--older-than", "0s", "--dry-run", "--workspace", "other", "--json").out
    )
    assert (told["runs"], told["payloads"], told["dry_run"]) == (1, None, True)
    assert "would be deleted" in signalbox("prune", "--older-than", "0s", "--dry-run").out
    assert len(listed(signalbox)) == 3


@pytest.mark.usefixtures("three_runs")
def test_with_keys_the_held_run_goes_too_and_that_is_said(signalbox: Run):
    done = signalbox("prune", "--older-than", "0s", "--keys", "--yes")
    assert done.out.startswith("3 runs with 3 attempts deleted")
    assert "can be executed, and paid, again" in done.err
    assert listed(signalbox) == []


@pytest.mark.usefixtures("three_runs")
def test_what_was_said_is_forgotten_and_the_runs_stay(signalbox: Run):
    done = signalbox("prune", "--older-than", "0s", "--payloads-only", "--yes")
    assert done.out.startswith("3 runs forgot what was said")
    assert len(listed(signalbox)) == 3
    assert "not stored" in signalbox("chat", "three", "--key", "held").told


@pytest.mark.parametrize(("answer", "left"), [("y\n", 1), ("n\n", 3)])
@pytest.mark.usefixtures("three_runs")
def test_a_person_is_asked_first(signalbox: Run, answer: str, left: int):
    done = signalbox("prune", "--older-than", "0s", stdin=answer, kind=Terminal)
    assert done.code == (0 if left == 1 else 1)
    assert "that ended more than 0s ago would be deleted" in done.err
    assert len(listed(signalbox)) == left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--older-than", "soon", "--yes"), "'soon' is no age; write 90s, 30m, 24h, 30d or 2w"),
        (("--older-than", "99999w", "--yes"), "more than a hundred years"),
        (("--older-than", "1d"), "add --yes"),
        (("--older-than", "1d", "--keys", "--payloads-only", "--yes"), "--keys and --payloads-only"),
    ],
)
def test_nonsense_is_refused_in_one_line(signalbox: Run, options: tuple[str, ...], message: str):
    done = signalbox("prune", *options)
    assert (done.code, message in done.told) == (2, True)


def test_pruning_makes_no_database(signalbox: Run):
    assert "there is no database" in signalbox("prune", "--older-than", "1d", "--yes").told

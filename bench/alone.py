"""A probe measured by itself and put into the recorded run with its own date, because one alone may take an hour."""

from collections.abc import Iterable, Mapping
from typing import Any

from bench.figures import Key, Rounds
from bench.probes import PROBES
from bench.records import Document
from bench.tables import number
from bench.targets import TARGETS, judge


def standing_alone() -> tuple[str, ...]:
    """Return the probes whose targets are made of nothing else: ratios to a cell need the cell's own run."""
    return tuple(
        name
        for name in PROBES
        if all(target.figure.needs == {name} for target in TARGETS if name in target.figure.needs)
    )


def with_probe(document: Document, alone: Document, name: Key) -> Document:
    """Return the recorded run with what a run of one probe gave, its targets judged anew.

    Args:
        document: The recorded run.
        alone: A run whose `rounds` hold the probe.
        name: Of the probe.
    """
    found = {**document["rounds"], name: alone["rounds"][name]}
    conditions = {part: alone[part] for part in ("facts", "flush", "took_s")}
    again = {row["name"]: row for row in judged_alone(found, name, alone["facts"]["date"])}
    return {
        **document,
        "alone": {**document.get("alone", {}), name: conditions},
        "rounds": found,
        "targets": [*(again.pop(row["name"], row) for row in document["targets"]), *again.values()],
    }


def judged_alone(rounds: Rounds, name: Key, date: str) -> list[Mapping[str, Any]]:
    """Return the targets of one probe, each with the day on which it was measured."""
    return [
        {**judge(target, rounds).as_row(), "date": date}
        for target in TARGETS
        if target.figure.needs == {name}
    ]


def note_of(document: Document, names: Iterable[Key]) -> str:
    """Return when and under what other conditions than the run's these probes were measured; empty if with it."""
    return " ".join(
        _said(name, document["facts"], document["alone"][name])
        for name in names
        if name in document.get("alone", {})
    )


def _said(name: Key, facts: Mapping[str, Any], alone: Mapping[str, Any]) -> str:
    theirs = alone["facts"]
    others = [
        f"{fact} {_text(value)}"
        for fact, value in theirs.items()
        if fact != "date" and value != facts.get(fact)
    ]
    return (
        f"`{name}` was measured alone on {theirs['date']}, when writing 4 KB took "
        f"{number(alone['flush']['p50_ms'])} ms{''.join(f'; {other}' for other in others)}."
    )


def _text(value: Any) -> str:
    return (
        ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else f"{value}"
    )

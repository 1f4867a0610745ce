"""The tables of the documents, each made of one recorded run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.alone import note_of
from bench.cases import CASES
from bench.figures import Key, NotMeasured, cpu, key_of, rate, sound
from bench.probes.fresh import HEAVY, MODULES
from bench.probes.soak import FULL_AFTER
from bench.records import Document
from bench.sizing import sizing_table
from bench.tables import best_of, markdown, number, us

NOTHING = "Not measured in this run."

_SHOWN = (
    "raw",
    "floor",
    "unpersisted",
    "sqlite",
    "postgres",
    "failover",
    "acompletion",
    "router",
    "router_of_one_model",
    "router_failover",
)
"""Cases of the README's table."""
_COMPARED = ("unpersisted", "sqlite", "postgres", "failover")
_COMPARED_WITH = ("raw", "floor", "acompletion", "router", "router_of_one_model", "router_failover")


def overview(document: Document) -> str:
    """Return the README's block: plot, conditions, the cases beside each other, the targets folded."""
    return "\n\n".join(
        [
            "![CPU per call and calls per second, ours beside LiteLLM](docs/bench.svg)",
            conditions(document),
            cells_table(document, _SHOWN, (1, 64)),
            f"<details><summary>Every target, measured</summary>\n\n{target_table(document)}\n\n</details>",
        ]
    )


def conditions(document: Document) -> str:
    """Return when, where and with what it was measured."""
    facts, flush, pace = document["facts"], document["flush"], document.get("pace")
    rounds = (
        f"{pace['rounds']} interleaved rounds of {pace['seconds']:g} s"
        if pace
        else "several interleaved rounds"
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"Measured {facts['date']} on {facts['cores']} cores ({facts['cpu']}, {facts['kernel']}), Python "
        f"{facts['python']}, {versions}. The client has one core, the stub provider and PostgreSQL the other. Writing "
        f"4 KB to the disk took {number(flush['p50_ms'])} ms (p99 {number(flush['p99_ms'])}). CPU is that of the client's "
        f"process, the best of {rounds}. Compare columns of one run, not runs."
    )


def cells_table(
    document: Document, cases: Iterable[str], in_flight: Sequence[int], *, memory: bool = False
) -> str:
    """Return CPU, latency and rate of cases, side by side for each number in flight; `memory` adds the most RSS."""
    rounds = document["rounds"]
    head = ["case"]
    for count in in_flight:
        head += [f"CPU ms at {count}", f"p50 / p99 ms at {count}", f"calls/s at {count}"]
    if memory:
        head.append("RSS MB")
    rows = []
    for case in cases:
        row = [CASES[case].title]
        for count in in_flight:
            row += _cells(rounds, case, count)
        if memory:
            row.append(_memory(rounds, case, in_flight))
        if any(cell != "-" for cell in row[1:]):
            rows.append(row)
    return markdown(head, rows)


def _cells(rounds: Mapping[Key, Any], case: str, in_flight: int) -> list[str]:
    try:
        best = best_of(sound(rounds, key_of(case, in_flight)))
        return [
            number(cpu(case, in_flight).of(rounds)),
            f"{number(best['p50_ms'])} / {number(best['p99_ms'])}",
            f"{rate(case, in_flight).of(rounds):,.0f}",
        ]
    except NotMeasured:
        return ["failed" if key_of(case, in_flight) in rounds else "-"] * 3


def _memory(rounds: Mapping[Key, Any], case: str, in_flight: Iterable[int]) -> str:
    keys = [key for count in in_flight if (key := key_of(case, count)) in rounds]
    sizes_mb = [cell["rss_mb"] for key in keys for cell in rounds[key] if "rss_mb" in cell]
    return number(max(sizes_mb)) if sizes_mb else "-"


def ratio_table(document: Document) -> str:
    """Return what our calls cost as multiples of everybody else's, in the same run."""
    rounds = document["rounds"]

    def ratio(ours: str, theirs: str, count: int) -> str:
        try:
            return number((cpu(ours, count) / cpu(theirs, count)).of(rounds))
        except (NotMeasured, ZeroDivisionError):
            return "-"

    rows = [
        [
            f"{CASES[ours].title}, {count} in flight",
            *(ratio(ours, theirs, count) for theirs in _COMPARED_WITH),
        ]
        for ours in _COMPARED
        for count in (1, 64)
    ]
    return markdown(("CPU per call, as a multiple of", *(CASES[each].title for each in _COMPARED_WITH)), rows)


def target_table(document: Document) -> str:
    """Return the targets as a table."""
    rows = [
        (
            row["verdict"],
            row["name"],
            (row["why"] if row["measured"] is None else f"{number(row['measured'])} {row['unit']}")
            + (f", alone on {row['date']}" if "date" in row else ""),
            f"{'>=' if row['at_least'] else '<='} {row['limit']:g}",
        )
        for row in document["targets"]
    ]
    return markdown(("", "target", "measured", "limit"), rows)


def all_cells(document: Document) -> str:
    """Return every case at every number in flight."""
    return cells_table(document, CASES, (1, 16, 64, 256), memory=True)


def steps_table(document: Document) -> str:
    """Return the steps of a call in microseconds."""
    return _of_probe(document, "steps", lambda found: markdown(("step", "CPU us"), us(found)))


def prompt_table(document: Document) -> str:
    """Return what larger prompts cost, fresh and as a fingerprint."""
    sizes = {"1 KB": ("", "1k"), "16 KB": ("_16k", "16k"), "256 KB": ("_256k", "256k"), "4 MB": (None, "4m")}
    rounds = document["rounds"]

    def rows(found: Mapping[str, Any]) -> Iterable[Sequence[str]]:
        for title, (suffix, name) in sizes.items():
            calls = (
                ["-", "-"]
                if suffix is None
                else [_cells(rounds, f"{case}{suffix}", 1)[0] for case in ("raw", "sqlite")]
            )
            ours, floor = found[f"ours_{name}_us"], found[f"floor_{name}_us"]
            yield [title, *calls, number(ours), number(floor)]

    head = (
        "prompt",
        "raw aiohttp, CPU ms",
        "ours, SQLite, CPU ms",
        "fingerprint, us",
        "orjson sorted + SHA-256, us",
    )
    return _of_probe(document, "fingerprint", lambda found: markdown(head, rows(found)))


def growth_table(document: Document) -> str:
    """Return claim and finish as the tables grow, on both databases."""
    rows, probes = [], {"growth": "SQLite", "growth_postgres": "PostgreSQL"}
    for probe, title in probes.items():
        rows += _rows_of(
            document,
            probe,
            lambda found, title=title: [
                [title, f"{size:,}", number(found[f"median_{size}_us"]), number(found[f"mean_{size}_us"])]
                for size in found["rows"]
            ],
        )
    return _table(document, probes, ("database", "runs", "median us", "mean us"), rows)


def import_table(document: Document) -> str:
    """Return what a new interpreter pays for an import, and for an answer that is there already."""

    def rows(found: Mapping[str, Any]) -> Iterable[Sequence[str]]:
        for name, module in MODULES.items():
            loads = ", ".join(found[f"{name}_loads"]) or "none"
            figures = (found[f"{name}_s"] * 1000, found[f"{name}_rss_mb"], found[f"{name}_modules"])
            yield [f"`import {module}`", *map(number, figures), loads]

    head = ("fresh interpreter", "wall ms", "RSS MB", "modules", f"of {', '.join(HEAVY)}")
    return _of_probe(document, "imports", lambda found: markdown(head, rows(found)))


def fresh_table(document: Document) -> str:
    """Return what a program pays that gets one stored answer and ends."""
    head = ("program that ends after", "CPU ms, imports included", "modules", f"of {', '.join(HEAVY)}")

    def rows(found: Mapping[str, Any]) -> Iterable[Sequence[str]]:
        for kind in ("replay", "hit"):
            figures = (found[f"{kind}_cpu_s"] * 1000, found[f"{kind}_modules"])
            yield [
                f"one {kind} from SQLite",
                *map(number, figures),
                ", ".join(found[f"{kind}_loads"]) or "none",
            ]

    return _of_probe(document, "fresh_process", lambda found: markdown(head, rows(found)))


def prune_table(document: Document) -> str:
    """Return what pruning takes, and what a caller beside it notices."""
    head = ("prune", "runs", "rows/s", "longest wait of a caller, s", "RSS MB")
    rows, probes = [], {"prune": "SQLite", "prune_postgres": "PostgreSQL", "prune_million": "SQLite"}
    for probe, title in probes.items():
        rows += _rows_of(
            document,
            probe,
            lambda found, title=title: [
                [
                    title,
                    f"{found['runs']:,}",
                    *map(number, (found["rows_per_s"], found["worst_write_s"], max(found["rss_mb"]))),
                ]
            ],
        )
    return _table(document, probes, head, rows)


def stage_table(document: Document) -> str:
    """Return what a thousand stages in flight take."""
    head = ("stages in flight", "database", "RSS MB before", "RSS MB at its most", "KB a stage", "seconds")
    rows, probes = [], {"stages": "SQLite", "stages_postgres": "PostgreSQL"}
    for probe, title in probes.items():
        rows += _rows_of(
            document,
            probe,
            lambda found, title=title: [
                [
                    f"{found['stages']:,}",
                    title,
                    *(number(found[name]) for name in ("warm_mb", "most_mb", "kb_per_stage", "took_s")),
                ]
            ],
        )
    return _table(document, probes, head, rows)


def soak_table(document: Document) -> str:
    """Return how a hundred thousand calls went."""
    head = ("calls", "calls/s", "errors", "rows", "RSS MB, once the memory of answers is full", "swing")

    def row(found: Mapping[str, Any]) -> Sequence[str]:
        sizes = [size for calls, size in found["rss_mb"] if calls >= found["calls"] * FULL_AFTER]
        counts = (found["calls"], found["calls_per_s"], found["errors"], found["rows"])
        between = f"{number(min(sizes))} to {number(max(sizes))}"
        return [*(f"{count:,.0f}" for count in counts), between, f"+-{found['rss_swing']:.1%}"]

    return _of_probe(document, "soak", lambda found: markdown(head, [row(found)]))


def _of_probe(document: Document, probe: str, make: Callable[[Mapping[str, Any]], str]) -> str:
    if probe not in document["rounds"]:
        return NOTHING
    try:
        (found,) = sound(document["rounds"], probe)
    except NotMeasured as missing:
        return f"Failed: {missing}"
    return _with_note(make(found), document, [probe])


def _table(
    document: Document, probes: Iterable[str], head: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Return the rows of several probes as one table."""
    return _with_note(markdown(head, rows), document, probes) if rows else NOTHING


def _with_note(text: str, document: Document, probes: Iterable[str]) -> str:
    note = note_of(document, probes)
    return f"{text}\n\n{note}" if note else text


def _rows_of(
    document: Document, probe: str, make: Callable[[Mapping[str, Any]], Iterable[Sequence[str]]]
) -> list[Sequence[str]]:
    """Return the rows of one probe among several: none where it was not wanted, its fault where it failed."""
    if probe not in document["rounds"]:
        return []
    try:
        (found,) = sound(document["rounds"], probe)
    except NotMeasured as missing:
        return [["failed", str(missing)]]
    return list(make(found))


BLOCKS: Mapping[str, Callable[[Document], str]] = {
    "bench": overview,
    "bench-conditions": conditions,
    "bench-cells": all_cells,
    "bench-ratios": ratio_table,
    "bench-steps": steps_table,
    "bench-prompts": prompt_table,
    "bench-growth": growth_table,
    "bench-imports": import_table,
    "bench-fresh": fresh_table,
    "bench-prune": prune_table,
    "bench-stages": stage_table,
    "bench-soak": soak_table,
    "bench-sizing": sizing_table,
}
"""What each pair of markers holds."""

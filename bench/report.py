"""A run as people read it: targets in the terminal, tables between markers in the documents. All from its JSON."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cases import CASES
from bench.figures import Key, NotMeasured, cpu, rate, sound
from bench.records import Document
from bench.sizing import sizing_table
from bench.tables import best_of, markdown, number, us

ROOT = Path(__file__).resolve().parents[1]
PLOT = ROOT / "docs" / "bench.svg"
DOCUMENTS = ("README.md", "docs/PERFORMANCE.md")

_SHOWN = (
    "raw",
    "floor",
    "unpersisted",
    "sqlite",
    "postgres",
    "failover",
    "acompletion",
    "router",
    "router_failover",
)
"""Cases of the README's table."""


def target_line(row: Mapping[str, Any]) -> str:
    """Return one target as `PASS|FAIL name measured limit`."""
    sign = ">=" if row["at_least"] else "<="
    measured = row["why"] if row["measured"] is None else f"{number(row['measured'])} {row['unit']}"
    return f"{row['verdict']:5} {row['name']:66} {measured:>12}  {sign} {row['limit']:g}"


def stale_documents(document: Document) -> dict[Path, str]:
    """Return the documents whose tables are not those of `document`, each with the text that it should have.

    Raises:
        ValueError: A document opens a block and does not close it.
    """
    wanted = {
        ROOT / name: _renewed((ROOT / name).read_text(encoding="utf-8"), document) for name in DOCUMENTS
    }
    return {path: text for path, text in wanted.items() if text != path.read_text(encoding="utf-8")}


def _renewed(text: str, document: Document) -> str:
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text:
            continue
        before, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"{begin} has no {end}")
        text = f"{before}{begin}\n{make(document)}\n{end}{rest.split(end, 1)[1]}"
    return text


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
    facts, flush = document["facts"], document["flush"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"Measured {facts['date']} on {facts['cores']} cores ({facts['cpu']}, {facts['kernel']}), Python "
        f"{facts['python']}, {versions}. The client has one core, the stub provider and PostgreSQL the other. Writing "
        f"4 KB to the disk took {number(flush['p50_ms'])} ms (p99 {number(flush['p99_ms'])}). CPU is that of the client's "
        "process, the best of several interleaved rounds. Compare columns of one run, not runs."
    )


def cells_table(document: Document, cases: Iterable[str], in_flight: Sequence[int]) -> str:
    """Return CPU, latency and rate of cases, side by side for each number in flight."""
    rounds = document["rounds"]
    head = ["case"]
    for count in in_flight:
        head += [f"CPU ms at {count}", f"p50 / p99 ms at {count}", f"calls/s at {count}"]
    rows = []
    for case in cases:
        row = [CASES[case].title]
        for count in in_flight:
            row += _cells(rounds, case, count)
        if any(cell != "-" for cell in row[1:]):
            rows.append(row)
    return markdown(head, rows)


def _cells(rounds: Mapping[Key, Any], case: str, in_flight: int) -> list[str]:
    try:
        best = best_of(sound(rounds, f"{case}@{in_flight}"))
        return [
            number(cpu(case, in_flight).of(rounds)),
            f"{number(best['p50_ms'])} / {number(best['p99_ms'])}",
            f"{rate(case, in_flight).of(rounds):,.0f}",
        ]
    except NotMeasured:
        return ["-", "-", "-"]


def target_table(document: Document) -> str:
    """Return the targets as a table."""
    rows = [
        (
            row["verdict"],
            row["name"],
            row["why"] if row["measured"] is None else f"{number(row['measured'])} {row['unit']}",
            f"{'>=' if row['at_least'] else '<='} {row['limit']:g}",
        )
        for row in document["targets"]
    ]
    return markdown(("", "target", "measured", "limit"), rows)


def all_cells(document: Document) -> str:
    """Return every case at every number in flight."""
    return cells_table(document, CASES, (1, 16, 64, 256))


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
    rows = []
    for probe, title in (("growth", "SQLite"), ("growth_postgres", "PostgreSQL")):
        try:
            (found,) = sound(document["rounds"], probe)
        except NotMeasured:
            continue
        rows += [
            (title, f"{size:,}", number(found[f"median_{size}_us"]), number(found[f"mean_{size}_us"]))
            for size in found["rows"]
        ]
    return (
        markdown(("database", "runs", "median us", "mean us"), rows) if rows else "Not measured in this run."
    )


def _of_probe(document: Document, probe: str, make: Callable[[Mapping[str, Any]], str]) -> str:
    try:
        (found,) = sound(document["rounds"], probe)
    except NotMeasured:
        return "Not measured in this run."
    return make(found)


BLOCKS: Mapping[str, Callable[[Document], str]] = {
    "bench": overview,
    "bench-conditions": conditions,
    "bench-cells": all_cells,
    "bench-steps": steps_table,
    "bench-prompts": prompt_table,
    "bench-growth": growth_table,
    "bench-sizing": sizing_table,
}
"""What each pair of markers holds."""

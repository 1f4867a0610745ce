"""`signalbox report`: what was called, what it cost and what was saved, by day, workspace, stage or model."""

import asyncio
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.ages import seconds
from app.cli.faults import UsageFault
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, emit_table, note, status_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from decimal import Decimal

    from app.llm.persistence.rollup import ReportLine
    from app.llm.persistence.usage import Measures


class By(StrEnum):
    """What a line may stand for; typer knows no list of literals."""

    DAY = "day"
    WORKSPACE = "workspace"
    STAGE = "stage"
    PROVIDER = "provider"
    MODEL = "model"


BAR = 24
"""Columns of the longest bar."""
_EIGHTHS = ("", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589")
_COLUMNS = (
    "runs",
    "failed",
    "hits",
    "replays",
    "input",
    "output",
    "cost USD",
    "saved USD",
    "p50 ms",
    "p95 ms",
)
MEDIAN, MOST = 0.5, 0.95


def report(  # one parameter for each option
    *,
    by: Annotated[
        list[By] | None, typer.Option(help="What the lines stand for; may be repeated. Default: day.")
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="AGE", help="How far back: 24h, 30d, 52w; whole days.")
    ] = "30d",
    workspace: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant only.")] = None,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Of this step only.")] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the costs (extra `plot`).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show runs, tokens, costs, savings and latency of the last days, in UTC, with a bar for each line's cost.

    Days that changed are counted first; what was pruned stays counted. A cost that is unknown is not zero: it is left
    out of the sum, and how many there are is said. Hits and replays saved what their answer cost. Latencies are of the
    runs that a provider answered, within 5 %. Runs of tools are apart.

    Example: signalbox report --by model --by stage --since 7d
    """
    keys = tuple(dict.fromkeys(each.value for each in by or (By.DAY,)))
    last = datetime.now(UTC).date()
    first = last - timedelta(seconds=seconds(since, "--since"))
    where = {"workspace_id": workspace, "stage": stage}
    wanted = {name: value for name, value in where.items() if value is not None}
    with _drawing(png) as draw:
        lines, total = asyncio.run(_reported(keys, first, last, wanted))
        draw([line for line in lines if not line.is_tool], keys)
    if as_json:
        emit_json(_document(lines, total, keys, first, last))
    elif total:
        _show(lines, total)
    else:
        note("no runs")


async def _reported(
    by: "Sequence[str]", first: date, last: date, where: dict[str, str]
) -> "tuple[list[ReportLine], list[ReportLine]]":
    """Return the lines and, apart, the sums of all: of calls, and of tools if there were any."""
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.persistence import rollup  # noqa: PLC0415

    async with ledger.current() as executor:
        with status_line("counting days") as tell:
            await rollup.roll_up(executor, progress=lambda day: tell(f"counted {day}"))
        lines = await rollup.report(executor, by=by, first=first, last=last, where=where)
    return lines, rollup.totals(lines)


@contextmanager
def _drawing(png: Path | None) -> "Iterator[Callable[[Sequence[ReportLine], Sequence[str]], None]]":
    """Yield what draws the lines; that it cannot is told before anything is counted."""
    if png is None:
        yield lambda _lines, _by: None
        return
    try:
        from app.cli.plot import draw  # noqa: PLC0415  # its library is optional
    except ImportError:
        raise UsageFault("--png needs the extra `plot`: pip install 'signalbox[plot]'") from None
    yield lambda lines, by: draw(png, [(label(line), float(line.measures.cost_usd)) for line in lines], by)


def label(line: "ReportLine") -> str:
    """Return what a line stands for, in one text."""
    return " ".join(value or "-" for value in line.keys.values())


def _show(lines: "Sequence[ReportLine]", total: "Sequence[ReportLine]") -> None:
    calls = [line for line in lines if not line.is_tool]
    if calls:
        unit, size = _measure(calls)
        longest = max(map(size, calls))
        emit_table(
            (*(name.removesuffix("_id") for name in calls[0].keys), *_COLUMNS, unit),
            [
                (*line.keys.values(), *_cells(line.measures), _bar(size(line) / longest if longest else 0))
                for line in calls
            ],
            or_lines=(
                [*line.keys.values(), *_named(line.measures), _bar(size(line) / longest if longest else 0)]
                for line in calls
            ),
        )
    for line in total:
        counts = line.measures.counts
        if line.is_tool:
            emit(
                f"tools, not counted above: {counts['runs']:,} runs, {counts['failed']:,} failed, "
                f"{counts['replays']:,} replayed"
            )
        else:
            emit("total: " + ", ".join(_named(line.measures)))


def _measure(calls: "Sequence[ReportLine]") -> "tuple[str, Callable[[ReportLine], float]]":
    """Return what the bars show: dollars, or runs where nothing was paid."""
    if any(line.measures.cost_usd for line in calls):
        return "cost", lambda line: float(line.measures.cost_usd)
    return "runs", lambda line: float(line.measures.counts["runs"])


def _cells(measures: "Measures") -> tuple[str, ...]:
    counts = measures.counts
    return (
        *(f"{counts[name]:,}" for name in ("runs", "failed", "hits", "replays")),
        *(_known(f"{counts[f'{name}_tokens']:,}", counts["unknown_tokens"]) for name in ("input", "output")),
        _known(_dollars(measures.cost_usd), counts["unknown_cost"]),
        _known(_dollars(measures.saved_cost_usd), counts["unknown_saved"]),
        *(_rounded(measures.percentile_ms(share)) for share in (MEDIAN, MOST)),
    )


def _named(measures: "Measures") -> list[str]:
    return [f"{name} {cell}" for name, cell in zip(_COLUMNS, _cells(measures), strict=True) if cell]


def _known(said: str, unknown: int) -> str:
    return f"{said} + {unknown:,} unknown" if unknown else said


def _dollars(cost_usd: "Decimal") -> str:
    return f"{cost_usd:,.6f}" if cost_usd else "0"


def _rounded(latency_ms: float | None) -> str:
    return "" if latency_ms is None else f"{latency_ms:,.0f}"


def _bar(share: float) -> str:
    """Return a bar of blocks, in eighths of a column; what is not nothing is seen."""
    eighths = max(round(share * BAR * 8), 1 if share else 0)
    return "\u2588" * (eighths // 8) + _EIGHTHS[eighths % 8]


def _document(
    lines: "Sequence[ReportLine]", total: "Sequence[ReportLine]", by: "Sequence[str]", first: date, last: date
) -> dict[str, Any]:
    from app.llm.persistence.usage import LATENCY_ERROR  # noqa: PLC0415  # --help is fast

    return {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "by": list(by),
        "latency_error": round(LATENCY_ERROR, 3),
        "lines": [{**line.keys, **_figures(line.measures)} for line in lines if not line.is_tool],
        "total": next((_figures(line.measures) for line in total if not line.is_tool), None),
        "tools": [{**line.keys, **_figures(line.measures)} for line in lines if line.is_tool],
    }


def _figures(measures: "Measures") -> dict[str, Any]:
    figures = measures.row()
    del figures["latencies"]
    return {
        **figures,
        "p50_ms": measures.percentile_ms(MEDIAN),
        "p95_ms": measures.percentile_ms(MOST),
    }

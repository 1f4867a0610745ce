"""`signalbox cassette`: recorded calls as files for tests, taken out of the ledger or looked at."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, RunOptions, with_run_options
from app.cli.output import emit, emit_json, emit_table, note

group = typer.Typer(help="Recorded calls as files for tests.")


@group.command()
@with_run_options
def export(
    *,
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The cassette; replaced if it is there.")
    ],
    limit: Annotated[int, typer.Option(min=1, metavar="RUNS", help="Refuse more runs than this.")] = 1000,
    as_json: AsJson = False,
    chosen: RunOptions,
) -> None:
    """Write what providers were asked and what they said, for LLM_MODE=replay: each send of each run, oldest first.

    Needs runs whose texts are stored (LLM_STORE_PAYLOADS=full). Secrets, e-mail addresses and long numbers are taken
    out. Hits and tools are no sends. Of a send that failed the ledger keeps the code and no words. A run in which an
    answer was refused by a check is left out, because the ledger keeps only the one that passed.

    Example: signalbox cassette export -o tests/cassettes/invoice.jsonl --stage extract --since 1h
    """
    from app.cli.cassette_file import exported  # noqa: PLC0415  # --help is fast

    done = asyncio.run(exported(Path(out), chosen.filter(), limit=limit))
    for why, runs in done.left_out.items():
        note(f"left out: {len(runs)} of which {why} ({runs[0]}{', ...' if len(runs) > 1 else ''})")
    if as_json:
        emit_json({"file": out, "calls": done.calls, "runs": done.runs, "left_out": done.left_out})
    else:
        emit(f"{out}: {done.calls} calls of {done.runs} runs")


@group.command()
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A cassette.")], *, as_json: AsJson = False
) -> None:
    """Show the calls of a cassette: who was asked, the last words of the request, and what came back.

    Example: signalbox cassette show tests/cassettes/invoice.jsonl
    """
    from app.cli.cassette_file import COLUMNS, documents, rows  # noqa: PLC0415  # --help is fast

    if as_json:
        emit_json(documents(Path(file)))
    else:
        emit_table(COLUMNS, rows(Path(file)))

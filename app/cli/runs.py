"""`signalbox runs`: look at the ledger, follow it, and free the key of a dead owner."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.faults import FAILED, UsageFault
from app.cli.options import AsJson, RunOptions, with_run_options
from app.cli.output import emit, emit_json, emit_table, note
from app.cli.run_view import emit_run, line, list_row, run_document
from app.cli.tail import tail

if TYPE_CHECKING:
    from app.llm.persistence.reports import Row

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="The id, or a beginning of it that is unique.")]

_COLUMNS = (
    *("run", "created (UTC)", "workspace", "stage", "status", "candidate", "from", "tokens", "ms", "key"),
    "error",
)

group = typer.Typer(help="Look at the ledger, follow it; free the key of a dead owner.")


@group.command("list")
@with_run_options
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="ROWS", help="Rows at most.")] = 20,
    as_json: AsJson = False,
    chosen: RunOptions,
) -> None:
    """List runs, newest first.

    Example: signalbox runs list --status failed --stage draft --since 24h
    """
    from app.cli import ledger  # noqa: PLC0415  # --help is fast

    rows: list[Row] = asyncio.run(ledger.listed(chosen.filter(), limit=limit))
    if as_json:
        emit_json([dict(row) for row in rows])
    elif rows:
        emit_table(_COLUMNS, map(list_row, rows), or_lines=(line(row["created_at"], row) for row in rows))
    else:
        note("no runs")


@group.command()
def show(run_id: RunId, *, as_json: AsJson = False) -> None:
    """Show one run: where it went and why, each send, what it cost, what was said, and what followed from it.

    Beside it stand the other runs of its key, the run whose answer it was served, and those that were served its own.

    Example: signalbox runs show 01a1fbdb-50b6
    """
    from app.cli import ledger  # noqa: PLC0415  # --help is fast

    details = asyncio.run(ledger.shown(run_id))
    if as_json:
        emit_json(run_document(details))
    else:
        emit_run(details)


group.command()(tail)


@group.command()
def release(
    run_id: RunId,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Declare the process of a STARTED run dead, which frees the run's key at once.

    Nothing stops that process: if it lives after all, its send may be paid beside the next one, and its answer is
    kept on its own row only.

    Example: signalbox runs release 01a1fbdb-50b6 --yes
    """
    from app.cli import ledger  # noqa: PLC0415  # --help is fast

    run = asyncio.run(ledger.releasable(run_id)).run
    if not yes:
        _confirm(run)
    asyncio.run(ledger.release(run["id"]))
    if as_json:
        emit_json({"id": run["id"], "status": "ABANDONED"})
    else:
        emit(f"run {run['id']} is ABANDONED; its key is free")


def _confirm(run: "Row") -> None:
    lease = (
        "its lease is over" if run["lease_left_s"] <= 0 else f"its lease ends in {run['lease_left_s']:.0f} s"
    )
    note(
        f"run {run['id']} was started at {run['created_at']:%Y-%m-%d %H:%M:%S} UTC by {run['owner']}; {lease}."
    )
    note("If that process is alive, its call may be paid beside the next one.")
    if not sys.stdin.isatty():
        raise UsageFault("nobody can be asked here: add --yes")
    typer.echo("Declare it dead? [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise typer.Exit(FAILED)

"""`signalbox runs`: look at the ledger, and free the key of a dead owner."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.ages import seconds
from app.cli.faults import FAILED, UsageFault
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, emit_table, note
from app.cli.run_view import emit_run, list_row, run_document

if TYPE_CHECKING:
    from app.llm.persistence.reports import Row

Status = Literal["STARTED", "SUCCEEDED", "FAILED", "CANCELLED", "ABANDONED"]
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="The id, or a beginning of it that is unique.")]

_COLUMNS = (
    *("run", "created (UTC)", "workspace", "stage", "status", "candidate", "from", "tokens", "ms", "key"),
    "error",
)

group = typer.Typer(help="Look at the ledger; free the key of a dead owner.")


@group.command("list")
def list_(  # noqa: PLR0913  # one parameter for each option
    *,
    workspace: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant.")] = None,
    status: Annotated[Status | None, typer.Option(case_sensitive=False, help="In this state.")] = None,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Of this step.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="With this idempotency key.")] = None,
    pipeline_run: Annotated[str | None, typer.Option(metavar="ID", help="Of this workflow run.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="Not older than 90s, 30m, 24h, 7d, 2w.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="ROWS", help="Rows at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.persistence.reports import RunFilter  # noqa: PLC0415

    wanted = RunFilter(
        workspace_id=workspace,
        status=status,
        stage=stage,
        idempotency_key=key,
        pipeline_run_id=pipeline_run,
        newer_than_s=seconds(since, "--since") if since is not None else None,
    )
    rows: list[Row] = asyncio.run(ledger.listed(wanted, limit=limit))
    if as_json:
        emit_json([dict(row) for row in rows])
    elif rows:
        emit_table(_COLUMNS, map(list_row, rows))
    else:
        note("no runs")


@group.command()
def show(run_id: RunId, *, as_json: AsJson = False) -> None:
    """Show one run: where it went, what it cost, what was said, and what followed from it."""
    from app.cli import ledger  # noqa: PLC0415  # --help is fast

    details = asyncio.run(ledger.shown(run_id))
    if as_json:
        emit_json(run_document(details))
    else:
        emit_run(details)


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

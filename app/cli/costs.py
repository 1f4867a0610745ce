"""`signalbox costs`: what was sent before there was a price for it gets its price."""

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.ages import seconds
from app.cli.options import AsJson
from app.cli.output import emit, emit_json

if TYPE_CHECKING:
    from app.llm.persistence.backfill import Backfilled

group = typer.Typer()


@group.callback()
def costs() -> None:
    """Fill in costs that were unknown."""


@group.command()
def backfill(
    *,
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only runs not older than 90s, 30m, 24h, 7d, 2w.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: AsJson = False,
) -> None:
    """Price the runs whose cost is unknown, by the installed genai-prices; a cost that is known stays.

    Each send is priced as of its time. Callers may go on meanwhile, and stopping is safe. Reports show the new costs at
    once.

    Example: signalbox costs backfill --since 7d
    """
    age_s = seconds(since, "--since") if since is not None else None
    done = asyncio.run(_filled(age_s, dry_run=dry_run))
    if as_json:
        emit_json({"dry_run": dry_run, **asdict(done)})
        return
    would = "would get" if dry_run else "got"
    emit(f"{done.runs:,} runs {would} a cost ({done.sends:,} sends), {done.hits:,} hits what they saved")
    if done.unknown:
        emit(f"{done.unknown:,} stay unknown: no price for the model, or no count of its tokens")


async def _filled(age_s: float | None, *, dry_run: bool) -> "Backfilled":
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.persistence.backfill import backfill as fill  # noqa: PLC0415

    since = None if age_s is None else datetime.now(UTC) - timedelta(seconds=age_s)
    async with ledger.current() as executor:
        return await fill(executor, since=since, dry_run=dry_run)

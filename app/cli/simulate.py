"""`signalbox simulate`: what a routing file would change, judged by recorded calls."""

import asyncio
from typing import Annotated

import typer

from app.cli.ages import seconds
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, emit_table, note


def simulate(
    *,
    config: Annotated[str, typer.Option(metavar="FILE", help="The routing file to try.")],
    since: Annotated[
        str, typer.Option(metavar="AGE", help="Calls not older than 90s, 30m, 24h, 7d, 2w.")
    ] = "7d",
    workspace: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Route recorded calls again under another routing file; nobody is called.

    Shows how many would move from where to where and which would find no candidate, and tokens, cost and latency before
    and after. Whoever did not answer then is passed over again. Variables beat this file as they beat any.

    Example: signalbox simulate --since 7d --config candidate.yaml
    """
    from app.cli.simulating import as_document, as_tables, simulated  # noqa: PLC0415  # --help is fast

    done = asyncio.run(simulated(config, newer_than_s=seconds(since, "--since"), workspace_id=workspace))
    for warning in done.warnings:
        note(f"warning: {warning}")
    if as_json:
        emit_json(as_document(done.moves))
        return
    emit(f"{sum(done.moves.moved.values())} of {done.moves.runs} runs would move")
    for title, columns, rows in as_tables(done.moves):
        emit_table(columns, rows, title=title)

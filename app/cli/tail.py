"""`signalbox runs tail`: a line for each run that begins, and one for each that ends."""

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import RunOptions, with_run_options
from app.cli.output import emit_json_line, emit_line, note
from app.cli.run_view import line

if TYPE_CHECKING:
    from app.llm.persistence.following import Follower
    from app.llm.persistence.reports import RunFilter

LONGEST_WAIT_S = 30.0
"""Seconds between looks at a database that stays away."""


@with_run_options
def tail(
    *,
    interval: Annotated[
        float, typer.Option(min=0.05, max=3600, metavar="SECONDS", help="Time between two looks.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
    chosen: RunOptions,
) -> None:
    """Follow the ledger: a line for each run that begins, and one for each that ends, until Ctrl-C.

    No run is left out and none is told twice, however late its transaction is committed. With --since the runs of that
    time come first. Options choose by what a run says at that moment: --status failed shows failures as they happen.
    A database that goes away is waited for. Ctrl-C gives the exit code 130.

    Example: signalbox runs tail --status failed --since 10m
    """
    wanted = chosen.filter()
    asyncio.run(_followed(wanted, interval, as_json=as_json))


async def _followed(wanted: "RunFilter", interval_s: float, *, as_json: bool) -> None:
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.persistence.following import Follower  # noqa: PLC0415

    async with ledger.current() as executor:
        follower = Follower(executor, wanted)
        await _told(follower, as_json=as_json)
        while True:
            await asyncio.sleep(interval_s)
            await _told_once_it_is_back(follower, interval_s, as_json=as_json)


async def _told_once_it_is_back(follower: "Follower", interval_s: float, *, as_json: bool) -> None:
    """Tell what is new; a database that is away is named once, and looked for until it is there."""
    from app.llm.errors import LLMLedgerBusy, LLMLedgerUnavailable  # noqa: PLC0415  # --help is fast

    wait_s, away = interval_s, False
    while True:
        try:
            await _told(follower, as_json=as_json)
        except (LLMLedgerUnavailable, LLMLedgerBusy) as error:
            if not away:
                note(f"signalbox: {error.message}; waiting for it")
            away = True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, max(LONGEST_WAIT_S, interval_s))
        else:
            if away:
                note("signalbox: the database is back")
            return


async def _told(follower: "Follower", *, as_json: bool) -> None:
    async with aclosing(follower.poll()) as events:
        async for event in events:
            if as_json:
                emit_json_line({"event": event.kind, "at": event.at, **event.run})
            else:
                emit_line(line(event.at, event.run))

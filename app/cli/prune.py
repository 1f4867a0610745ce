"""`signalbox prune`: old runs and their texts go, a little at a time."""

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.ages import seconds
from app.cli.faults import FAILED, UsageFault
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.llm.persistence.retention import Pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is to be pruned, as `retention.prune` takes it."""

    older_than_s: float
    workspace_id: str | None
    payloads_only: bool
    keys: bool


def prune(
    *,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Time since a run ended: 90s, 30m, 24h, 30d, 2w.")
    ],
    workspace: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant only.")] = None,
    payloads_only: Annotated[
        bool, typer.Option("--payloads-only", help="Keep the runs, forget only what was said.")
    ] = False,
    keys: Annotated[
        bool, typer.Option("--keys", help="Also runs whose key is live: it can be executed again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old runs with their attempts, then the texts that no run refers to.

    A run that is under way stays, and so does one whose idempotency key is live. A text goes once it was not referred
    to for an hour. What `report` counts of a run is kept. Callers may go on meanwhile; stopping is safe, and the next
    prune goes on. The space is used again for new runs; a SQLite file does not shrink.

    Example: signalbox prune --older-than 90d --dry-run
    """
    if keys and payloads_only:
        raise UsageFault("--keys and --payloads-only: without its words a run holds its key as before")
    order = _Order(
        older_than_s=seconds(older_than, "--older-than"),
        workspace_id=workspace,
        payloads_only=payloads_only,
        keys=keys,
    )
    if dry_run:
        _tell(order, asyncio.run(_foretold(order)), dry_run=True, as_json=as_json)
        return
    if not yes:
        _confirm(order, older_than.strip())
    with _progress_line() as progress:
        done = asyncio.run(_pruned(order, progress))
    _tell(order, done, dry_run=False, as_json=as_json)


async def _foretold(order: _Order) -> "Pruned":
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.persistence.retention import preview  # noqa: PLC0415

    async with ledger.current() as executor:
        return await preview(executor, **asdict(order))


async def _pruned(order: _Order, progress: "Callable[[Pruned], None] | None") -> "Pruned":
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.persistence import retention  # noqa: PLC0415

    async with ledger.current() as executor:
        return await retention.prune(executor, **asdict(order), progress=progress)


def _confirm(order: _Order, age: str) -> None:
    if not sys.stdin.isatty():
        raise UsageFault("nobody can be asked here: add --yes")
    foretold = asyncio.run(_foretold(order))
    whose = f" of workspace {order.workspace_id}" if order.workspace_id is not None else ""
    fate = "would forget what was said" if order.payloads_only else "would be deleted"
    note(f"{_count(foretold.runs, 'run')}{whose} that ended more than {age} ago {fate}.")
    if order.keys:
        note("Keys that they hold can be executed, and paid, again.")
    if not typer.confirm("Go on?", err=True):
        raise typer.Exit(FAILED)


@contextmanager
def _progress_line() -> "Iterator[Callable[[Pruned], None] | None]":
    """Yield what keeps a line on a terminal up to date; None where nobody watches."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console  # noqa: PLC0415  # --help is fast

    with Console(stderr=True, highlight=False).status("looking for old runs") as status:
        yield lambda done: status.update(
            f"{_count(done.runs, 'run')}, {_count(done.payloads, 'payload')} so far"
        )


def _tell(order: _Order, done: "Pruned", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit_json(_document(order, done, dry_run=dry_run))
        return
    runs = _count(done.runs, "run")
    if order.payloads_only:
        said = f"{runs} would forget what was said" if dry_run else f"{runs} forgot what was said"
    else:
        sends = _count(done.attempts, "attempt")
        said = f"{runs} with {sends} would be deleted" if dry_run else f"{runs} with {sends} deleted"
    texts = "" if dry_run else f", {_count(done.payloads, 'payload')} deleted"
    emit(f"{said}{texts}")
    if done.kept_live_keys:
        emit(f"{_count(done.kept_live_keys, 'old run')} kept for a live key (--keys would not)")
    if order.keys and done.runs:
        note(f"keys of deleted runs can {'then ' if dry_run else ''}be executed, and paid, again")


def _document(order: _Order, done: "Pruned", *, dry_run: bool) -> dict[str, Any]:
    """Return the outcome as JSON values; payloads are not foretold."""
    counts = {**asdict(done), "payloads": None} if dry_run else asdict(done)
    return {**asdict(order), "dry_run": dry_run, **counts, "keys_executable_again": order.keys}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

"""`signalbox batch`: a file of requests in, a file of results out, and nothing paid twice when it starts again."""

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.faults import FAILED
from app.cli.options import AsJson, RequestOptions, with_request_options
from app.cli.output import emit, emit_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.batching import Tally, Watch


@partial(with_request_options, without=("key",))
def batch(
    source: Annotated[
        str, typer.Argument(metavar="IN.jsonl", help="The requests; `-` reads them from stdin.")
    ],
    *,
    target: Annotated[str, typer.Option("-o", "--output", metavar="OUT.jsonl", help="The results.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with results that are there; try failures again.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, metavar="CALLS", help="Calls under way at once.")] = 8,
    asked: RequestOptions,
    as_json: AsJson = False,
) -> None:
    """Answer every line of a file.

    A line is {"prompt": "..."}, with "system" if need be, or the JSON of an LLMRequest with its messages; either may
    have an "id", and any further field of a request. Options count for lines that do not say otherwise. A wrong line is
    named before anything is sent.

    Results come as they end, one line each: line, id, key, text, tool calls, run, usage, or the error. Each line has
    an idempotency key, its own or one made of the file's content and its number: a batch that was killed goes on with
    --resume, and no line that had its answer is sent again. The exit code is 1 if a line failed.

    Example: signalbox batch in.jsonl -o out.jsonl --resume
    """
    from app.cli import batching  # noqa: PLC0415  # --help is fast

    with _bar() as watch:
        done = asyncio.run(
            batching.run(asked, source, target, resume=resume, concurrency=concurrency, watch=watch)
        )
    if as_json:
        emit_json(asdict(done))
    else:
        emit(_told(done))
    if done.failed:
        raise typer.Exit(FAILED)


def _told(done: "Tally") -> str:
    answered = done.answered_before + done.served_from.total()
    facts = [f"{done.lines:,} line{'' if done.lines == 1 else 's'}: {answered:,} answered"]
    if done.answered_before:
        facts.append(f"{done.answered_before:,} of them before")
    for name, said in (
        ("replay", "replayed"),
        ("cache", "from the cache"),
        ("cassette", "from the cassette"),
    ):
        if done.served_from[name]:
            facts.append(f"{done.served_from[name]:,} {said}")
    facts.append(f"{done.failed:,} failed")
    return ", ".join(facts)


@contextmanager
def _bar() -> "Iterator[Watch]":
    """Yield what keeps a progress bar on a terminal up to date, or nothing where nobody watches."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415  # --help is fast
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]:,} failed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("lines", total=None, failed=0)

        def watch(now: "Tally") -> None:
            progress.update(task, total=now.lines, completed=now.ended, failed=now.failed)

        yield watch

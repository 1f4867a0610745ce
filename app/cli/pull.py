"""`signalbox pull`: Ollama fetches a model, and one sees how far it is."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import AsJson
from app.cli.output import emit, emit_json, harmless, note

if TYPE_CHECKING:
    from app.llm.providers.ollama_says import Progress

TENTHS = 10
"""Lines about how far a download is, where no bar can be shown."""


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As in `ollama pull`: llama3.2, qwen3:8b.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Have the Ollama of LLM_OLLAMA_API_BASE fetch a model.

    On a terminal a bar shows how far it is, elsewhere a line now and then. What is stopped goes on where it was.

    Example: signalbox pull llama3.2
    """
    name = model.removeprefix("ollama:")
    begun_s = perf_counter()
    total = Total()
    try:
        with _shown(name, quiet=as_json) as show:
            asyncio.run(_pulled(name, lambda progress: show(progress, total.after(progress))))
    except KeyboardInterrupt:
        note("stopped; what has come so far is kept: the same command goes on from there")
        raise
    took_s = perf_counter() - begun_s
    if as_json:
        emit_json({"model": name, "bytes": total.bytes, "took_s": round(took_s, 3)})
    else:
        emit(f"ollama:{name} is there, {_size(total.bytes)}, after {took_s:,.1f} s")


@dataclass(slots=True)
class Total:
    """The bytes of all parts of a model, as they become known."""

    done: dict[str, int] = field(default_factory=dict)
    all: dict[str, int] = field(default_factory=dict)

    def after(self, progress: "Progress") -> "Total":
        """Return itself, with what a line says."""
        if progress.layer is not None and progress.total_bytes is not None:
            self.done[progress.layer] = progress.done_bytes
            self.all[progress.layer] = progress.total_bytes
        return self

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(self.all.values())

    @property
    def done_bytes(self) -> int:
        """Those that have come."""
        return sum(self.done.values())

    @property
    def share(self) -> float:
        """What part of them has come, 0 to 1."""
        return self.done_bytes / self.bytes if self.bytes else 0.0


Show = Callable[["Progress", Total], None]


async def _pulled(model: str, tell: "Callable[[Progress], None]") -> None:
    from app.llm.settings import load_settings  # noqa: PLC0415  # --help is fast
    from app.llm.wire.pulling import pull as pulled  # noqa: PLC0415

    await pulled(load_settings(), model, tell)


@contextmanager
def _shown(model: str, *, quiet: bool) -> Iterator[Show]:
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar(model) as show:
            yield show
    elif quiet:
        yield lambda _progress, _total: None
    else:
        yield _lines()


@contextmanager
def _bar(model: str) -> Iterator[Show]:
    from rich import progress as parts  # noqa: PLC0415  # --help is fast
    from rich.console import Console  # noqa: PLC0415  # as above

    columns = (
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(),
        parts.DownloadColumn(),
        parts.TransferSpeedColumn(),
        parts.TimeRemainingColumn(),
    )
    with parts.Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(model, total=None)

        def show(progress: "Progress", total: Total) -> None:
            bar.update(
                task,
                description=harmless(progress.status),
                completed=total.done_bytes,
                total=total.bytes or None,
            )

        yield show


def _lines() -> Show:
    """Return what writes a line for each new step, and for each tenth of all that is to come."""
    status, tenths = "", -1

    def show(progress: "Progress", total: Total) -> None:
        nonlocal status, tenths
        if progress.total_bytes is None:
            if progress.status != status:
                emit(harmless(progress.status))
            status = progress.status
        elif int(total.share * TENTHS) > tenths:
            tenths = int(total.share * TENTHS)
            emit(f"{total.share:.0%} of {_size(total.bytes)}")

    return show


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"

"""`signalbox export`: recorded runs as JSON lines or Parquet, for whoever wants to count them himself."""

import asyncio
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.faults import UsageFault
from app.cli.options import AsJson, RunOptions, with_run_options
from app.cli.output import emit, emit_answer, emit_json, note, status_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.exporting import Sink
    from app.cli.parquet import ParquetFile

Format = Literal["jsonl", "parquet"]
STDOUT = "-"


@with_run_options
def export(
    *,
    target: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Where to; `-` is stdout, for JSON lines.")
    ],
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: parquet for FILE.parquet, else jsonl.")
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Also what was asked and answered, where it is stored.")
    ] = False,
    as_json: AsJson = False,
    chosen: RunOptions,
) -> None:
    """Write recorded runs with their sends to a file, by workspace and creation.

    It is read and written in pages, so that memory stays flat. FILE appears when it is whole, in place of a former
    one; what is cut short leaves that as it was. Dollars keep all their digits: texts in JSON, decimals in Parquet,
    which needs the extra `parquet`.

    Example: signalbox export -o runs.parquet --since 30d --status succeeded
    """
    if target == STDOUT and (as_json or form == "parquet"):
        raise UsageFault("-o -: stdout takes the runs as JSON lines, and nothing else")
    form = form or ("parquet" if target.endswith(".parquet") else "jsonl")
    wanted = chosen.filter()
    from app.cli.exporting import exported  # noqa: PLC0415  # --help is fast

    status = nullcontext(_untold) if target == STDOUT else status_line("reading")  # both may share a terminal
    with status as progress, _sink(target, form, texts=texts) as sink:
        done = asyncio.run(exported(wanted, sink, texts=texts, progress=progress))
    if as_json:
        emit_json({"file": target, "format": form, **asdict(done)})
    elif target != STDOUT:
        emit(f"{done.runs:,} run{'' if done.runs == 1 else 's'} in {target}")
    if done.unread:
        note(
            f"{done.unread:,} texts are left out: they are encrypted (set LLM_PAYLOAD_KEY), or of a newer version"
        )


def _untold(_text: str) -> None:
    """Tell nobody how far it is."""


@contextmanager
def _sink(target: str, form: Format, *, texts: bool) -> "Iterator[Sink]":
    """Yield where rows go; what is missing for it is told before anything is read."""
    from app.cli.exporting import JsonLines, whole_file  # noqa: PLC0415  # --help is fast

    if target == STDOUT:
        yield JsonLines(emit_answer)
    elif form == "jsonl":
        with whole_file(Path(target)) as file:
            yield JsonLines(lambda lines: file.write(lines.encode()))
    else:
        kind = _parquet()
        with whole_file(Path(target)) as file, closing(kind(file, texts=texts)) as sink:
            yield sink


def _parquet() -> "type[ParquetFile]":
    try:
        from app.cli.parquet import ParquetFile  # noqa: PLC0415  # its library is optional
    except ImportError:
        raise UsageFault("Parquet needs the extra `parquet`: pip install 'signalbox[parquet]'") from None
    return ParquetFile

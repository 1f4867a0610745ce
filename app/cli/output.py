"""What reaches stdout: one JSON document, or text and tables that a terminal survives and a closed pipe may cut."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.faults import UsageFault

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_CLOSED = 141
"""Exit code after a reader that went away, as shells report it: 128 + SIGPIPE."""
WIDTH_OF_FILES = 200
"""Columns of a table that goes to a file or a pipe, where nothing needs to be cut."""
_WIDE = 10_000
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_STYLES = {"SUCCEEDED": "green", "FAILED": "red", "ABANDONED": "red", "STARTED": "yellow", "kept": "green"}
_STYLES |= {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


def emit(text: str) -> None:
    """Write text to stdout, with a line break at its end; a reader that went away ends the program quietly."""
    if sys.stdout is None:  # it was closed before the program began
        return
    try:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        raise typer.Exit(PIPE_CLOSED) from None


def emit_answer(text: str) -> None:
    """Write a model's words: as they are to a file, without control characters to a terminal."""
    emit(harmless(text) if _to_terminal() else text)


def emit_json(value: object) -> None:
    """Write one JSON document."""
    emit(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def emit_json_line(value: object) -> None:
    """Write one JSON document on a line of its own."""
    emit(json_line(value))


def json_line(value: object) -> str:
    """Return one JSON document without line breaks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def emit_line(cells: Iterable[object]) -> None:
    """Write what a row of a table would hold as one line, however wide the terminal is; None is left out."""
    from rich.text import Text  # noqa: PLC0415  # --help is fast

    _render(Text("  ").join(_cell(cell) for cell in cells if cell is not None), wraps=False)


def emit_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    or_lines: Iterable[Iterable[object]] | None = None,
) -> None:
    """Write a table; None is an empty cell. Text is never read as markup.

    `or_lines` is written, a line each, to a terminal where the table would have to break words.
    """
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  # --help is fast
    from rich.table import Table  # noqa: PLC0415

    if title:
        emit(f"\n{title}")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == "run", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    if or_lines is not None and _to_terminal() and not _fits(table):
        for line in or_lines:
            emit_line(line)
    else:
        _render(table)


def emit_facts(facts: Mapping[str, object]) -> None:
    """Write names and values in two columns, without those that are None."""
    from rich.table import Table  # noqa: PLC0415  # --help is fast

    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            grid.add_row(name, _cell(value))
    if grid.row_count:
        _render(grid)


def note(text: str) -> None:
    """Write one line to stderr."""
    typer.echo(harmless(text), err=True)


@contextmanager
def status_line(text: str) -> "Iterator[Callable[[str], None]]":
    """Yield what keeps a line on a terminal up to date while something takes long; nothing where nobody watches.

    stdout is left alone, for it may be a file or a pipe: rich would send to stderr what is written there meanwhile.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda _text: None
        return
    from rich.console import Console  # noqa: PLC0415  # --help is fast
    from rich.progress import Progress, SpinnerColumn, TextColumn  # noqa: PLC0415  # as above

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as shown:
        task = shown.add_task(text)
        yield lambda said: shown.update(task, description=said)


def harmless(text: str) -> str:
    """Return text whose control characters, which could steer a terminal, are replaced; tabs and line breaks stay."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def read_text(name: str) -> str:
    """Return the text of a file, or of stdin for `-`.

    Raises:
        UsageFault: It cannot be read, or is not UTF-8.
    """
    try:
        return (sys.stdin.buffer.read() if name == "-" else read_bytes(name)).decode()
    except UnicodeDecodeError as error:
        raise UsageFault(
            f"{'stdin' if name == '-' else name} is not UTF-8 text (byte {error.start})"
        ) from None


def read_bytes(name: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        UsageFault: It cannot be read.
    """
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageFault(f"cannot read {name}: {error.strerror}") from None


def _to_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _fits(shape: "RenderableType") -> bool:
    """Return whether the terminal is as wide as the shape would like to be."""
    from rich.console import Console  # noqa: PLC0415  # --help is fast
    from rich.measure import Measurement  # noqa: PLC0415  # as above

    console = Console()
    wished = Measurement.get(console, console.options.update(width=_WIDE), shape)
    return wished.maximum <= console.width


def _render(shape: "RenderableType", *, wraps: bool = True) -> None:
    from rich.console import Console  # noqa: PLC0415  # --help is fast

    console = Console(width=None if _to_terminal() else WIDTH_OF_FILES, highlight=False)
    with console.capture() as captured:
        console.print(shape, soft_wrap=not wraps)
    emit("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> Any:  # rich's Text
    from rich.text import Text  # noqa: PLC0415  # --help is fast

    if isinstance(value, datetime):
        value = value.strftime("%Y-%m-%d %H:%M:%S")
    text = "" if value is None else harmless(str(value))
    return Text(text, style=_STYLES.get(text.strip(), ""))


def _plain(value: object) -> str | float:
    if isinstance(value, Decimal):
        return float(value)  # its shortest digits are these, up to a million dollars
    return value.isoformat() if isinstance(value, datetime) else str(value)

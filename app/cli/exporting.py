"""What `export` does once its options are read: pages of runs into a file that appears when it is whole."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from app.bootstrap import payload_codec
from app.cli import ledger
from app.cli.faults import UsageFault
from app.llm.persistence import exporting
from app.llm.persistence.reports import RunFilter
from app.llm.settings import load_settings

Rows = Sequence[Mapping[str, Any]]
CENTS = Decimal("1e-9")
"""The last digit of a cost that is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    runs: int = 0
    unread: int = 0
    """Texts that are stored and could not be read."""


class Sink(Protocol):
    """Where rows go, in one format."""

    def write(self, rows: Rows) -> None:
        """Take some rows."""
        ...


class JsonLines:
    """One JSON document a line."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def write(self, rows: Rows) -> None:
        """Write a line for each row."""
        self._write("".join(f"{line_of(row)}\n" for row in rows))


async def exported(
    wanted: RunFilter, sink: Sink, *, texts: bool, progress: Callable[[str], None]
) -> Exported:
    """Read the ledger page by page into a sink."""
    codec = payload_codec(load_settings()) if texts else None
    runs = unread = 0
    async with ledger.current() as executor:
        async for page in exporting.pages(executor, wanted, codec):
            sink.write(page.rows)
            runs, unread = runs + len(page.rows), unread + page.unread
            progress(f"{runs:,} runs")
    return Exported(runs=runs, unread=unread)


def check_place(target: Path) -> None:
    """Refuse what cannot become a file.

    Raises:
        UsageFault: It is a directory or a device, or in no directory.
    """
    if not target.parent.is_dir() or (target.exists() and not target.is_file()):
        raise UsageFault(f"{target} is no place for a file")


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a file beside `target`, readable by its owner alone, which takes its place once all is written.

    Whoever reads `target` finds the former file or the new one, never a part; what is cut short leaves nothing.

    Raises:
        UsageFault: It is a directory or a device, or in no directory.
        OSError: It cannot be written.
    """
    check_place(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as JSON: dollars are texts with all their digits, times are UTC to the microsecond."""
    try:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=plain)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which a model said
        return json.dumps(row, separators=(",", ":"), default=plain)
    return text


def plain(value: object) -> str:
    """Return what JSON has no form for as text.

    Raises:
        TypeError: It is none of ours.
    """
    if isinstance(value, Decimal):
        return f"{value.quantize(CENTS):f}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    raise TypeError(f"{type(value).__name__} is not exported")

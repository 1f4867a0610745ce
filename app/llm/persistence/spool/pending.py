"""Answers that were paid for while the database was away: one private file per process, adopted when it is left.

A line is written and synced before the answer is returned. The file is locked until this spool is closed or its
process ends, so another that gets the lock knows that it may take the lines over.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.llm.persistence.settlement import Settlement
from app.llm.persistence.spool.files import (
    REFUSED,
    SPOOL,
    UNPLACED,
    SpoolFiles,
    left_behind,
    write_whole,
)
from app.llm.persistence.spool.line import from_line, to_line


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that was set aside, since lines of it could not be read."""

    file: Path
    lines: int
    reason: str
    """Of the first such line; quotes none of its values."""


class Spool:
    """The pending settlements of this process, in memory and on disk.

    Looking at them is safe in every thread. Methods that change a file are called one at a time.
    """

    def __init__(self, directory: Path, database_url: str) -> None:
        self.files = SpoolFiles(directory, database_url)
        self._own: int | None = None
        self._path = self.files.new_name(SPOOL)
        self._unplaced = self._path.with_suffix(UNPLACED)
        self._pending: dict[str, Settlement] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def pending(self) -> Sequence[Settlement]:
        """What waits for the database, oldest first."""
        return tuple(self._pending.copy().values())  # a copy: another thread may be adding to it

    def of_key(self, workspace_id: str, key: str) -> Settlement | None:
        """Return the pending settlement of a key."""
        return next((s for s in self.pending if (s.workspace_id, s.key) == (workspace_id, key)), None)

    def append(self, *settlements: Settlement) -> None:
        """Write and sync one line for each.

        Raises:
            OSError: The disk refused; they are kept in memory only.
        """
        self._pending.update((settled.run_id, settled) for settled in settlements)
        if self._own is None:
            self._path = self.files.new_name(SPOOL)
            self._own = self.files.create(self._path)
        write_whole(self._own, b"".join(map(to_line, settlements)))
        if self._closed:  # a call outlived its service, and nobody will close this file later
            self.close()

    def settled(self, run_id: str) -> None:
        """Forget a settlement that is kept elsewhere now; the file goes with the last one."""
        self._pending.pop(run_id, None)
        if not self._pending and self._own is not None:
            own, self._own = self._own, None
            os.close(own)
            self._path.unlink(missing_ok=True)

    def set_aside(self, settled: Settlement) -> Path:
        """Keep a settlement for a human; return the file, which nothing of ours reads again.

        Raises:
            OSError: The disk refused; nothing has changed.
        """
        file = self.files.open_to_append(self._unplaced)
        try:
            write_whole(file, to_line(settled))
        finally:
            os.close(file)
        self.settled(settled.run_id)
        return self._unplaced

    def adopt(self, path: Path) -> Refused | None:
        """Take over the lines of a file that was left; do nothing while somebody uses it.

        They are in our own file before the old one goes. If some cannot be read, all of it is kept under another name.

        Raises:
            OSError: The disk refused; the file stays.
        """
        if path == self._path:
            return None
        with left_behind(path) as file:
            if file is None:
                return None
            settlements, reasons = _read(file.readlines())
            if settlements:
                self.append(*settlements)
            if not reasons:
                path.unlink(missing_ok=True)
                return None
            aside = path.rename(path.with_suffix(REFUSED))
        return Refused(aside, len(reasons), reasons[0])

    def close(self) -> None:
        """Leave the file to whoever comes next; what is pending is theirs, and so is what still comes."""
        self._closed = True
        self._pending.clear()
        if self._own is not None:
            own, self._own = self._own, None
            if os.fstat(own).st_size == 0:
                self._path.unlink(missing_ok=True)
            os.close(own)


def _read(lines: Sequence[bytes]) -> tuple[list[Settlement], list[str]]:
    """Return what the lines say, and what is wrong with those that say nothing."""
    settlements, reasons = [], []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            reasons.append(
                f"line {number} is cut off: its process died while writing, and returned no answer"
            )
            continue
        try:
            settlements.append(from_line(line))
        except ValueError as error:
            reasons.append(f"line {number}: {error}")
    return settlements, reasons

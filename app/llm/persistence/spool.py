"""Answers that were paid for while the database was away: one private file per process, adopted when its owner dies.

A line is written and synced before the answer is returned. The file is locked for the life of its process, so
another process of the same host that gets the lock knows the owner is dead.
"""

import fcntl
import hashlib
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy.engine import make_url

from app.db.engine import PRIVATE, sqlite_file
from app.llm.persistence.settlement import Settlement


def default_directory(database_url: str) -> Path:
    """Return the directory beside the SQLite file, else the user's state directory (XDG base directories)."""
    if (file := sqlite_file(database_url)) is not None:
        return file.parent
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "signalbox"


class Spool:
    """The pending settlements of this process, in memory and on disk."""

    def __init__(self, directory: Path, database_url: str) -> None:
        url = make_url(database_url).set(password=None).render_as_string()
        database = hashlib.sha256(url.encode()).hexdigest()[:12]
        self._directory = directory
        self._prefix = f"signalbox-{database}-{socket.gethostname()}-"
        self._own: int | None = None
        self._path = directory / f"{self._prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}.spool"
        self._pending: dict[str, Settlement] = {}

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def pending(self) -> Sequence[Settlement]:
        """What waits for the database, oldest first."""
        return tuple(self._pending.values())

    def of_key(self, workspace_id: str, key: str) -> Settlement | None:
        """Return the pending settlement of a key."""
        return next(
            (s for s in self._pending.values() if (s.workspace_id, s.key) == (workspace_id, key)), None
        )

    def check(self) -> None:
        """Make sure that a line could be written.

        Raises:
            OSError: It could not.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = self._directory / f".{self._path.name}.probe"
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, PRIVATE))
        probe.unlink()

    def append(self, settlement: Settlement) -> None:
        """Write and sync one line.

        Raises:
            OSError: The disk refused; the settlement is kept in memory only.
        """
        self._pending[settlement.run_id] = settlement
        if self._own is None:
            self._own = self._create()
        whole = os.fstat(self._own).st_size
        line = settlement.to_line()
        try:
            while line:
                line = line[os.write(self._own, line) :]
            os.fsync(self._own)
        except OSError:
            os.ftruncate(self._own, whole)  # half a line would swallow the next one
            raise

    def _create(self) -> int:
        """Return our open file; it gets its name when it is locked, so nobody takes it for a dead process's."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        unlocked = self._directory / f".{self._path.name}"
        file = os.open(unlocked, os.O_CREAT | os.O_APPEND | os.O_WRONLY, PRIVATE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(self._path)
        except OSError:
            os.close(file)
            raise
        return file

    def settled(self, run_id: str) -> None:
        """Forget a settlement that is in the database now; the file goes with the last one."""
        self._pending.pop(run_id, None)
        if not self._pending and self._own is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._own)
            self._own = None

    def adopt(self) -> int:
        """Take over the lines of dead processes of this host; return how many there were.

        Their lines are written to this process's own file before the old file goes.
        """
        adopted = 0
        for path in sorted(self._directory.glob(f"{self._prefix}*.spool")):
            if path == self._path:
                continue
            for settlement in _lines_of_the_dead(path):
                self.append(settlement)
                adopted += 1
        return adopted


def _lines_of_the_dead(path: Path) -> Iterator[Settlement]:
    """Yield the lines of a file whose owner is dead, then remove it; nothing when its owner lives."""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # another process adopted it meanwhile
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        torn = False
        for line in file:
            try:
                settlement = Settlement.from_line(line)
            except ValueError:  # the owner died while writing it: the answer was not returned either
                torn = True
                continue
            yield settlement
        path.rename(path.with_suffix(".torn")) if torn else path.unlink(missing_ok=True)

"""Whose a spool file is, by its name: of which database, by which host and process, and whether somebody lives there.

A file is locked for as long as its process uses it, so whoever gets the lock knows that it was left. That holds on one
kernel. Over a network a file system may grant the lock to two hosts, and no name tells whether it would; therefore
only files that bear this host's own name are taken over, and a human says so of others by renaming them.
"""

import fcntl
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.engine import make_url

from app.db.engine import PRIVATE, sqlite_file

SPOOL, REFUSED, UNPLACED = ".spool", ".refused", ".unplaced"
"""Suffixes: lines that wait; a file with lines that could not be read; lines whose runs the database does not know."""


def default_directory(database_url: str) -> Path:
    """Return the directory beside the SQLite file, else the user's state directory (XDG base directories)."""
    if (file := sqlite_file(database_url)) is not None:
        return file.resolve().parent
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "signalbox"


def database_id(database_url: str) -> str:
    """Return twelve hex digits that the spellings of one database share: of its file, or of host, port and name."""
    place: list[str | int | None]
    if (file := sqlite_file(database_url)) is not None:
        place = ["sqlite", str(file.resolve())]
    else:
        url = make_url(database_url)
        host = url.host or str(url.query.get("host", "localhost"))
        port = url.port or str(url.query.get("port", "5432"))
        place = [url.get_backend_name(), host.lower(), str(port), url.database or url.username]
    return hashlib.sha256(json.dumps(place).encode()).hexdigest()[:12]


class SpoolFiles:
    """The files of one database in one directory, as this process sees them."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self._of_database = f"signalbox-{database_id(database_url)}-"
        self._host = socket.gethostname()

    @property
    def prefix(self) -> str:
        """How the names of this host's files begin."""
        return f"{self._of_database}{self._host}-"

    def new_name(self, suffix: str) -> Path:
        """Return a path that no file has."""
        return self.directory / f"{self.prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}{suffix}"

    def of_this_host(self) -> list[Path]:
        """Return the spool files of this host's processes, dead or alive."""
        return [path for path in self._spools() if self._writer_of(path) == self._host]

    def of_others(self) -> list[Path]:
        """Return the spool files that bear another host's name and that nobody is known to use."""
        return [path for path in self._spools() if self._writer_of(path) != self._host and _is_left(path)]

    def lines(self) -> dict[str, int]:
        """Return how many lines the files of this database hold here, by their suffix, whoever wrote them.

        Raises:
            OSError: A file cannot be read.
        """
        return {suffix: sum(map(_lines, self._all(suffix))) for suffix in (SPOOL, REFUSED, UNPLACED)}

    def check(self) -> None:
        """Make sure that a file could be written.

        Raises:
            OSError: It could not.
        """
        self._make_directory()
        probe = _hidden(self.new_name(".probe"))
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, PRIVATE))
        probe.unlink()

    def create(self, path: Path) -> int:
        """Return a new file, open and locked; it gets its name last, so nobody takes it for one that was left."""
        file = self.open_to_append(_hidden(path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _hidden(path).rename(path)
        except OSError:
            os.close(file)
            raise
        return file

    def open_to_append(self, path: Path) -> int:
        """Return a file that only its owner may read, made if it is not there."""
        self._make_directory()
        return os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, PRIVATE)

    def _make_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _spools(self) -> list[Path]:
        return self._all(SPOOL)

    def _all(self, suffix: str) -> list[Path]:
        return sorted(self.directory.glob(f"{self._of_database}*{suffix}"))

    def _writer_of(self, path: Path) -> str:
        """Return the host in a name; a host's own name may have hyphens, what follows it has none."""
        return path.name.removeprefix(self._of_database).rsplit("-", 2)[0]


@contextmanager
def left_behind(path: Path) -> Iterator[BinaryIO | None]:
    """Yield a file that nobody uses any more, locked; None when somebody does, or when it is gone.

    Raises:
        OSError: It cannot be read.
    """
    try:
        file = path.open("r+b")  # to write, for over NFS only a writer may lock
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        try:  # whoever had the lock before us may have taken the lines over, and the file away
            still_there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            still_there = False
        yield file if still_there else None


def write_whole(file: int, lines: bytes) -> None:
    """Append and sync all of it, or nothing: half a line would swallow the next one.

    Raises:
        OSError: The disk refused.
    """
    size = os.fstat(file).st_size
    try:
        while lines:
            lines = lines[os.write(file, lines) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def _is_left(path: Path) -> bool:
    with left_behind(path) as file:
        return file is not None


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _lines(path: Path) -> int:
    """Return how many lines a file has; none once it is gone."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0

"""Whether the files of a ledger can be written: the SQLite file and what stands beside it, the spool, and room for both."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from app.bootstrap import checked_url
from app.db.engine import PRIVATE, sqlite_file
from app.diagnosis.findings import Finding, Tell, aside
from app.llm.persistence.spool.files import SpoolFiles, default_directory
from app.llm.settings import LLMSettings

PERMISSIONS, SPOOL, DISK = "permissions", "spool", "disk"
SUBJECTS = (SPOOL, DISK)
"""Those of every ledger; one in a file has permissions, too."""
REMEDY = "look at the disk that LLM_DATABASE_URL and LLM_SPOOL_DIR name"
LITTLE_BYTES, FULL_BYTES = 2**30, 100 * 2**20
"""Free bytes below which it is a warning, and below which it is a fault."""

FreeBytes = Callable[[Path], int]


def free_bytes(directory: Path) -> int:
    """Return the bytes that this process may still write to the disk of a directory."""
    return shutil.disk_usage(directory).free


async def look(tell: Tell, settings: LLMSettings, free: FreeBytes) -> None:
    """Tell how the files are; all of it in threads, for a disk can hang."""
    url = checked_url(settings)
    file = sqlite_file(url)
    spool = (settings.spool_dir or default_directory(url)).absolute()
    if file is not None:
        tell(await aside(lambda: _permissions(file)))
    tell(await aside(lambda: _spool(spool, url)))
    places = [_existing(place) for place in ([file.parent] if file else []) + [spool]]
    tell(await aside(lambda: _disk(list(dict.fromkeys(places)), free)))


def _permissions(file: Path) -> Finding:
    folder = file.parent
    if not folder.is_dir():
        return Finding.fault(PERMISSIONS, f"there is no directory {folder}", f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        said = f"{folder} cannot be written, where SQLite keeps its log beside the file"
        return Finding.fault(PERMISSIONS, said, f"chmod u+wx {folder}, as its owner, or set LLM_DATABASE_URL")
    for each in _written(file):
        if not os.access(each, os.R_OK | os.W_OK):
            said = f"{each} cannot be read and written"
            return Finding.fault(
                PERMISSIONS, said, f"chmod u+rw {each}, as its owner, or set LLM_DATABASE_URL"
            )
    for each in _written(file):
        if each.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            said = f"others may read {each}, which holds prompts and answers"
            return Finding.warning(PERMISSIONS, said, f"chmod {PRIVATE:o} {each}")
    return Finding.ok(PERMISSIONS, f"{file.name} and {folder} can be written")


def _written(file: Path) -> Iterator[Path]:
    """Yield the files of a SQLite database that are there."""
    return (each for end in ("", "-wal", "-shm") if (each := file.with_name(file.name + end)).exists())


def _spool(directory: Path, url: str) -> Finding:
    remedy = f"make {directory} a directory that this process may write, or set LLM_SPOOL_DIR"
    if not directory.is_dir():  # it is made when it is needed
        above = _existing(directory)
        if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
            return Finding.ok(SPOOL, f"{directory} can be made")
        return Finding.fault(SPOOL, f"{directory} cannot be made: {above} is in the way", remedy)
    try:
        SpoolFiles(directory, url).check()
    except OSError as error:
        return Finding.fault(SPOOL, f"{directory} cannot be written ({error.strerror})", remedy)
    return Finding.ok(SPOOL, f"{directory} can be written")


def _disk(places: list[Path], free: FreeBytes) -> Finding:
    left, place = min((free(place), place) for place in places)
    said = f"{_size(left)} free at {place}"
    remedy = "free some space, or `signalbox prune` what is old"
    if left < FULL_BYTES:
        return Finding.fault(DISK, said, remedy)
    return Finding.warning(DISK, said, remedy) if left < LITTLE_BYTES else Finding.ok(DISK, said)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"

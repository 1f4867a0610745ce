"""The spool on its own: private, synced, whole lines, one owner, inherited from the dead only."""

import fcntl
import os
import resource
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from app.llm.persistence.settlement import Settlement, of_success
from app.llm.persistence.spool.line import from_line, to_line
from app.llm.persistence.spool.pending import Spool
from tests.support.ledger import new_run, request, success

URL = "sqlite+aiosqlite:///x.db"


def _settled(key: str | None = "k1", text: str = "A box.") -> Settlement:
    run = new_run(request(idempotency_key=key))
    return of_success(run, success(run, text, sends=2), owner="o", key_ttl_s=None, keep=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def _inherit(heir: Spool) -> int:
    """Take over all that was left; return how many lines are pending."""
    for path in heir.files.of_this_host():
        assert heir.adopt(path) is None
    return len(heir)


def test_lines_are_private_and_the_file_goes_with_the_last_one(tmp_path: Path):
    """I19."""
    spool = Spool(tmp_path / "new", URL)
    spool.files.check()
    assert _files(tmp_path / "new") == []
    first, second = _settled("k1"), _settled("k2")
    before = os.umask(0)
    try:
        spool.append(first)
        spool.append(second)
    finally:
        os.umask(before)
    (file,) = _files(tmp_path / "new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(spool.pending) == [first, second]
    assert spool.of_key("w1", "k2") == second
    assert spool.of_key("w2", "k2") is None
    assert spool.of_key("w1", "k3") is None
    spool.settled(first.run_id)
    assert _files(tmp_path / "new") == [file]
    spool.settled(second.run_id)
    spool.settled(second.run_id)
    assert _files(tmp_path / "new") == []
    spool.append(first)
    assert len(_files(tmp_path / "new")) == 1
    spool.settled(first.run_id)


def test_the_lines_of_the_living_are_left_alone_and_those_of_the_dead_are_taken(tmp_path: Path):
    owner, heir = Spool(tmp_path, URL), Spool(tmp_path, URL)
    settled = _settled()
    owner.append(settled)
    assert _inherit(heir) == 0

    owner.close()
    assert _inherit(heir) == 1
    assert list(heir.pending) == [settled]
    (file,) = _files(tmp_path)
    assert file == heir._path
    assert _inherit(heir) == 1
    assert _files(tmp_path) == [file]
    heir.settled(settled.run_id)
    assert _files(tmp_path) == []


def test_the_lines_of_another_database_are_left_alone(tmp_path: Path):
    """I13: one directory may serve several ledgers."""
    owner = Spool(tmp_path, URL)
    owner.append(_settled())
    owner.close()
    assert _inherit(Spool(tmp_path, "sqlite+aiosqlite:///y.db")) == 0
    assert _inherit(Spool(tmp_path, URL)) == 1


def test_neither_names_nor_lines_hold_the_databases_password(tmp_path: Path):
    """I17: and a new password makes no orphans."""
    before = Spool(tmp_path, "postgresql+asyncpg://u:secret-1@h/d")
    before.append(_settled())
    before.close()
    (file,) = _files(tmp_path)
    assert "secret-1" not in file.name
    assert b"secret-1" not in file.read_bytes()
    assert _inherit(Spool(tmp_path, "postgresql+asyncpg://u:secret-2@h/d")) == 1


def test_a_file_with_a_line_that_cannot_be_read_is_kept_for_a_human(tmp_path: Path):
    owner, heir = Spool(tmp_path, URL), Spool(tmp_path, URL)
    whole, half = _settled("k1"), _settled("k2")
    owner.append(whole)
    owner.close()
    (left,) = _files(tmp_path)
    with left.open("ab") as file:
        file.write(b"{}\n" + to_line(half)[:99])
    written = left.read_bytes()
    refused = heir.adopt(left)
    assert refused is not None
    assert (refused.file, refused.lines) == (left.with_suffix(".refused"), 2)
    assert "line 2: not of version 2" in refused.reason
    assert list(heir.pending) == [whole]
    assert (refused.file.read_bytes(), left.exists()) == (written, False)
    heir.settled(whole.run_id)


def test_a_closed_spool_leaves_its_lines_to_the_next_one_in_the_same_process(tmp_path: Path):
    """I5: a lock that outlived the service would hide the answer until the process ends."""
    first, second = Spool(tmp_path, URL), Spool(tmp_path, URL)
    settled = _settled()
    first.append(settled)
    first.close()
    first.close()
    assert len(first) == 0
    first.append(other := _settled("k2"))  # of a call that outlived its service; not over what was left
    assert _inherit(second) == 2
    assert (second.of_key("w1", "k1"), second.of_key("w1", "k2")) == (settled, other)
    for each in (settled, other):
        second.settled(each.run_id)
    assert _files(tmp_path) == []


def test_a_spool_that_is_closed_without_a_line_leaves_no_file(tmp_path: Path):
    spool = Spool(tmp_path, URL)
    spool.append()
    assert len(_files(tmp_path)) == 1
    spool.close()
    assert _files(tmp_path) == []


def test_what_has_no_place_is_kept_in_a_private_file_that_nobody_adopts(tmp_path: Path):
    """I19."""
    spool, heir = Spool(tmp_path, URL), Spool(tmp_path, URL)
    first, second = _settled("k1"), _settled("k2")
    spool.append(first)
    before = os.umask(0)
    try:
        file = spool.set_aside(first)
        assert spool.set_aside(second) == file
    finally:
        os.umask(before)
    assert (len(spool), _files(tmp_path)) == (0, [])
    assert (file.suffix, stat.S_IMODE(file.stat().st_mode)) == (".unplaced", 0o600)
    assert [from_line(line) for line in file.read_bytes().splitlines(keepends=True)] == [first, second]
    assert _inherit(heir) == 0


def test_what_cannot_be_set_aside_stays_pending(tmp_path: Path):
    spool = Spool(tmp_path, URL)
    settled = _settled()
    spool.append(settled)
    spool._unplaced.mkdir()
    with pytest.raises(OSError, match="directory"):
        spool.set_aside(settled)
    assert list(spool.pending) == [settled]
    spool.settled(settled.run_id)


def test_an_heir_that_comes_second_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It opened the file before the first one took the lines over, and gets the lock after that."""
    owner, first, second = (Spool(tmp_path, URL) for _ in range(3))
    owner.append(_settled())
    owner.close()
    (left,) = _files(tmp_path)
    lock = fcntl.flock

    def too_late(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        assert first.adopt(left) is None
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    assert second.adopt(left) is None
    assert (len(first), len(second)) == (1, 0)


def test_a_look_for_a_key_bears_lines_that_come_meanwhile(tmp_path: Path):
    """Lines are added in a thread, the look is on the loop."""
    spool, interval = Spool(tmp_path, URL), sys.getswitchinterval()
    settled = [_settled(f"k{number}") for number in range(300)]
    adding = threading.Thread(target=lambda: [spool.append(each) for each in settled])
    sys.setswitchinterval(1e-6)
    try:
        adding.start()
        while adding.is_alive():
            assert spool.of_key("w1", "none") is None
    finally:
        sys.setswitchinterval(interval)
        adding.join()
    assert list(spool.pending) == settled
    spool.close()


def test_a_full_disk_costs_one_line_and_not_the_next(tmp_path: Path):
    """A line that was cut off by the disk must not swallow the one that is written when there is room again."""
    spool, heir = Spool(tmp_path, URL), Spool(tmp_path, URL)
    first, lost, last = _settled("k1"), _settled("k2", "x" * 5000), _settled("k3")
    spool.append(first)
    size = spool._path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            spool.append(lost)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lost in spool.pending  # this process still knows it
    spool.append(last)
    spool.close()
    _inherit(heir)
    assert [settled.key for settled in heir.pending] == ["k1", "k3"]
    for settled in heir.pending:
        heir.settled(settled.run_id)


def test_a_line_is_never_written_to_a_file_that_somebody_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between the creation of a file and its lock another process may look: it must not take it for an orphan."""
    spool, heir = Spool(tmp_path, URL), Spool(tmp_path, URL)
    lock = fcntl.flock

    def look_first(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        _inherit(heir)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", look_first)
    settled = _settled()
    spool.append(settled)
    assert spool._path.exists()
    spool.close()
    assert _inherit(heir) == 1
    heir.settled(settled.run_id)

"""The spool on its own: private, synced, whole lines, one owner, inherited from the dead only."""

import fcntl
import os
import resource
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.llm.persistence.settlement import Settlement, of_failure, of_success
from app.llm.persistence.spool import Spool, default_directory
from tests.support.ledger import attempt, failure, new_run, request, success

URL = "sqlite+aiosqlite:///x.db"


def _settled(key: str | None = "k1", text: str = "A box.") -> Settlement:
    run = new_run(request(idempotency_key=key))
    return of_success(run, success(run, text, sends=2), owner="o", key_ttl_s=None, keep=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def _orphan(spool: Spool) -> None:
    """Let a spool's process be dead: its lock is gone, its file stays."""
    assert spool._own is not None
    os.close(spool._own)


@pytest.mark.parametrize("how", ["success", "failure"])
def test_a_line_carries_a_settlement_there_and_back(how: str):
    run = new_run(request('quotes " and NUL \x00', idempotency_key="k1"))
    settled = (
        of_success(run, success(run, "\ud800\x00", sends=3), owner="o", key_ttl_s=9.0, keep=True)
        if how == "success"
        else of_failure(run, failure(sends=2), status="FAILED", owner="o", keep=True)
    )
    line = settled.to_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert Settlement.from_line(line) == settled


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b"[]", b"null", b'{"v":2}', b'{"v":1}', b"\xff\xfe", b'{"v":1,"run":{}}']
)
def test_a_line_that_is_none_of_ours_is_refused(line: bytes):
    with pytest.raises(ValueError):  # noqa: PT011  # json's, or ours
        Settlement.from_line(line)


def test_lines_are_private_and_the_file_goes_with_the_last_one(tmp_path: Path):
    """I19."""
    spool = Spool(tmp_path / "new", URL)
    spool.check()
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
    assert heir.adopt() == 0
    assert len(heir) == 0

    _orphan(owner)
    assert heir.adopt() == 1
    assert list(heir.pending) == [settled]
    (file,) = _files(tmp_path)
    assert file == heir._path
    assert heir.adopt() == 0
    heir.settled(settled.run_id)
    assert _files(tmp_path) == []


def test_the_lines_of_another_database_are_left_alone(tmp_path: Path):
    """I13: one directory may serve several ledgers."""
    owner = Spool(tmp_path, URL)
    owner.append(_settled())
    _orphan(owner)
    assert Spool(tmp_path, "sqlite+aiosqlite:///y.db").adopt() == 0
    assert Spool(tmp_path, URL).adopt() == 1


def test_neither_names_nor_lines_hold_the_databases_password(tmp_path: Path):
    """I17: and a new password makes no orphans."""
    before = Spool(tmp_path, "postgresql+asyncpg://u:secret-1@h/d")
    before.append(_settled())
    _orphan(before)
    (file,) = _files(tmp_path)
    assert "secret-1" not in file.name
    assert b"secret-1" not in file.read_bytes()
    assert Spool(tmp_path, "postgresql+asyncpg://u:secret-2@h/d").adopt() == 1


def test_a_torn_file_is_kept_for_a_human(tmp_path: Path):
    owner, heir = Spool(tmp_path, URL), Spool(tmp_path, URL)
    whole, half = _settled("k1"), _settled("k2")
    owner.append(whole)
    _orphan(owner)
    with owner._path.open("ab") as file:
        file.write(half.to_line()[:99])
    assert heir.adopt() == 1
    assert list(heir.pending) == [whole]
    assert owner._path.with_suffix(".torn").exists()
    assert not owner._path.exists()
    heir.settled(whole.run_id)


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
    _orphan(spool)
    heir.adopt()
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
        heir.adopt()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", look_first)
    settled = _settled()
    spool.append(settled)
    assert spool._path.exists()
    _orphan(spool)
    assert heir.adopt() == 1
    heir.settled(settled.run_id)


def test_a_directory_that_cannot_be_written_is_told_at_the_check(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        Spool(blocked, URL).check()


def test_the_default_place_is_beside_the_file_or_in_the_users_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert default_directory(f"sqlite+aiosqlite:///{tmp_path}/a/b.db") == tmp_path / "a"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_directory("postgresql+asyncpg://h/d") == Path("/state/signalbox")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_directory("postgresql+asyncpg://h/d") == Path("/home/me/.local/state/signalbox")


def test_times_of_attempts_keep_their_zone():
    run = new_run(request())
    ended = success(run)
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    ended.attempts[0] = attempt(started_at=moment)  # type: ignore[index]
    settled = of_success(run, ended, owner="o", key_ttl_s=None, keep=True)
    assert Settlement.from_line(settled.to_line()).attempts[0]["started_at"] == moment

"""Whose a spool file is: all spellings of one database share it, and other databases and hosts are left alone."""

import os
import socket
from pathlib import Path

import pytest

from app.llm.persistence.settlement import of_success
from app.llm.persistence.spool.files import SpoolFiles, database_id, default_directory
from app.llm.persistence.spool.pending import Spool
from tests.support.ledger import new_run, request, success

URL = "postgresql+asyncpg://h/d"


def _left(folder: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a spool file that a host of that name wrote."""
    with monkeypatch.context() as there:
        there.setattr(socket, "gethostname", lambda: host)
        spool, run = Spool(folder, URL), new_run(request())
    spool.append(of_success(run, success(run), owner="o", key_ttl_s=None, keep=True))
    spool.close()
    return spool._path


def test_every_spelling_of_a_sqlite_file_is_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """I5: else the answer that waits would be found under one spelling only."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    urls = [
        f"sqlite+aiosqlite:///{tmp_path}/real/l.db",
        f"sqlite+aiosqlite:///{tmp_path}/real/../real/l.db",
        f"sqlite+aiosqlite:///{tmp_path}/link/l.db",
        "sqlite+aiosqlite:///l.db",
        "sqlite+aiosqlite:///./l.db?timeout=5",
    ]
    assert len({database_id(url) for url in urls}) == 1
    assert {default_directory(url) for url in urls} == {tmp_path / "real"}
    assert database_id("sqlite+aiosqlite:///other.db") != database_id(urls[0])


def test_user_password_and_query_do_not_make_another_postgres():
    same = [
        "postgresql+asyncpg://h/d",
        "postgresql+asyncpg://H:5432/d",
        "postgresql+asyncpg://u:secret@h/d",
        "postgresql+asyncpg://other@h/d?ssl=require",
        "postgresql+asyncpg:///d?host=h",
    ]
    others = ["postgresql+asyncpg://h/e", "postgresql+asyncpg://g/d", "postgresql+asyncpg://h:5433/d"]
    assert len({database_id(url) for url in same}) == 1
    assert len({database_id(url) for url in (same[0], *others)}) == 4


def test_a_directory_that_cannot_be_written_is_told_at_the_check(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        SpoolFiles(blocked, URL).check()


def test_the_files_of_another_host_are_left_alone_until_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its process may live: over a network file system its lock may not be seen here."""
    left = _left(tmp_path, "elsewhere", monkeypatch)
    files = SpoolFiles(tmp_path, URL)
    assert (files.of_this_host(), files.of_others()) == ([], [left])
    mine = left.rename(files.new_name(".spool"))
    assert (files.of_this_host(), files.of_others()) == ([mine], [])


def test_a_host_whose_name_begins_like_ours_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = _left(tmp_path, f"{socket.gethostname()}-2", monkeypatch)
    files = SpoolFiles(tmp_path, URL)
    assert (files.of_this_host(), files.of_others()) == ([], [left])


def test_a_file_that_somebody_has_locked_is_nobodys_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as there:
        there.setattr(socket, "gethostname", lambda: "elsewhere")
        living = SpoolFiles(tmp_path, URL)
    file = living.create(living.new_name(".spool"))
    assert SpoolFiles(tmp_path, URL).of_others() == []
    os.close(file)
    assert len(SpoolFiles(tmp_path, URL).of_others()) == 1


def test_the_default_place_is_beside_the_file_or_in_the_users_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert default_directory(f"sqlite+aiosqlite:///{tmp_path}/a/b.db") == tmp_path / "a"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_directory("postgresql+asyncpg://h/d") == Path("/state/signalbox")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_directory("postgresql+asyncpg://h/d") == Path("/home/me/.local/state/signalbox")

"""I19: what the ledger writes is for its owner alone, even where the system's default would let everybody read."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.llm.testing.client import ScriptedClient
from tests.support.ledger import request
from tests.support.service import Watched, rig, service


@pytest.fixture
def open_to_all() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    """Return the permissions of every file and directory below, by what it is."""
    return {
        "".join(path.suffixes) or path.name: stat.S_IMODE(path.stat().st_mode)
        for path in directory.rglob("*")
    }


@pytest.mark.usefixtures("open_to_all")
async def test_database_and_its_companions_are_private_from_the_first_moment(tmp_path: Path):
    seen: list[dict[str, int]] = []

    async def look(*_: object) -> None:
        seen.append(modes(tmp_path))

    async with service(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", Watched(look)) as llm:
        await llm.chat(request(idempotency_key="k1"))
    assert seen == [{".db": 0o600, ".db-wal": 0o600, ".db-shm": 0o600}]


@pytest.mark.usefixtures("open_to_all")
async def test_a_spool_and_its_directory_are_private(db_url: str, tmp_path: Path):
    spool = tmp_path / "made"
    async with rig(db_url, ScriptedClient(), spool_dir=spool) as one:
        one.ledger.away_for.add("finish")
        await one.llm.chat(request(idempotency_key="k1"))
        assert modes(spool) == {".spool": 0o600}
        assert stat.S_IMODE(spool.stat().st_mode) == 0o700
        one.ledger.away_for.clear()

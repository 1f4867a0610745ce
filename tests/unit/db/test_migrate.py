"""Migrations on both databases: there and back, what start-up makes of them, and who may run them at once."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.base import Base
from app.db.engine import build_engine, sqlite_file
from app.db.migrate import _run, alembic_config, downgrade, schema_state, upgrade
from app.llm.errors import LLMLedgerError, LLMLedgerSchema
from app.llm.persistence import models  # fills the metadata
from tests.support.service import service

PASSWORD = "pw-secret-1"  # noqa: S105
TABLES = {models.LLMRun.__tablename__, "llm_attempts", "llm_payloads"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.pg)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("pg_empty_url"))


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[AsyncEngine]:
    engine = build_engine(empty_url)
    yield engine
    await engine.dispose()


async def _tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))


async def test_the_migrations_go_there_and_back_and_there_again(empty: AsyncEngine):
    assert await schema_state(empty) == "empty"
    await upgrade(empty)
    assert await _tables(empty) >= TABLES
    assert await schema_state(empty) == "current"
    await downgrade(empty, "base")
    assert TABLES.isdisjoint(await _tables(empty))
    assert await schema_state(empty) == "older"
    await upgrade(empty)
    await upgrade(empty)
    assert await schema_state(empty) == "current"


async def test_the_tables_are_what_the_models_say(empty: AsyncEngine):
    """`alembic check`: types, defaults, indexes."""
    await upgrade(empty)
    await _run(empty, command.check)


async def test_every_index_and_its_condition_is_there(empty: AsyncEngine):
    """Autogenerate does not compare conditions of partial indexes."""
    await upgrade(empty)

    def indexes(connection: sa.Connection) -> dict[str, tuple[bool, list[str | None], str]]:
        kind = connection.dialect.name
        return {
            str(index["name"]): (
                bool(index["unique"]),
                index["column_names"],
                str(index.get("dialect_options", {}).get(f"{kind}_where", "")),
            )
            for index in sa.inspect(connection).get_indexes("llm_runs")
        }

    async with empty.connect() as connection:
        found = await connection.run_sync(indexes)
    assert {name for name, (unique, *_) in found.items() if unique} == {
        "uq_llm_runs_idem_slot", "uq_llm_runs_flight_slot",
    }  # fmt: skip
    assert found["uq_llm_runs_idem_slot"][1] == ["workspace_id", "idem_slot"]
    assert "finished_at IS NULL" in found["ix_llm_runs_lease"][2]
    assert "SUCCEEDED" in found["ix_llm_runs_servable"][2]
    assert "source_run_id IS NULL" in found["ix_llm_runs_servable"][2]


async def test_two_upgrades_at_once_in_one_process_both_succeed(empty_url: str):
    engines = [build_engine(empty_url) for _ in range(3)]
    await asyncio.gather(*(upgrade(engine) for engine in engines))
    assert {await schema_state(engine) for engine in engines} == {"current"}
    for engine in engines:
        await engine.dispose()


async def test_a_revision_that_is_not_known_is_newer_and_refused(empty: AsyncEngine, empty_url: str):
    await upgrade(empty)
    async with empty.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    assert await schema_state(empty) == "newer"
    for migrate in (True, False):
        with pytest.raises(LLMLedgerSchema, match="newer version of signalbox") as caught:
            await _start(empty_url, auto_migrate=migrate)
        assert "\n" not in str(caught.value)
    assert await schema_state(empty) == "newer"


async def test_costs_that_were_recorded_before_prices_are_still_what_they_were(empty: AsyncEngine):
    """Nothing but zero and unknown was recorded then; SQLite kept dollars, and keeps nano-dollars since."""
    await upgrade(empty, "0001")
    table = models.LLMRun.__table__
    needed = [each.name for each in table.c if not each.nullable and each.server_default is None]
    row = dict.fromkeys(needed, "") | {"fingerprint_version": 1, "created_at": sa.func.current_timestamp()}
    old = sa.table("llm_runs", *map(sa.column, [*row, "cost_usd"]))
    async with empty.begin() as connection:
        for name, cost in (("local", 0.0), ("unknown", None)):
            await connection.execute(sa.insert(old).values(**{**row, "id": name, "cost_usd": cost}))
    await upgrade(empty)
    async with empty.connect() as connection:
        found = (await connection.execute(sa.select(table.c.id, table.c.cost_usd).order_by(table.c.id))).all()
    assert [tuple(each) for each in found] == [("local", 0), ("unknown", None)]


async def test_older_tables_are_upgraded_or_refused(empty: AsyncEngine, empty_url: str):
    await upgrade(empty)
    await downgrade(empty, "base")
    with pytest.raises(LLMLedgerSchema, match="older tables: run `signalbox migrate`"):
        await _start(empty_url, auto_migrate=False)
    await _start(empty_url, auto_migrate=True)
    assert await schema_state(empty) == "current"


async def test_an_empty_postgres_is_refused_in_one_line(pg_empty_url: str):
    """Its tables are made by whoever may make them, not by the first worker that starts."""
    with pytest.raises(LLMLedgerSchema) as caught:
        await _start(pg_empty_url)
    assert str(caught.value) == "the database has no tables yet: run `signalbox migrate`"
    await _start(pg_empty_url, auto_migrate=True)
    await _start(pg_empty_url)


async def test_a_new_sqlite_file_is_made_and_only_its_owner_may_read_it(tmp_path: Path):
    """I19: whatever the umask allows."""
    file = tmp_path / "new" / "ledger.db"
    file.parent.mkdir()
    before = os.umask(0)
    try:
        async with service(f"sqlite+aiosqlite:///{file}") as llm:
            from tests.support.ledger import request

            await llm.chat(request())
            found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert found["ledger.db"] == 0o600
    assert set(found.values()) == {0o600}, found
    assert "ledger.db-wal" in found


async def test_a_sqlite_file_without_tables_is_refused_where_migrating_is_off(tmp_path: Path):
    with pytest.raises(LLMLedgerSchema, match="run `signalbox migrate`"):
        await _start(f"sqlite+aiosqlite:///{tmp_path / 'new.db'}", auto_migrate=False)


async def test_a_database_that_does_not_exist_is_a_ledger_error(pg_empty_url: str):
    missing = sa.make_url(pg_empty_url).set(database="no_such_database").render_as_string(hide_password=False)
    with pytest.raises(LLMLedgerError, match="LLM_DATABASE_URL"):
        await _start(missing)


async def test_a_role_that_does_not_exist_is_a_ledger_error(pg_empty_url: str):
    missing = (
        sa.make_url(pg_empty_url)
        .set(username="nobody", password=PASSWORD)
        .render_as_string(hide_password=False)
    )
    with pytest.raises(LLMLedgerError) as caught:
        await _start(missing)
    assert PASSWORD not in repr(caught.value)


async def test_a_file_that_is_no_database_is_a_ledger_error(tmp_path: Path):
    file = tmp_path / "notes.db"
    file.write_text("These are my notes, and more than one page of them. " * 200)
    with pytest.raises(LLMLedgerError, match="LLM_DATABASE_URL"):
        await _start(f"sqlite+aiosqlite:///{file}")


async def test_a_server_that_is_away_is_a_ledger_error(tmp_path: Path):
    with pytest.raises(LLMLedgerError, match="LLM_DATABASE_URL"):
        await _start(f"postgresql+asyncpg://postgres@/x?host={tmp_path}")


def test_scripts_are_found_whatever_the_working_directory(tmp_path: Path):
    config = alembic_config("sqlite+aiosqlite:///x.db")
    assert Path(str(config.get_main_option("script_location"))).joinpath("env.py").is_file()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite+aiosqlite:///rel.db", "rel.db"),
        ("sqlite+aiosqlite:////abs/x.db", "/abs/x.db"),
        ("sqlite+aiosqlite://", None),
        ("sqlite+aiosqlite:///:memory:", None),
        ("postgresql+asyncpg://u@h/d", None),
    ],
)
def test_which_urls_name_a_file(url: str, file: str | None):
    assert sqlite_file(url) == (None if file is None else Path(file).absolute())


def test_every_table_of_the_application_is_in_one_metadata():
    assert set(Base.metadata.tables) >= TABLES


async def _start(url: str, **settings: Any) -> None:
    async with service(url, ledger_timeout_s=2, **settings):
        pass

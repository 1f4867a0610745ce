"""Engines: real transactions, bounded waits, clocks that agree."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.base import UTCDateTime, db_now, seconds_until
from app.db.engine import build_engine
from app.db.unit_of_work import unit_of_work

TIMES = sa.Table("times", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("at", UTCDateTime))


async def test_sqlite_waits_for_locks_keeps_a_log_and_syncs(sqlite_url: str):
    engine = build_engine(sqlite_url, timeout_s=3)
    async with engine.connect() as connection:
        found = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("busy_timeout", "journal_mode", "synchronous", "foreign_keys", "query_only")
        }
    assert found == {
        "busy_timeout": 3000, "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "query_only": 0,
    }  # fmt: skip
    await engine.dispose()


async def test_a_read_only_engine_reads_beside_a_writer_and_writes_nothing(sqlite_url: str):
    writer, reader = build_engine(sqlite_url), build_engine(sqlite_url, read_only=True, timeout_s=0.1)
    async with writer.begin() as writing:
        await writing.execute(sa.text("UPDATE llm_runs SET stage = 'x'"))
        async with reader.connect() as reading:
            assert (await reading.execute(sa.text("SELECT count(*) FROM llm_runs"))).scalar_one() == 0
    with pytest.raises(exc.OperationalError):
        async with reader.begin() as reading:
            await reading.execute(sa.text("UPDATE llm_runs SET stage = 'x'"))
    await writer.dispose()
    await reader.dispose()


async def test_a_second_writer_waits_no_longer_than_it_was_told(sqlite_url: str):
    first, second = build_engine(sqlite_url), build_engine(sqlite_url, timeout_s=0.05)
    async with asyncio.timeout(20), first.begin():
        with pytest.raises(exc.OperationalError, match="locked"):
            async with second.begin():
                pass
    await first.dispose()
    await second.dispose()


async def test_ddl_is_rolled_back_with_its_transaction(engine: AsyncEngine):
    async with engine.connect() as connection:
        await connection.execute(sa.text("CREATE TABLE rolled_back (n INTEGER)"))
        await connection.rollback()
        tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    assert "rolled_back" not in tables


async def test_times_come_back_as_the_same_moment_in_utc(engine: AsyncEngine):
    moment = datetime(2026, 3, 1, 13, 30, 0, 123_000, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    async with engine.connect() as connection:
        await connection.run_sync(TIMES.create)
        await connection.execute(TIMES.insert(), [{"id": 1, "at": moment}, {"id": 2, "at": None}])
        found = list((await connection.execute(sa.select(TIMES.c.at).order_by(TIMES.c.id))).scalars())
        await connection.rollback()
    assert found == [moment, None]
    assert found[0].utcoffset() == timedelta(0)


async def test_the_databases_clock_moves_inside_a_transaction_and_counts_seconds(engine: AsyncEngine):
    """`now()` of PostgreSQL would stand still: a lease could be judged by an old clock."""
    later = sa.select(
        db_now(), db_now(sa.literal(90.5)), seconds_until(db_now(sa.literal(90.5))), seconds_until(db_now(sa.literal(-60.0)))
    )  # fmt: skip
    async with engine.connect() as connection:
        now, ahead, left, past = (await connection.execute(later)).one()
        await asyncio.sleep(0.005)
        again = (await connection.execute(sa.select(db_now()))).scalar_one()
    assert again > now
    assert abs((ahead - now).total_seconds() - 90.5) < 5
    assert 85 < left <= 90.6
    assert -65 < past <= -59
    assert abs((now - datetime.now(UTC)).total_seconds()) < 60


async def test_what_a_unit_of_work_does_not_commit_is_gone(engine: AsyncEngine):
    async with unit_of_work(engine) as session:
        await session.execute(sa.text("CREATE TABLE kept (n INTEGER)"))
        await session.commit()
        await session.execute(sa.text("INSERT INTO kept VALUES (1)"))
    async with unit_of_work(engine) as session:
        assert (await session.execute(sa.text("SELECT count(*) FROM kept"))).scalar_one() == 0
        await session.execute(sa.text("DROP TABLE kept"))
        await session.commit()


async def test_an_error_inside_a_unit_of_work_rolls_back_and_frees_the_lock(sqlite_url: str):
    engine = build_engine(sqlite_url, timeout_s=1)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with unit_of_work(engine) as session:
            await session.execute(sa.text("UPDATE llm_runs SET stage = 'x'"))
            _ = 1 / 0
    async with unit_of_work(engine) as session:
        await session.execute(sa.text("UPDATE llm_runs SET stage = 'x'"))
        await session.commit()
    await engine.dispose()

"""The seam on its own: one transaction or nothing, faults in our words, repeats only where that is safe."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from app.bootstrap import connect
from app.llm.errors import (
    LLMFenced,
    LLMLedgerBusy,
    LLMLedgerError,
    LLMLedgerSchema,
    LLMLedgerUnavailable,
)
from app.llm.persistence.codec import decode_response, encode_response
from app.llm.persistence.executor import REPEATS, Executor, Step, Steps, ledger_error
from app.llm.persistence.models import LLMPayload
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, new_run, response

PAYLOADS = LLMPayload.__table__
NOTE = sa.update(PAYLOADS).values(sha256=sa.bindparam("v"))
READ = Step(sa.select(PAYLOADS.c.sha256), {})
ONE_ROW = sa.insert(PAYLOADS).values(
    workspace_id="w", sha256="0", codec=0, bytes=b"", last_ref_at=datetime(2026, 1, 1, tzinfo=UTC)
)


@pytest.fixture
async def executor(db_url: str) -> Any:
    outside = Outside(db_url)
    async with outside.engine.begin() as connection:
        await connection.execute(ONE_ROW)
    await outside.close()
    made = connect(db_url, timeout_s=1)
    yield made
    await made.close()
    await made.close()


def _steps(*values: str, raises: Exception | None = None) -> Steps[int]:
    changed = 0
    for value in values:
        changed += (yield Step(NOTE, {"v": value})).rowcount
    if raises is not None:
        raise raises
    return changed


async def _version(executor: Executor) -> str:
    return str((await executor.read(READ)).rows[0]["sha256"])


async def test_all_steps_are_one_transaction(executor: Executor):
    assert await executor.transaction(lambda: _steps("a", "b")) == 2
    assert await _version(executor) == "b"


async def test_an_error_among_the_steps_undoes_them_all(executor: Executor):
    with pytest.raises(LLMFenced):
        await executor.transaction(lambda: _steps("a", raises=LLMFenced("lost")))
    assert await _version(executor) == "0"


async def test_a_read_sees_what_was_committed_and_nothing_else(executor: Executor, db_url: str):
    outside = Outside(db_url)
    async with outside.engine.connect() as connection:
        await connection.execute(NOTE, {"v": "uncommitted"})
        assert await _version(executor) == "0"
        await connection.rollback()
    await outside.close()


async def test_a_serialization_failure_is_run_again_from_the_start(pg_url: str):
    executor, runs = connect(pg_url, timeout_s=1), []

    def steps(failures: int) -> Steps[str]:
        runs.append(1)
        if len(runs) <= failures:
            yield Step(sa.text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"), {})
        yield READ
        return "done"

    assert await executor.transaction(lambda: steps(REPEATS - 1)) == "done"
    assert len(runs) == REPEATS
    runs.clear()
    with pytest.raises(LLMLedgerBusy) as caught:
        await executor.transaction(lambda: steps(99))
    assert len(runs) == REPEATS
    assert caught.value.retry_after_s
    await executor.close()


async def test_a_row_that_somebody_locks_ends_in_a_busy_error(pg_url: str):
    executor, outside = connect(pg_url, timeout_s=0.1), Outside(pg_url)
    async with outside.engine.begin() as connection:
        await connection.execute(ONE_ROW)
    async with asyncio.timeout(20), outside.engine.connect() as connection:
        await connection.execute(NOTE, {"v": "locked"})
        with pytest.raises(LLMLedgerBusy, match="not to be had"):
            await executor.transaction(lambda: _steps("a"))
        await connection.rollback()
    await outside.close()
    await executor.close()


class _Postgres(Exception):  # a driver's error
    def __init__(self, sqlstate: str) -> None:
        super().__init__("text of the driver")
        self.sqlstate = sqlstate


def _wrapped(origin: Exception) -> exc.DBAPIError:
    return exc.DBAPIError("SELECT 'my prompt'", {"p_bytes": "my prompt"}, origin)


@pytest.mark.parametrize(
    ("error", "kind", "repeat"),
    [
        (_wrapped(_Postgres("40001")), LLMLedgerBusy, True),
        (_wrapped(_Postgres("40P01")), LLMLedgerBusy, True),
        (_wrapped(_Postgres("55P03")), LLMLedgerBusy, False),
        (_wrapped(_Postgres("57014")), LLMLedgerBusy, False),
        (_wrapped(Exception("database is locked")), LLMLedgerBusy, False),
        (exc.TimeoutError("pool"), LLMLedgerBusy, False),
        (TimeoutError(), LLMLedgerBusy, False),
        (_wrapped(_Postgres("42P01")), LLMLedgerSchema, False),
        (_wrapped(_Postgres("42703")), LLMLedgerSchema, False),
        (_wrapped(Exception("no such table: llm_runs")), LLMLedgerSchema, False),
        (_wrapped(_Postgres("57P01")), LLMLedgerUnavailable, False),
        (_wrapped(Exception("disk I/O error")), LLMLedgerUnavailable, False),
        (ConnectionRefusedError("refused"), LLMLedgerUnavailable, False),
        (FileNotFoundError("no socket"), LLMLedgerUnavailable, False),
    ],
    ids=lambda value: getattr(value, "__name__", None) or f"{type(value).__name__}",
)
def test_every_fault_is_told_in_our_words_without_the_statement(error: Any, kind: type, *, repeat: bool):
    """I17: statements and their values hold prompts."""
    fault, again = ledger_error(error, 3.0)
    assert (type(fault), again) == (kind, repeat)
    assert isinstance(fault, LLMLedgerError)
    assert "my prompt" not in str(fault)
    assert "\n" not in str(fault)


async def test_a_fault_carries_no_prompt_in_its_chain(executor: Executor):
    """I17."""

    def steps() -> Steps[None]:
        yield Step(sa.text("SELECT * FROM nowhere WHERE x = :p"), {"p": "my prompt"})

    with pytest.raises(LLMLedgerSchema) as caught:
        await executor.transaction(steps)
    error: BaseException | None = caught.value
    while error is not None:
        assert "my prompt" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"v":2}',
        b'{"v":1}',
        b'{"v":1,"parts":[{"type":"new"}]}',
        b'{"parts":[]}',
    ],
)
def test_an_answer_that_this_version_cannot_read_is_told_by_its_run(data: bytes):
    with pytest.raises(LLMLedgerUnavailable, match="run r1") as caught:
        decode_response(data, run_id="r1", route=(), served_from=ServedFrom.REPLAY)
    assert caught.value.__context__ is None


def test_an_answer_reads_back_as_what_was_said():
    said = response(new_run(), "the answer")
    back = decode_response(encode_response(said), run_id="r", route=(), served_from=ServedFrom.CACHE)
    assert (back.parts, back.finish_reason, back.original_usage) == (
        said.parts,
        said.finish_reason,
        said.usage,
    )
    assert (back.usage.total_tokens, back.cost_usd, back.run_id) == (0, 0.0, "r")

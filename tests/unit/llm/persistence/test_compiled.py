"""What the lean executors send is what SQLAlchemy would send: text, values and rows, on both databases."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.llm.persistence import reports, statements, statements_budgets, statements_retention
from app.llm.persistence.codec import PLAIN
from app.llm.persistence.compiled import PREFIX, compiled
from app.llm.persistence.executor import Result, Step
from app.llm.persistence.statements_retention import Selection

PAST = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2)))
ANSWERED, LIVE, NEW = "run-answered", "run-live", "run-new"
SHA, OTHER_SHA = "a" * 64, "b" * 64
RUN = {
    "workspace_id": "w", "prompt_sha256": SHA, "request_sha256": SHA, "candidate_sha256": SHA,
    "fingerprint_version": 1, "profile": "fast", "cache_mode": "use", "owner": "me", "route": "[]", "needs": "{}",
    "metadata": "{}", "created_at": PAST, "lease_until": PAST, "provider": "ollama", "model": "m",
}  # fmt: skip
SEED = (
    (statements.runs, {**RUN, "id": ANSWERED, "status": "SUCCEEDED", "idempotency_key": "k", "idem_slot": "k",
                       "finished_at": PAST, "expires_at": PAST, "finish_reason": "stop", "cost_usd": 0.25,
                       "request_payload": SHA, "response_payload": SHA}),
    (statements.runs, {**RUN, "id": LIVE, "status": "STARTED", "idem_slot": "l", "flight_slot": SHA}),
    (statements.attempts, {"run_id": ANSWERED, "ordinal": 1, "provider": "ollama", "model": "m", "candidate_sha256": SHA,
                           "status": "SUCCEEDED", "started_at": PAST, "finished_at": PAST, "cost_usd": 0.125}),
    (statements.payloads, {"workspace_id": "w", "sha256": SHA, "codec": 0, "bytes": b"\x00{}", "last_ref_at": PAST}),
)  # fmt: skip
VALUES = dict(  # noqa: C408  # half as wide
    workspace_id="w", prompt_sha256=SHA, request_sha256=SHA, candidate_sha256=SHA, pipeline_run_id=None, stage="s",
    idempotency_key="k2", idem_slot="k2", flight_slot=SHA, fingerprint_version=1, profile="fast", provider="gemini",
    model="m", cache_mode="use", execution=2, supersedes=LIVE, owner="me", sends_noted=1, sends=3, route="[]",
    needs="{}", metadata="{}", lease_s=60, key="k", candidate_0=SHA, candidate_1=OTHER_SHA, minus_ttl_s=-(10**9), count=2,
    source_run_id=ANSWERED, finish_reason="stop", saved_cost_usd=2, price_version="v", cached_input_tokens=1,
    ids=(ANSWERED, LIVE), saved_input_tokens=3, saved_output_tokens=2**62, expires_s=None,
    status="SUCCEEDED", input_tokens=1, output_tokens=None, total_tokens=1, usage_source="provider", cost_usd=1,
    queue_wait_ms=1, latency_ms=2.5, error_code=None, error_message="\U0001f600 '", possibly_paid=True,
    request_payload=SHA, response_payload=OTHER_SHA, run_id=LIVE, ordinal=2, http_status=429, retry_after_s=1,
    started_at=PAST, finished_at=PAST, sha256=OTHER_SHA, codec=1, bytes=b"\x00\xff",
    trace_id=None, reserved_tokens=7, reserved_cost_usd=2, tokens=5, usd=1, tokens_limit=None, usd_limit=3, chars=7, unknown=1,
    period="2026-01", begin=PAST, end=PAST, spent_tokens=1, spent_usd=2, reserved_usd=1, unknown_costs=0,
)  # fmt: skip
CLOCKS = {"now", "created_at", "lease_until", "finished_at", "expires_at", "last_ref_at"}


class _Recorder:
    """A reader that notes what it is asked, and has one run to tell of."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    async def read(self, step: Step) -> Result:
        self.steps.append(step)
        return Result([{**RUN, "id": ANSWERED, "idempotency_key": "k", "request_payload": SHA, "response_payload": OTHER_SHA,
                        "sha256": SHA, "codec": 9, "bytes": b"", "version_num": "1"}], 1)  # fmt: skip


def _binds(statement: Any) -> Any:
    return statement.compile(dialect=sqlite.dialect()).binds


def _protocol() -> Iterator[tuple[str, Step]]:
    for name, statement in (*vars(statements).items(), *vars(statements_budgets).items()):
        if not (name.isupper() and isinstance(statement, sa.Select | sa.Insert | sa.Update)):
            continue
        wanted = _binds(statement)
        params = {name: value for name, value in VALUES.items() if PREFIX + name in wanted}
        ids = (ANSWERED, LIVE) if PREFIX + "id" in wanted else (NEW,)
        for run_id in ids:
            own = (
                {**params, "id": NEW if name == "INSERT_RUN" else run_id}
                if PREFIX + "id" in wanted
                else params
            )
            yield f"{name} {run_id}", Step(statement, own)
    for number in (1, 2):
        statement = statements.find_cached(number)
        wanted = _binds(statement)
        yield (
            f"find_cached {number}",
            Step(statement, {n: v for n, v in VALUES.items() if PREFIX + n in wanted}),
        )


def _prune() -> Iterator[tuple[str, Step]]:
    for payloads_only in (False, True):
        which = Selection(older_than_s=1.0, workspace_id="w", payloads_only=payloads_only, keys=True)
        yield "find_runs", statements_retention.find_runs(which, "", 5)
        yield "end_of_window", statements_retention.end_of_window(which, "")
        yield "count_attempts", statements_retention.count_attempts(which, "", "zzz")
        yield "delete_runs", statements_retention.delete_runs(which, "", "zzz")
        yield "empty_runs", statements_retention.empty_runs(which, "", "zzz")
        yield "find_orphans", statements_retention.find_orphans(which, ("", ""), 5)
        yield "end_of_payloads", statements_retention.end_of_payloads(which, ("", ""))
    yield "delete_attempts", statements_retention.delete_attempts("", "zzz")
    yield "delete_orphans", statements_retention.delete_orphans(("", ""), ("zzz", "z"))
    yield "USUAL_BATCH", statements_retention.USUAL_BATCH
    yield "NO_COMPILER", statements_retention.NO_COMPILER


async def _reports() -> list[tuple[str, Step]]:
    reader: Any = _Recorder()
    wanted = reports.RunFilter(workspace_id="w", status="SUCCEEDED", newer_than_s=10.0**9)
    await reports.list_runs(reader, wanted, limit=3)
    await reports.matching_ids(reader, "run_%", limit=3)
    await reports.run_details(reader, ANSWERED, PLAIN)
    await reports.revision(reader)
    return [(f"report {place}", step) for place, step in enumerate(reader.steps)]


@pytest.fixture
async def seeded(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        for table, values in SEED:
            await connection.execute(sa.insert(table).values(values))
    return engine


async def test_every_statement_is_sent_and_read_as_sqlalchemy_does_it(seeded: AsyncEngine):
    dialect: Any = seeded.dialect.name
    sent: list[tuple[str, Any]] = []

    @event.listens_for(seeded.sync_engine, "before_cursor_execute")
    def _note(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        sent.append((text, values))

    cases = [*_protocol(), *_prune(), *await _reports()]
    changing = reading = 0
    for name, step in cases:
        params = dict(step.params)  # type: ignore[arg-type]
        ours = compiled(step.statement, dialect)
        async with seeded.connect() as connection:
            await connection.begin()
            sent.clear()
            theirs = await connection.execute(step.statement, ours.prefixed(params))
            assert ours.returns_rows == theirs.returns_rows, name
            rows = [dict(row) for row in theirs.mappings()] if theirs.returns_rows else []
            text, values = ours.bind(params)
            assert (text, values) == (sent[0][0], tuple(sent[0][1])), name
            assert [type(value) for value in values] == [_type(value) for value in sent[0][1]], name
            after = await _tables(connection)
            await connection.rollback()

            await connection.begin()
            raw, rowcount = await _driver(connection, text, values)
            _assert_equal_rows(name, [ours.row(row) for row in raw], rows)
            assert rowcount in (None, theirs.rowcount), name
            _assert_equal_rows(name, await _tables(connection), after)
            await connection.rollback()
        changing += not ours.returns_rows and theirs.rowcount > 0
        reading += bool(rows)
    assert changing > 15  # most of them did something to the rows that are there
    assert reading > 15


def _type(value: Any) -> type:
    return bytes if isinstance(value, memoryview) else type(value)  # what sqlite3 calls Binary: the same blob


async def _driver(
    connection: AsyncConnection, text: str, values: tuple[Any, ...]
) -> tuple[list[Any], int | None]:
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql("SELECT 1")  # begins
        cursor = await driver.execute(text, values)
        rows = await cursor.fetchall()
        return [tuple(row) for row in rows], cursor.rowcount
    await connection.exec_driver_sql("SELECT 1")
    return [tuple(row) for row in await driver.fetch(text, *values)], None


async def _tables(connection: AsyncConnection) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for table in (statements.runs, statements.attempts, statements.payloads):
        found = await connection.execute(sa.select(table).order_by(*table.primary_key))
        rows += [dict(row) for row in found.mappings()]
    return rows


def _assert_equal_rows(name: str, ours: list[Any], theirs: list[Any]) -> None:
    """Times that the database's clock gave differ by how long this takes."""
    assert len(ours) == len(theirs), name
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other), name
        for column, value in mine.items():
            assert type(value) is type(other[column]), (name, column)
            if column in CLOCKS and value is not None:
                assert abs(value - other[column]) < timedelta(minutes=1), (name, column)
            elif column.endswith(("_left_s", "age_s")):
                assert value is None or abs(value - other[column]) < 60, (name, column)
            else:
                assert value == other[column], (name, column)


def test_a_value_that_is_missing_is_named():
    with pytest.raises(KeyError, match="key"):
        compiled(statements.KEY_HOLDER, "sqlite").bind({"workspace_id": "w"})


def test_a_statement_is_compiled_once_for_each_database():
    first = compiled(statements.FINISH_ANSWERED, "sqlite")
    assert compiled(statements.FINISH_ANSWERED, "sqlite") is first
    assert compiled(statements.FINISH_ANSWERED, "postgresql") is not first


def test_times_are_bound_as_the_columns_keep_them():
    step = {
        name: value for name, value in VALUES.items() if PREFIX + name in _binds(statements.INSERT_ATTEMPT)
    }
    _, on_sqlite = compiled(statements.INSERT_ATTEMPT, "sqlite").bind(step)
    _, on_postgres = compiled(statements.INSERT_ATTEMPT, "postgresql").bind(step)
    assert "2026-01-01 10:30:15.123" in on_sqlite
    assert PAST.astimezone(UTC) in on_postgres

"""Tables that were filled fast: as many finished runs as wanted, each with its send and its texts, by plain SQL."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from bench.world import WORKSPACE

_AGE_DAYS = 30
"""Old enough for any prune, and for its texts not to count as just referred to."""

_RUN = """
INSERT INTO llm_runs (id, workspace_id, stage, idempotency_key, idem_slot, prompt_sha256, request_sha256,
  candidate_sha256, fingerprint_version, profile, provider, model, status, finish_reason, cache_mode, owner, sends_noted,
  route, needs, input_tokens, output_tokens, total_tokens, latency_ms, metadata, created_at, finished_at,
  request_payload, response_payload)
SELECT {id}, '{workspace}', 'filled', 'filled-' || n, {slot}, {sha_a}, {sha_b}, {sha_c}, 1, 'fast',
  'ollama', 'llama3.2', 'SUCCEEDED', 'stop', 'use', 'filler', 1,
  '[{{"provider": "ollama", "model": "llama3.2", "kept": true, "reason": "listed"}}]', '{{}}', 260, 80, 340, 1.5,
  '{{}}', {then}, {then}, {asked}, {said}
FROM {numbers}
"""
_ATTEMPT = """
INSERT INTO llm_attempts (run_id, ordinal, provider, model, candidate_sha256, status, http_status, started_at,
  finished_at, input_tokens, output_tokens)
SELECT {id}, 1, 'ollama', 'llama3.2', {sha_c}, 'SUCCEEDED', 200, {then}, {then}, 260, 80 FROM {numbers}
"""
_PAYLOAD = """
INSERT INTO llm_payloads (workspace_id, sha256, codec, bytes, last_ref_at)
SELECT '{workspace}', {address}, 0, {bytes}, {then} FROM {numbers}
"""

_SQLITE = {
    "id": "printf('00000000-%04x-7%03x-8000-%012x', n >> 16, n & 4095, n)",
    "sha_a": "lower(hex(randomblob(32)))",
    "sha_b": "lower(hex(randomblob(32)))",
    "sha_c": "printf('%064x', 7)",
    "then": f"datetime('now', '-{_AGE_DAYS} days') || '.000000'",
    "asked": "printf('a%063x', n * 2654435761 % 2147483648 * 4294967296 + n)",
    "said": "printf('b%063x', n * 2654435761 % 2147483648 * 4294967296 + n)",
    "numbers": "(WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s)",
    "bytes": "randomblob(300)",
}
_POSTGRES = {
    "id": "format('00000000-%s-7%s-8000-%s', lpad(to_hex(n >> 16), 4, '0'), lpad(to_hex(n & 4095), 3, '0'), lpad(to_hex(n), 12, '0'))",
    "sha_a": "encode(sha256(('a' || n)::bytea), 'hex')",
    "sha_b": "encode(sha256(('b' || n)::bytea), 'hex')",
    "sha_c": "lpad('7', 64, '0')",
    "then": f"now() - interval '{_AGE_DAYS} days'",
    "asked": "encode(sha256(('c' || n)::bytea), 'hex')",
    "said": "encode(sha256(('d' || n)::bytea), 'hex')",
    "numbers": "generate_series({first}, {last}) AS n",
    "bytes": "decode(repeat(md5(n::text), 19), 'hex')",
}


def statements(dialect: dict[str, str], first: int, last: int, *, keyed: bool) -> list[str]:
    """Return what inserts the runs numbered `first` to `last`; `keyed` ones hold their key for ever."""
    words = {
        **dialect,
        "workspace": WORKSPACE,
        "numbers": dialect["numbers"].format(first=first, last=last),
        "slot": "'filled-' || n" if keyed else "NULL",
    }
    payloads = [_PAYLOAD.format(**words, address=words[name]) for name in ("asked", "said")]
    return [_RUN.format(**words), _ATTEMPT.format(**words), *payloads]


async def fill(url: str, first: int, last: int, *, keyed: bool = True) -> None:
    """Insert the runs numbered `first` to `last` into migrated tables."""
    if (file := _sqlite_file(url)) is not None:
        _fill_sqlite(file, statements(_SQLITE, first, last, keyed=keyed))
        return
    async with _connected(url) as connection:
        for statement in statements(_POSTGRES, first, last, keyed=keyed):
            await connection.execute(statement)
        await connection.execute("ANALYZE")


async def stored_bytes(url: str) -> int:
    """Return the bytes that the database takes on the disk, indexes included."""
    if (file := _sqlite_file(url)) is not None:
        return file.stat().st_size
    async with _connected(url) as connection:
        return int(await connection.fetchval("SELECT pg_database_size(current_database())"))


def _sqlite_file(url: str) -> Path | None:
    parsed = make_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:  # asyncpg has no types
    import asyncpg  # noqa: PLC0415  # only where it is needed

    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def _fill_sqlite(file: Path, wanted: list[str]) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")  # of this connection only
        connection.execute("PRAGMA cache_size=-400000")
        connection.execute("BEGIN IMMEDIATE")
        for statement in wanted:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

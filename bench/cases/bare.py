"""What nobody can beat: one HTTP request with aiohttp, alone and with a hand-written ledger around it."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from app.core.ids import new_id
from bench.measure import Call
from bench.rawledger import RawLedger
from bench.world import KILOBYTE, OLLAMA_MODEL, WORKSPACE, World, wire_messages

_STARTED = "INSERT INTO runs (id, workspace, key, status, model, created_at, request) VALUES (?, ?, ?, 'STARTED', ?, ?, ?)"
_FINISHED = "UPDATE runs SET status = 'SUCCEEDED', input_tokens = ?, output_tokens = ?, finished_at = ?, response = ? WHERE id = ?"
_ATTEMPT = "INSERT INTO attempts VALUES (?, 1, ?, 200, ?, ?)"
_PAYLOAD = "INSERT INTO payloads VALUES (?, ?) ON CONFLICT DO NOTHING"


@asynccontextmanager
async def raw(world: World, size: int = KILOBYTE) -> AsyncIterator[Call]:
    """Yield a plain POST to Ollama's API, its answer parsed."""
    async with _session() as session:

        async def call(number: int) -> None:
            await _ask(session, world, number, size)

        yield call


@asynccontextmanager
async def floor(world: World, name: str = "floor") -> AsyncIterator[Call]:
    """Yield the same POST with a durable row before it and a durable answer after it."""
    ledger = RawLedger(Path(world.directory) / f"{name}.db")
    async with _session() as session:

        async def call(number: int) -> None:
            run_id, began = new_id(), _now()
            asked = orjson.dumps(wire_messages(number))
            asked_sha256 = hashlib.sha256(asked).hexdigest()
            await ledger.write(
                (_STARTED, (run_id, WORKSPACE, f"key-{number}", OLLAMA_MODEL, began, asked_sha256))
            )
            reply = await _ask(session, world, number, KILOBYTE)
            said = orjson.dumps(reply["message"])
            said_sha256 = hashlib.sha256(said).hexdigest()
            tokens = (reply["prompt_eval_count"], reply["eval_count"])
            await ledger.write(
                (_FINISHED, (*tokens, _now(), said_sha256, run_id)),
                (_ATTEMPT, (run_id, OLLAMA_MODEL, began, _now())),
                (_PAYLOAD, (asked_sha256, asked)),
                (_PAYLOAD, (said_sha256, said)),
            )

        try:
            yield call
        finally:
            await ledger.close()


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())


async def _ask(session: aiohttp.ClientSession, world: World, number: int, size: int) -> Any:
    body = orjson.dumps(
        {"model": OLLAMA_MODEL, "messages": wire_messages(number, size), "stream": False, "options": {}}
    )
    async with session.post(
        f"{world.stub_url}/api/chat", data=body, headers={"Content-Type": "application/json"}
    ) as answer:
        reply = orjson.loads(await answer.read())
        if answer.status != 200 or not reply["message"]["content"]:  # noqa: PLR2004  # OK
            raise RuntimeError(f"the stub answered {answer.status}: {reply}")
        return reply


def _now() -> str:
    return datetime.now(UTC).isoformat()

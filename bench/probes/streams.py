"""Streams: how long the first chunk takes, and what a chunk costs, beside aiohttp that reads the same lines."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import aiohttp
import orjson

from app.llm import LLMResponse, LLMService
from bench.cases.ours import request, service
from bench.stub import CHUNKS
from bench.world import OLLAMA_MODEL, World, wire_messages

ROUNDS = 5
STREAMS = 40
"""Of each kind in a round; the kinds take turns."""

Streamed = Callable[[int], AsyncIterator[object]]


async def streams(world: World) -> dict[str, Any]:
    """Return milliseconds to the first chunk (median) and microseconds of CPU per chunk, each of the best round."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        plain = await stack.enter_async_context(service(world, persist_runs=False))
        kept = await stack.enter_async_context(service(world, database_url=world.file("streams")))
        kinds: dict[str, Streamed] = {
            "raw": lambda number: _raw(session, world, number),
            "unpersisted": lambda number: _ours(plain, number),
            "sqlite": lambda number: _ours(kept, number),
        }
        rounds = [await _round(kinds, STREAMS * number) for number in range(ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


async def _round(kinds: dict[str, Streamed], first: int) -> dict[str, float]:
    waits_ms: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu_s = dict.fromkeys(kinds, 0.0)
    for number in range(first, first + STREAMS):
        for kind, streamed in kinds.items():
            began_s, cpu_from_s, chunks = time.perf_counter(), time.process_time(), 0
            async for _ in streamed(number):
                chunks += 1
                if chunks == 1:
                    waits_ms[kind].append((time.perf_counter() - began_s) * 1000)
            cpu_s[kind] += time.process_time() - cpu_from_s
            if chunks != CHUNKS:
                raise RuntimeError(f"{kind}: {chunks} chunks, not {CHUNKS}")
    firsts = {f"{kind}_first_ms": median(waits) for kind, waits in waits_ms.items()}
    return firsts | {f"{kind}_chunk_us": cpu * 1e6 / STREAMS / CHUNKS for kind, cpu in cpu_s.items()}


async def _raw(session: aiohttp.ClientSession, world: World, number: int) -> AsyncIterator[object]:
    body = {"model": OLLAMA_MODEL, "messages": wire_messages(number), "stream": True, "options": {}}
    async with session.post(f"{world.stub_url}/api/chat", data=orjson.dumps(body)) as answer:
        async for line in answer.content:
            yield orjson.loads(line)


async def _ours(llm: LLMService, number: int) -> AsyncIterator[object]:
    """Yield deltas, and the response in the place of the last chunk."""
    async with llm.stream(request(number, key=False)) as stream:
        async for item in stream:
            yield item
    if not isinstance(item, LLMResponse):
        raise TypeError("a stream ended without its response")

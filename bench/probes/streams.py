"""Streams: how long the first chunk takes, and what a chunk costs, beside aiohttp that reads the same lines."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import aiohttp
import orjson

from app.llm import LLMResponse, LLMService
from bench.cases import bare
from bench.cases.ours import request, service
from bench.measure import Call
from bench.stub import CHUNKS
from bench.world import OLLAMA_MODEL, World, wire_messages

ROUNDS = 3
STREAMS = 40
"""Of each kind in a round; the kinds take turns."""

Streamed = Callable[[int], AsyncIterator[object]]


async def streams(world: World) -> dict[str, Any]:
    """Return milliseconds to the first chunk (median) and microseconds of CPU per chunk, each of the best round.

    Beside them what a whole round trip takes that does not stream: raw, and with a hand-written ledger around it.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        plain = await stack.enter_async_context(service(world, persist_runs=False))
        kept = await stack.enter_async_context(service(world, database_url=world.file("streams")))
        whole = {
            "raw": await stack.enter_async_context(bare.raw(world)),
            "floor": await stack.enter_async_context(bare.floor(world, "streams-floor")),
        }
        kinds: dict[str, Streamed] = {
            "raw": lambda number: _raw(session, world, number),
            "unpersisted": lambda number: _ours(plain, number),
            "sqlite": lambda number: _ours(kept, number),
        }
        rounds = [await _round(kinds, whole, STREAMS * number) for number in range(ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


async def _round(kinds: Mapping[str, Streamed], whole: Mapping[str, Call], first: int) -> dict[str, float]:
    waits_ms: dict[str, list[float]] = defaultdict(list)
    cpu_s: dict[str, float] = defaultdict(float)
    for number in range(first, first + STREAMS):
        for kind, call in whole.items():
            began_s = time.perf_counter()
            await call(number)
            waits_ms[f"{kind}_round_trip"].append((time.perf_counter() - began_s) * 1000)
        for kind, streamed in kinds.items():
            began_s, cpu_from_s, chunks = time.perf_counter(), time.process_time(), 0
            async for _ in streamed(number):
                chunks += 1
                if chunks == 1:
                    waits_ms[f"{kind}_first"].append((time.perf_counter() - began_s) * 1000)
            cpu_s[kind] += time.process_time() - cpu_from_s
            if chunks != CHUNKS:
                raise RuntimeError(f"{kind}: {chunks} chunks, not {CHUNKS}")
    waits = {f"{name}_ms": median(each) for name, each in waits_ms.items()}
    return waits | {f"{kind}_chunk_us": each * 1e6 / STREAMS / CHUNKS for kind, each in cpu_s.items()}


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

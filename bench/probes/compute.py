"""What is computed before anything is sent: the route, and the fingerprint beside the bare minimum of one."""

import asyncio
import hashlib
import time
from typing import Any

import orjson

from app.llm import LLMRequest, Message
from app.llm.fingerprint import prompt_sha256
from app.llm.testing.client import ScriptedClient
from bench.cases.ours import request, service
from bench.timing import best_us
from bench.world import WORKSPACE, World, prompt

CANDIDATES = 10
SIZES = {"1k": 1024, "16k": 16 * 1024, "256k": 256 * 1024, "4m": 4 * 2**20}
LOOKS = 15
"""Large calls beside which the loop is watched; the calmest one counts, for noise only ever adds."""
SENTINEL_S = 0.0005


async def route(world: World) -> dict[str, Any]:
    """Return the microseconds of one decision, through `explain`."""
    models = ",".join(f"ollama:model-{number}" for number in range(CANDIDATES))
    async with service(world, client=ScriptedClient(), persist_runs=False, profile_fast=models) as llm:
        asked = request(1)
        kept = llm.explain(asked).kept
        if len(kept) != CANDIDATES:
            raise RuntimeError(f"{len(kept)} candidates were kept, not {CANDIDATES}")
        return {"route_us": best_us(lambda: llm.explain(asked))}


async def fingerprint(world: World) -> dict[str, Any]:
    """Return microseconds of each size, ours and the floor; and how long 4 MB keep the loop from other work."""
    figures: dict[str, Any] = {}
    for name, size in SIZES.items():
        asked = LLMRequest(messages=(Message.user(prompt(1, size)),))
        plain = asked.model_dump(mode="json")
        figures[f"ours_{name}_us"] = best_us(lambda asked=asked: prompt_sha256(asked))
        figures[f"floor_{name}_us"] = best_us(lambda plain=plain: _floor(plain))
    figures["stall_4m_us"] = await _stall_us(world, SIZES["4m"])
    return figures


def _floor(plain: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def _stall_us(world: World, size: int) -> float:
    """Return the longest time that the loop stood still during a call with so large a prompt, nothing being sent."""
    wide = {"ollama_num_ctx": 10_000_000}  # or the router would refuse it
    async with service(world, client=ScriptedClient(), persist_runs=False, **wide) as llm:
        stalls = []
        for number in range(LOOKS):
            asked = request(number, size=size, key=False)
            longest = [0.0]
            sentinel = asyncio.create_task(_watch(longest))
            await asyncio.sleep(4 * SENTINEL_S)
            longest[0] = 0.0
            await llm.chat(asked)
            await asyncio.sleep(SENTINEL_S)
            sentinel.cancel()
            stalls.append(longest[0])
        return min(stalls) * 1e6


async def _watch(longest: list[float]) -> None:
    while True:
        asked_s = time.perf_counter()
        await asyncio.sleep(SENTINEL_S)
        longest[0] = max(longest[0], time.perf_counter() - asked_s - SENTINEL_S)

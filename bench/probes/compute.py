"""What is computed before anything is sent: the route, and the fingerprint beside the bare minimum of one."""

import asyncio
import hashlib
import time
from statistics import median
from typing import Any

import orjson

from app.llm import LLMRequest, LLMService, Message, RouteDecision
from app.llm.fingerprint import prompt_sha256
from app.llm.router import _route_of_short_prompts
from app.llm.testing.client import ScriptedClient
from bench.cases.ours import request, service
from bench.timing import best_us
from bench.world import World, prompt

CANDIDATES = 10
SIZES = {"1k": 1024, "16k": 16 * 1024, "256k": 256 * 1024, "4m": 4 * 2**20}
LOOKS = 15
"""Large calls beside which the loop is watched."""
SENTINEL_S = 0.0005


async def route(world: World) -> dict[str, Any]:
    """Return the microseconds of one decision, through `explain`: as it is remembered by value, and made anew."""
    models = ",".join(f"ollama:model-{number}" for number in range(CANDIDATES))
    async with service(world, client=ScriptedClient(), persist_runs=False, profile_fast=models) as llm:
        asked = request(1)
        kept = llm.explain(asked).kept
        if len(kept) != CANDIDATES:
            raise RuntimeError(f"{len(kept)} candidates were kept, not {CANDIDATES}")
        return {
            "route_us": best_us(lambda: llm.explain(asked)),
            "anew_us": best_us(lambda: explained_anew(llm, asked)),
        }


def explained_anew(llm: LLMService, asked: LLMRequest) -> RouteDecision:
    """Return the decision as a program makes it once for each kind of request."""
    _route_of_short_prompts.cache_clear()
    return llm.explain(asked)


async def fingerprint(world: World) -> dict[str, Any]:
    """Return microseconds of each size, ours and the floor; and what 4 MB take from the loop."""
    figures: dict[str, Any] = {}
    for name, size in SIZES.items():
        asked = LLMRequest(messages=(Message.user(prompt(1, size)),))
        plain = asked.model_dump(mode="json")
        figures[f"ours_{name}_us"] = best_us(lambda asked=asked: prompt_sha256(asked))
        figures[f"floor_{name}_us"] = best_us(lambda plain=plain: _floor(plain))
    return figures | await _beside(world, SIZES["4m"])


def _floor(plain: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def _beside(world: World, size: int) -> dict[str, float]:
    """Return, for a call with so large a prompt and nothing sent, the CPU of other threads, and the loop's longest stall."""
    elsewhere_us, stalls_us = [], []
    async with service(world, client=ScriptedClient(), persist_runs=False) as llm:
        for number in range(LOOKS):
            asked = request(number, size=size, key=False)
            longest_s = [0.0]
            sentinel = asyncio.create_task(_watch(longest_s))
            await asyncio.sleep(4 * SENTINEL_S)
            longest_s[0] = 0.0
            before_s = time.process_time() - time.thread_time()
            await llm.chat(asked)
            elsewhere_us.append((time.process_time() - time.thread_time() - before_s) * 1e6)
            await asyncio.sleep(SENTINEL_S)
            sentinel.cancel()
            stalls_us.append(longest_s[0] * 1e6)
    return {"off_loop_4m_us": median(elsewhere_us), "stall_4m_us": min(stalls_us)}


async def _watch(longest_s: list[float]) -> None:
    while True:
        asked_s = time.perf_counter()
        await asyncio.sleep(SENTINEL_S)
        longest_s[0] = max(longest_s[0], time.perf_counter() - asked_s - SENTINEL_S)

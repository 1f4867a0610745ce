"""Our calls, through the front door only: settings in, `build_llm_service`, `chat`."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.bootstrap import build_llm_service
from app.llm import LLMRequest, LLMResponse, LLMService, LLMSettings, Message, ServedFrom
from app.llm.ports import ChatClient
from app.llm.settings import isolated_settings
from bench.measure import Call
from bench.stub import BUSY
from bench.world import GEMINI_KEY, KILOBYTE, WORKSPACE, World, prompt

LANE, MEMORY = "litellm_lane", "memory_cache_bytes"
SLOTS = 512
"""More than any cell has in flight: what is measured is the call, not the queue for a slot."""
WINDOW = 10_000_000
"""Tokens; wide enough for the largest prompt, which the router would refuse otherwise."""
KNOWN = 64
"""Answers that replays and hits choose from."""
NO_MEMORY = {MEMORY: 0}
"""Replays and hits are read from the database each time."""


def settings(world: World, **values: Any) -> LLMSettings:
    """Return the defaults with the stub as every provider, on the lane of LLM_LITELLM_LANE if it names one."""
    lane = {LANE: os.environ[f"LLM_{LANE.upper()}"]} if f"LLM_{LANE.upper()}" in os.environ else {}
    defaults = {
        "ollama_api_base": world.stub_url,
        "ollama_num_ctx": WINDOW,
        "gemini_api_base": f"{world.stub_url}/v1beta",
        "gemini_api_key": GEMINI_KEY,
        "profile_fast": "ollama,gemini",
        "profile_balanced": "gemini",
        "profile_advanced": f"ollama:{BUSY},ollama",
        "attempts_per_candidate": 1,
        "concurrency_limit": SLOTS,
        "ollama_concurrency_limit": SLOTS,
        "gemini_concurrency_limit": SLOTS,
        "default_workspace": WORKSPACE,
        "auto_migrate": True,
    }
    return isolated_settings(**{**defaults, **lane, **values})


def missing_settings() -> list[str]:
    """Return the settings that cases rely on and this version does not have: unknown ones would be ignored silently."""
    return [name for name in (LANE, MEMORY) if name not in LLMSettings.model_fields]


def log_to_nowhere() -> None:
    """Have every event rendered and written, as a program does that logs; once per process."""
    log = logging.getLogger("signalbox")
    if not log.handlers:
        log.addHandler(logging.FileHandler(os.devnull))
        log.setLevel(logging.INFO)
        log.propagate = False


@asynccontextmanager
async def service(
    world: World, *, client: ChatClient | None = None, warm: bool = True, **values: Any
) -> AsyncIterator[LLMService]:
    """Yield a service as a program would have it."""
    log_to_nowhere()
    async with build_llm_service(settings(world, **values), client=client) as llm:
        if warm:
            await llm.warm_up()
        yield llm


def request(number: int, *, size: int = KILOBYTE, key: bool = True, profile: str = "fast") -> LLMRequest:
    """Return the request of this number; without a key where the content cache is to answer."""
    return LLMRequest(
        messages=(Message.user(prompt(number, size)),),
        profile=profile,
        idempotency_key=f"key-{number}" if key else None,
        metadata={"stage": "bench"},
    )


@asynccontextmanager
async def unpersisted(world: World) -> AsyncIterator[Call]:
    """Yield a call that leaves nothing behind."""
    async with service(world, persist_runs=False) as llm:

        async def call(number: int) -> None:
            _check(await llm.chat(request(number, key=False)))

        yield call


@asynccontextmanager
async def gemini(world: World) -> AsyncIterator[Call]:
    """Yield the same to Gemini."""
    async with service(world, persist_runs=False) as llm:

        async def call(number: int) -> None:
            _check(await llm.chat(request(number, key=False, profile="balanced")))

        yield call


@asynccontextmanager
async def sqlite(world: World, name: str = "sqlite", size: int = KILOBYTE) -> AsyncIterator[Call]:
    """Yield a fresh call with a key, its run and both texts durable."""
    async with service(world, database_url=world.file(name)) as llm:
        yield _fresh(llm, size)


@asynccontextmanager
async def postgres(world: World) -> AsyncIterator[Call]:
    """Yield the same on PostgreSQL."""
    async with world.database() as url, service(world, database_url=url) as llm:
        yield _fresh(llm, KILOBYTE)


@asynccontextmanager
async def failing_over(world: World) -> AsyncIterator[Call]:
    """Yield a call whose first candidate refuses; both attempts are recorded.

    It refuses with 429, which would leave the provider one slot after another: their number stays what it is.
    """
    async with service(world, database_url=world.file("failover"), concurrency_min=SLOTS) as llm:

        async def call(number: int) -> None:
            answer = await llm.chat(request(number, profile="advanced"))
            _check(answer)
            if len(answer.attempts) != 2:  # noqa: PLR2004  # the refused one and the other
                raise RuntimeError(f"{len(answer.attempts)} attempts, not 2: nothing failed over")

        yield call


@asynccontextmanager
async def replay_sqlite(world: World) -> AsyncIterator[Call]:
    """Yield a replay that is read from the database each time."""
    async with service(world, database_url=world.file("replay"), **NO_MEMORY) as llm:
        yield await _repeated(llm, ServedFrom.REPLAY)


@asynccontextmanager
async def replay_postgres(world: World) -> AsyncIterator[Call]:
    """Yield the same from PostgreSQL."""
    async with world.database() as url, service(world, database_url=url, **NO_MEMORY) as llm:
        yield await _repeated(llm, ServedFrom.REPLAY)


@asynccontextmanager
async def replay_memory(world: World) -> AsyncIterator[Call]:
    """Yield a replay as it is by default: out of this process's memory once it was read."""
    async with service(world, database_url=world.file("replay_memory")) as llm:
        yield await _repeated(llm, ServedFrom.REPLAY)


@asynccontextmanager
async def hit_sqlite(world: World) -> AsyncIterator[Call]:
    """Yield a hit that is read from the database each time, and leaves a row of its own."""
    async with service(world, database_url=world.file("hit"), cache_enabled=True, **NO_MEMORY) as llm:
        yield await _repeated(llm, ServedFrom.CACHE)


@asynccontextmanager
async def hit_postgres(world: World) -> AsyncIterator[Call]:
    """Yield the same from PostgreSQL."""
    async with (
        world.database() as url,
        service(world, database_url=url, cache_enabled=True, **NO_MEMORY) as llm,
    ):
        yield await _repeated(llm, ServedFrom.CACHE)


@asynccontextmanager
async def hit_memory(world: World) -> AsyncIterator[Call]:
    """Yield a hit as it is by default."""
    async with service(world, database_url=world.file("hit_memory"), cache_enabled=True) as llm:
        yield await _repeated(llm, ServedFrom.CACHE)


def _fresh(llm: LLMService, size: int) -> Call:
    async def call(number: int) -> None:
        answer = await llm.chat(request(number, size=size))
        _check(answer)
        if not answer.persisted:
            raise RuntimeError("the run is in the spool, not in the database")

    return call


async def _repeated(llm: LLMService, wanted: ServedFrom) -> Call:
    """Return a call that repeats one of a few answers, which are had here; its request is made anew, as a caller's is."""
    keyed = wanted is ServedFrom.REPLAY
    for number in range(KNOWN):
        await llm.chat(request(number, key=keyed))
    await llm.drain()

    async def call(number: int) -> None:
        _check(await llm.chat(request(number % KNOWN, key=keyed)), wanted)

    return call


def _check(answer: LLMResponse, wanted: ServedFrom = ServedFrom.LIVE) -> None:
    if answer.served_from is not wanted or not answer.text:
        raise RuntimeError(f"served from {answer.served_from}, not {wanted}: {answer.text[:80]!r}")

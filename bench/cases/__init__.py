"""Every case by its name: which process hosts it, and how it is opened."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from bench.cases import agents, bare, litellm, ours
from bench.measure import Call
from bench.world import World

Open = Callable[[World], AbstractAsyncContextManager[Call]]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to call again and again."""

    home: str
    """Process that hosts it: competitors never share one with us, nor a Router with anybody, because each Router adds
    callbacks that every later call of its process pays for."""
    title: str
    open: Open
    in_flight: tuple[int, ...] = (1, 16, 64, 256)
    """Where `make bench` measures it."""


ONE = (1,)

CASES: Mapping[str, Case] = {
    "raw": Case("bare", "raw aiohttp", bare.raw),
    "raw_16k": Case("bare", "raw aiohttp, prompt of 16 KB", partial(bare.raw, size=16 * 1024), ONE),
    "raw_256k": Case("bare", "raw aiohttp, prompt of 256 KB", partial(bare.raw, size=256 * 1024), ONE),
    "floor": Case("bare", "raw aiohttp + raw SQLite ledger", bare.floor),
    "acompletion": Case("acompletion", "litellm.acompletion", litellm.acompletion),
    "router": Case("router", "litellm.Router, two deployments", litellm.router),
    "router_of_one_model": Case(
        "router_of_one_model", "litellm.Router, one model twice", litellm.router_of_one_model
    ),
    "router_failover": Case(
        "router_failover", "litellm.Router, failing over once", litellm.router_failing_over
    ),
    "gemini_acompletion": Case("acompletion", "litellm.acompletion, Gemini", litellm.gemini),
    "unpersisted": Case("ours", "ours, unpersisted", ours.unpersisted),
    "gemini": Case("ours", "ours, unpersisted, Gemini", ours.gemini),
    "sqlite": Case("ours", "ours, SQLite FULL", ours.sqlite),
    "sqlite_16k": Case(
        "ours", "ours, SQLite, prompt of 16 KB", partial(ours.sqlite, name="sqlite_16k", size=16 * 1024), ONE
    ),
    "sqlite_256k": Case(
        "ours",
        "ours, SQLite, prompt of 256 KB",
        partial(ours.sqlite, name="sqlite_256k", size=256 * 1024),
        ONE,
    ),
    "postgres": Case("ours", "ours, PostgreSQL", ours.postgres),
    "failover": Case("ours", "ours, failing over once, SQLite", ours.failing_over),
    "replay_sqlite": Case("ours", "replay from SQLite", ours.replay_sqlite, (1, 64)),
    "hit_sqlite": Case("ours", "hit from SQLite", ours.hit_sqlite, (1, 64)),
    "replay_postgres": Case("ours", "replay from PostgreSQL", ours.replay_postgres, (1, 64)),
    "hit_postgres": Case("ours", "hit from PostgreSQL", ours.hit_postgres, (1, 64)),
    "replay_memory": Case("ours", "replay from memory", ours.replay_memory, (1, 64)),
    "hit_memory": Case("ours", "hit from memory", ours.hit_memory, (1, 64)),
    "agent": Case("agents", "PydanticAI agent on ours, SQLite FULL", agents.on_ours, (1, 64)),
    "agent_function": Case("agents", "the same agent on FunctionModel", agents.on_function_model, (1, 64)),
}

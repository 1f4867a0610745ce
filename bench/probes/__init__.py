"""Every measurement that is no call under load: each returns named figures."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.probes import compute, fresh, growth, pruning, reports, soak, stages, steps, streams
from bench.world import World

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement; it has a process of its own."""

    title: str
    run: Callable[[World], Awaitable[Figures]]
    timeout_s: float = 120.0
    loads_litellm: bool = False
    """Whether its process loads LiteLLM (3 s) while the cases are opened, and waits for its turn."""


PROBES: Mapping[str, Probe] = {
    "route": Probe("route decision for 10 candidates", compute.route),
    "fingerprint": Probe("fingerprint of 1 KB to 4 MB", compute.fingerprint),
    "imports": Probe("imports in fresh interpreters", fresh.imports),
    "fresh_process": Probe("replay and hit in a fresh process", fresh.answers),
    "streams": Probe("streams beside raw aiohttp", streams.streams, loads_litellm=True),
    "stages": Probe("1,000 stages in flight", stages.on_sqlite, loads_litellm=True),
    "stages_postgres": Probe("the same on PostgreSQL", stages.on_postgres, loads_litellm=True),
    "prune": Probe("prune beside a writer", partial(pruning.on_sqlite, rows=20_000)),
    "prune_postgres": Probe("the same on PostgreSQL", partial(pruning.on_postgres, rows=20_000)),
    "prune_million": Probe("prune a million rows", partial(pruning.on_sqlite, rows=1_000_000), 3600.0),
    "report_million": Probe(
        "a year's report over a million runs", partial(reports.on_sqlite, rows=1_000_000), 1200.0
    ),
    "report_million_postgres": Probe(
        "the same on PostgreSQL", partial(reports.on_postgres, rows=1_000_000), 1200.0
    ),
    "growth": Probe("claim and finish as the tables grow", growth.on_sqlite, 1200.0),
    "growth_postgres": Probe("the same on PostgreSQL", growth.on_postgres, 1200.0),
    "soak": Probe("100,000 calls", soak.soak, 1800.0),
    "steps": Probe("the steps of a call, one by one", steps.steps),
}

"""How many processes, and which PostgreSQL, so many calls per second need: arithmetic on what was measured."""

import math
from collections.abc import Mapping
from typing import Any

from bench.figures import NotMeasured, cpu, sound
from bench.tables import best_of, markdown, number

RATES = (1_000, 10_000, 100_000)
"""Calls per second."""
BUSY = 0.6
"""Share of a core that is planned with; the rest is for peaks, checkpoints and vacuum."""
IN_FLIGHT = 64
_DAY_S = 86_400


def sizing_table(document: Mapping[str, Any]) -> str:
    """Return the table, with the arithmetic above it."""
    rounds = document["rounds"]
    try:
        client_ms = cpu("postgres", IN_FLIGHT).of(rounds)
        server_ms = best_of(sound(rounds, f"postgres@{IN_FLIGHT}"))["server_cpu_ms"]
    except NotMeasured as missing:
        return f"Not measured in this run: {missing}"
    if server_ms is None:
        return (
            "The CPU of a PostgreSQL elsewhere cannot be read from here: run without LLM_BENCH_DATABASE_URL."
        )
    stored = _bytes_per_run(rounds)
    rows = [_row(calls_per_s, client_ms, server_ms, stored) for calls_per_s in RATES]
    return "\n\n".join(
        [
            f"Measured at {IN_FLIGHT} in flight, persisted on PostgreSQL: {number(client_ms)} ms of CPU per call in the "
            f"client's process, {number(server_ms)} ms in the server's. A Python process uses one core; a core is "
            f"planned {BUSY:.0%} busy. So processes = calls/s x {number(client_ms)} ms / {BUSY:g}, server cores = calls/s "
            f"x {number(server_ms)} ms / {BUSY:g}, both rounded up"
            + (f"; {stored:,.0f} bytes a run, indexes included, as in the filled tables." if stored else "."),
            markdown(
                (
                    "calls/s",
                    "processes (cores)",
                    "PostgreSQL cores",
                    "commits/s, two a call unbatched",
                    "runs a day",
                    "stored a day",
                ),
                rows,
            ),
        ]
    )


def _row(calls_per_s: int, client_ms: float, server_ms: float, stored: float | None) -> tuple[str, ...]:
    runs = calls_per_s * _DAY_S
    return (
        f"{calls_per_s:,}",
        f"{math.ceil(calls_per_s * client_ms / 1000 / BUSY):,}",
        f"{math.ceil(calls_per_s * server_ms / 1000 / BUSY):,}",
        f"{2 * calls_per_s:,}",
        f"{runs / 1e6:,.0f} million",
        f"{runs * stored / 1e9:,.0f} GB" if stored else "-",
    )


def _bytes_per_run(rounds: Mapping[str, Any]) -> float | None:
    try:
        return float(sound(rounds, "growth_postgres")[0]["bytes_per_run"])
    except NotMeasured:
        return None

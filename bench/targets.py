"""The targets: each a name, what it is computed from, and a limit. What a quick run measures follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.figures import Figure, NotMeasured, Rounds, cpu, probed, rate, spread, stall

Verdict = Literal["PASS", "FAIL", "ERROR"]


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about one figure."""

    name: str
    figure: Figure
    limit: float
    at_least: bool = False
    """Whether more is better."""
    unit: str = "x"
    full: bool = False
    """Whether only the full run measures it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a target."""

    target: Target
    verdict: Verdict
    measured: float | None
    why: str = ""
    """Of an error: what was not measured, and why."""

    def as_row(self) -> Mapping[str, Any]:
        """Return it as it is kept."""
        return {
            "verdict": self.verdict,
            "name": self.target.name,
            "measured": self.measured,
            "limit": self.target.limit,
            "at_least": self.target.at_least,
            "unit": self.target.unit,
            "why": self.why,
        }


def judge(target: Target, rounds: Rounds) -> Outcome:
    """Return whether the figure keeps the limit."""
    try:
        measured = target.figure.of(rounds)
    except (NotMeasured, KeyError, ZeroDivisionError) as missing:
        return Outcome(target, "ERROR", None, f"{missing}")
    kept = measured >= target.limit if target.at_least else measured <= target.limit
    return Outcome(target, "PASS" if kept else "FAIL", measured)


RAW = cpu("raw", 1)
"""CPU of one raw round trip."""

TARGETS: tuple[Target, ...] = (
    Target("persisted, SQLite: CPU x acompletion at 1", cpu("sqlite", 1) / cpu("acompletion", 1), 0.30),
    Target("persisted, SQLite: CPU x acompletion at 64", cpu("sqlite", 64) / cpu("acompletion", 64), 0.12),
    Target("persisted, SQLite: CPU x (aiohttp + raw ledger) at 1", cpu("sqlite", 1) / cpu("floor", 1), 1.8),
    Target("persisted, SQLite: CPU x (aiohttp + raw ledger) at 64", cpu("sqlite", 64) / cpu("floor", 64), 1.8),
    Target("persisted, SQLite: CPU x Router at 1", cpu("sqlite", 1) / cpu("router", 1), 0.13),
    Target("persisted, SQLite: CPU x Router at 64", cpu("sqlite", 64) / cpu("router", 64), 0.05),
    Target(
        "persisted, SQLite: calls/s x acompletion at 64",
        rate("sqlite", 64) / rate("acompletion", 64), 9.0, at_least=True,
    ),
    Target(
        "persisted, SQLite: calls/s x acompletion at 256",
        rate("sqlite", 256) / rate("acompletion", 256), 7.0, at_least=True,
    ),
    Target("persisted, PostgreSQL: CPU x acompletion at 1", cpu("postgres", 1) / cpu("acompletion", 1), 0.25),
    Target("persisted, PostgreSQL: CPU x acompletion at 64", cpu("postgres", 64) / cpu("acompletion", 64), 0.12),
    Target(
        "persisted, PostgreSQL: calls/s x acompletion at 64",
        rate("postgres", 64) / rate("acompletion", 64), 8.0, at_least=True,
    ),
    Target("unpersisted: CPU x acompletion at 1", cpu("unpersisted", 1) / cpu("acompletion", 1), 0.09),
    Target("unpersisted: CPU x acompletion at 64", cpu("unpersisted", 64) / cpu("acompletion", 64), 0.08),
    Target("unpersisted, Gemini: CPU x its acompletion at 1", cpu("gemini", 1) / cpu("gemini_acompletion", 1), 0.25),
    Target("unpersisted, Gemini: CPU x its acompletion at 64", cpu("gemini", 64) / cpu("gemini_acompletion", 64), 0.25),
    Target("replay from SQLite: CPU x a raw round trip", cpu("replay_sqlite", 1) / RAW, 0.35),
    Target("hit from SQLite: CPU x a raw round trip", cpu("hit_sqlite", 1) / RAW, 0.50),
    Target("replay from PostgreSQL: CPU x a raw round trip", cpu("replay_postgres", 1) / RAW, 1.0),
    Target("hit from PostgreSQL: CPU x a raw round trip", cpu("hit_postgres", 1) / RAW, 1.0),
    Target("replay from memory: CPU x a raw round trip", cpu("replay_memory", 1) / RAW, 0.15),
    Target("hit from memory: CPU x a raw round trip", cpu("hit_memory", 1) / RAW, 0.15),
    Target("failing over once: CPU x acompletion at 1", cpu("failover", 1) / cpu("acompletion", 1), 0.40),
    Target("failing over once: CPU x acompletion at 64", cpu("failover", 64) / cpu("acompletion", 64), 0.18),
    Target("failing over once: CPU x a Router failing over, at 1", cpu("failover", 1) / cpu("router_failover", 1), 0.08),
    Target("failing over once: CPU x a Router failing over, at 64", cpu("failover", 64) / cpu("router_failover", 64), 0.08),
    Target("route for 10 candidates, remembered: CPU x a raw round trip", probed("route", "route_us") / (RAW * 1000.0), 0.2),
    Target("route for 10 candidates, made anew: CPU x a raw round trip", probed("route", "anew_us") / (RAW * 1000.0), 0.2),
    Target(
        "fingerprint of 16 KB x (orjson sorted + SHA-256)",
        probed("fingerprint", "ours_16k_us") / probed("fingerprint", "floor_16k_us"), 3.0,
    ),
    Target(
        "fingerprint of 4 MB: CPU off the loop x hashing it",
        probed("fingerprint", "off_loop_4m_us") / probed("fingerprint", "ours_4m_us"), 0.8, at_least=True,
    ),
    Target(
        "import app.llm: wall x import pydantic_settings",
        probed("imports", "llm_s") / probed("imports", "reference_s"), 2.0,
    ),
    Target("import app.llm: RSS", probed("imports", "llm_rss_mb"), 45.0, unit="MB"),
    Target("import app.llm: of aiohttp, SQLAlchemy, asyncpg, litellm", probed("imports", "llm_heavy"), 0.0, unit="loaded"),
    Target(
        "stream, unpersisted: wait for the first chunk x a raw round trip",
        probed("streams", "unpersisted_first_ms") / probed("streams", "raw_round_trip_ms"), 2.0,
    ),
    Target(
        "stream, SQLite: wait for the first chunk x (aiohttp + raw ledger)",
        probed("streams", "sqlite_first_ms") / probed("streams", "floor_round_trip_ms"), 2.0,
    ),
    Target(
        "stream, unpersisted: CPU per chunk x raw aiohttp and orjson",
        probed("streams", "unpersisted_chunk_us") / probed("streams", "raw_chunk_us"), 3.0,
    ),
    Target("1,000 stages in flight, SQLite: RSS at its most", probed("stages", "most_mb"), 300.0, unit="MB"),
    Target("1,000 stages in flight, PostgreSQL: RSS at its most", probed("stages_postgres", "most_mb"), 300.0, unit="MB"),
    Target("longest loop stall at 64, SQLite", stall("sqlite", 64), 50.0, unit="ms"),
    Target("longest loop stall at 64, PostgreSQL", stall("postgres", 64), 50.0, unit="ms"),
    Target("p99 over p50 at 64, SQLite", spread("sqlite", 64), 5.0),
    Target("p99 over p50 at 64, PostgreSQL", spread("postgres", 64), 5.0),
    Target("p99 over p50 at 256, SQLite", spread("sqlite", 256), 5.0),
    Target("p99 over p50 at 256, PostgreSQL", spread("postgres", 256), 5.0),
    Target(
        "agent, persisted: CPU x (FunctionModel + our persisted call)",
        cpu("agent", 1) / (cpu("agent_function", 1) + cpu("sqlite", 1)), 1.1,
    ),
    Target(
        "claim + finish at 1e6 rows x at 1e3, median",
        probed("growth", "median_1000000_us") / probed("growth", "median_1000_us"), 1.2, full=True,
    ),
    Target(
        "claim + finish at 1e6 rows x at 1e3, mean",
        probed("growth", "mean_1000000_us") / probed("growth", "mean_1000_us"), 1.8, full=True,
    ),
    Target(
        "claim + finish at 1e6 rows x at 1e3, PostgreSQL, median",
        probed("growth_postgres", "median_1000000_us") / probed("growth_postgres", "median_1000_us"), 1.2, full=True,
    ),
    Target(
        "claim + finish at 1e6 rows x at 1e3, PostgreSQL, mean",
        probed("growth_postgres", "mean_1000000_us") / probed("growth_postgres", "mean_1000_us"), 1.8, full=True,
    ),
    Target("prune a million runs: a writer's longest wait", probed("prune_million", "worst_write_s"), 0.25, unit="s", full=True),
    Target("prune a million runs: memory at its most x at first", probed("prune_million", "rss_growth"), 1.05, full=True),
    *(
        Target(f"a year's report over a million runs: by {by}{where}", probed(probe, f"report_by_{by}_s"), 1.0, unit="s", full=True)
        for probe, where in (("report_million", ""), ("report_million_postgres", ", PostgreSQL"))
        for by in ("day", "model")
    ),
    Target("soak of 100,000 calls: RSS swing", probed("soak", "rss_swing"), 0.05, unit="+-", full=True),
    Target("soak of 100,000 calls: errors", probed("soak", "errors"), 0.0, unit="calls", full=True),
    Target("soak of 100,000 calls: rows that are missing or too many", probed("soak", "rows_off"), 0.0, unit="rows", full=True),
)  # fmt: skip

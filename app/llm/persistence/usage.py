"""What reports count: the measures of runs, how they add up, and latencies as a histogram. Pure.

Percentiles cannot be added up, so each group keeps how many latencies fell between bounds that grow by 9 %; what is
read from such a histogram is off by `LATENCY_ERROR` at most.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Self

from app.llm.persistence.models import ABANDONED, CANCELLED, FAILED, SUCCEEDED
from app.llm.ports import TOOL
from app.llm.pricing import FREE

GROUP = ("workspace_id", "stage", "provider", "model")
"""What the runs of one row of a day have in common."""
COUNTS = (
    *("runs", "failed", "cancelled", "abandoned", "hits", "replays", "input_tokens", "output_tokens"),
    *("unknown_tokens", "unknown_cost", "saved_input_tokens", "saved_output_tokens", "unknown_saved"),
)
SUMS_USD = ("cost_usd", "saved_cost_usd")

MOST_TOKENS = 2**31
"""Of one run; no provider's count is larger, and sums of such counts fit."""
STEPS = 8
"""Parts of a doubling: each bound is 9 % above the one before."""
LATENCY_ERROR = 2 ** (1 / (2 * STEPS)) - 1
"""Of a percentile, at most: 4.4 %, for latencies from a millisecond to an hour."""
BOUNDS_MS = tuple(2 ** (step / STEPS) for step in range(22 * STEPS))
"""Lower bounds of the buckets from 1 on; whatever is faster than the first is in bucket 0."""

Key = tuple[str, ...]


@dataclass(slots=True)
class Measures:
    """What some runs were, took and cost."""

    counts: Counter[str] = field(default_factory=Counter)
    """By `COUNTS`."""
    cost_usd: Decimal = FREE
    saved_cost_usd: Decimal = FREE
    latencies: Counter[int] = field(default_factory=Counter)
    """How many runs that a provider answered took how long, by bucket."""

    @classmethod
    def of_run(cls, run: Mapping[str, Any]) -> Self:
        """Return those of one ended run; the statement of the roll-up says the same in SQL."""
        status, is_tool, is_hit = run["status"], run["provider"] == TOOL, run["source_run_id"] is not None
        of_answer = "saved_" if is_hit else ""
        served = run["replayed_count"] + is_hit
        read, written = _tokens(run["input_tokens"]), _tokens(run["output_tokens"])
        unknown = None in (read, written) and (status == SUCCEEDED or bool(run["possibly_paid"]))
        answer_usd = run[f"{of_answer}cost_usd"]
        counts: Counter[str] = Counter(
            runs=1,
            failed=status == FAILED,
            cancelled=status == CANCELLED,
            abandoned=status == ABANDONED,
            hits=is_hit,
            replays=run["replayed_count"],
            input_tokens=read or 0,
            output_tokens=written or 0,
            unknown_tokens=unknown and not is_tool,
            unknown_cost=run["cost_usd"] is None and not is_tool,
            saved_input_tokens=(_tokens(run[f"{of_answer}input_tokens"]) or 0) * served,
            saved_output_tokens=(_tokens(run[f"{of_answer}output_tokens"]) or 0) * served,
            unknown_saved=served if answer_usd is None and not is_tool else 0,
        )
        timed = status == SUCCEEDED and not is_hit and run["latency_ms"] is not None
        return cls(
            counts,
            cost_usd=run["cost_usd"] or FREE,
            saved_cost_usd=(answer_usd or FREE) * served,
            latencies=Counter({bucket_of(run["latency_ms"]): 1} if timed else {}),
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Return those of a row of the roll-up, or of several that were added up."""
        return cls(
            Counter({name: int(row[name] or 0) for name in COUNTS}),
            cost_usd=row["cost_usd"] or FREE,
            saved_cost_usd=row["saved_cost_usd"] or FREE,
            latencies=read_latencies(row["latencies"] or ""),
        )

    def add(self, other: "Measures") -> None:
        """Count what another counts as well."""
        self.counts.update(other.counts)
        self.cost_usd += other.cost_usd
        self.saved_cost_usd += other.saved_cost_usd
        self.latencies.update(other.latencies)

    def row(self) -> dict[str, Any]:
        """Return them as the columns of the roll-up."""
        return {
            **{name: int(self.counts[name]) for name in COUNTS},
            "cost_usd": self.cost_usd,
            "saved_cost_usd": self.saved_cost_usd,
            "latencies": written_latencies(self.latencies),
        }

    def percentile_ms(self, share: float) -> float | None:
        """Return the latency that `share` of the runs stayed within; None without any."""
        total, seen = self.latencies.total(), 0
        for bucket, count in sorted(self.latencies.items()):
            seen += count
            if seen >= share * total:
                return middle_ms(bucket)
        return None


def _tokens(count: int | None) -> int | None:
    return None if count is None or count > MOST_TOKENS else count


def bucket_of(latency_ms: float) -> int:
    """Return the number of a latency's bucket."""
    return bisect_right(BOUNDS_MS, latency_ms)


def middle_ms(bucket: int) -> float:
    """Return the geometric middle of a bucket; of the first and the last their only bound."""
    if not 0 < bucket < len(BOUNDS_MS):
        return BOUNDS_MS[0 if bucket == 0 else -1]
    return float((BOUNDS_MS[bucket - 1] * BOUNDS_MS[bucket]) ** 0.5)


def written_latencies(latencies: Mapping[int, int]) -> str:
    """Return a histogram as text; texts that are joined by a space are the text of their sum."""
    return " ".join(f"{bucket}:{count}" for bucket, count in sorted(latencies.items()))


def read_latencies(text: str) -> Counter[int]:
    """Return the histogram of such a text."""
    found: Counter[int] = Counter()
    for pair in text.split():
        bucket, _, count = pair.partition(":")
        found[int(bucket)] += int(count)
    return found


def grouped(runs: Iterable[Mapping[str, Any]]) -> dict[Key, Measures]:
    """Return the measures of runs by day and `GROUP`; each run has its `day`."""
    found: dict[Key, Measures] = {}
    for run in runs:
        key = (str(run["day"]), *(run[name] or "" for name in GROUP))
        found.setdefault(key, Measures()).add(Measures.of_run(run))
    return found

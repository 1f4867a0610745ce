"""Every metric by its name: the only file that spells them, so that dashboards never chase a rename."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

CALLS = "llm_calls_total"
ATTEMPTS = "llm_attempts_total"
RETRIES = "llm_retries_total"
FALLBACKS = "llm_fallbacks_total"
SERVED = "llm_served_total"
TAKEOVERS = "llm_takeovers_total"
TOKENS = "llm_tokens_total"
PROMPT_CACHE_TOKENS = "llm_prompt_cache_tokens_total"
COST_USD = "llm_cost_usd_total"
COST_UNKNOWN = "llm_cost_unknown_total"
CALL_DURATION_S = "llm_call_duration_seconds"
ATTEMPT_DURATION_S = "llm_attempt_duration_seconds"
QUEUE_WAIT_S = "llm_queue_wait_seconds"
IN_FLIGHT = "llm_in_flight"
QUEUE_DEPTH = "llm_queue_depth"
SLOTS = "llm_slots"
BREAKER_OPEN = "llm_breaker_open"
SPOOLED = "llm_spooled_answers"
BUDGET_WARNINGS = "llm_budget_warnings_total"
BUDGET_REFUSALS = "llm_budget_refusals_total"


class Kind(StrEnum):
    """What is done with the values of a metric: they are added up, counted by size, or read when they are asked for."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"
    WATCHED = "watched gauge"


class Metric(NamedTuple):
    """One metric: its kind, all labels that it can have, and what it says."""

    kind: Kind
    labels: tuple[str, ...]
    meaning: str


WHO = ("provider", "model")
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        CALLS: Metric(
            Kind.COUNTER,
            (*WHO, "profile", "status"),
            "Calls that ended, by status: SUCCEEDED, FAILED, CANCELLED, REFUSED.",
        ),
        SERVED: Metric(
            Kind.COUNTER, ("served_from",), "Answers by where they came from: live, replay, cache, cassette."
        ),
        CALL_DURATION_S: Metric(Kind.HISTOGRAM, (*WHO, "profile"), "Seconds from a call to its end."),
        IN_FLIGHT: Metric(Kind.GAUGE, (), "Calls that have not ended."),
        ATTEMPTS: Metric(
            Kind.COUNTER,
            (*WHO, "status", "error_code"),
            "Sends that ended, by status: SUCCEEDED, FAILED, CANCELLED.",
        ),
        ATTEMPT_DURATION_S: Metric(Kind.HISTOGRAM, WHO, "Seconds from a send to its end."),
        RETRIES: Metric(Kind.COUNTER, WHO, "Times that the same candidate was asked again."),
        FALLBACKS: Metric(
            Kind.COUNTER, WHO, "Times that another candidate was asked; the labels name the one that failed."
        ),
        TOKENS: Metric(Kind.COUNTER, (*WHO, "kind"), "Tokens that sends consumed, by kind: input, output."),
        PROMPT_CACHE_TOKENS: Metric(
            Kind.COUNTER,
            (*WHO, "kind"),
            "Input tokens, of those above, that providers read from caches of their own or wrote to them, by kind: "
            "read, written.",
        ),
        COST_USD: Metric(Kind.COUNTER, WHO, "Dollars that sends cost, where that is known."),
        COST_UNKNOWN: Metric(Kind.COUNTER, WHO, "Sends of which nobody knows what they cost."),
        TAKEOVERS: Metric(Kind.COUNTER, (), "Keys that were taken over from owners that died."),
        QUEUE_WAIT_S: Metric(
            Kind.HISTOGRAM, ("provider",), "Seconds that sends waited for their turn and a slot."
        ),
        QUEUE_DEPTH: Metric(Kind.WATCHED, ("provider",), "Sends that wait for their turn or a slot now."),
        SLOTS: Metric(
            Kind.WATCHED,
            ("provider",),
            "Slots of a provider now: sends that it is given at once, fewer after it had too much to do.",
        ),
        BREAKER_OPEN: Metric(
            Kind.WATCHED,
            WHO,
            "1 while a candidate is left alone, or only tried, after failures in a row; 0 once it works again.",
        ),
        BUDGET_WARNINGS: Metric(
            Kind.COUNTER,
            ("per", "measure"),
            "Budgets that reached their soft limit, by day or month, tokens or usd.",
        ),
        BUDGET_REFUSALS: Metric(
            Kind.COUNTER, ("per", "measure"), "Calls, and further sends of calls, that a budget refused."
        ),
        SPOOLED: Metric(Kind.WATCHED, (), "Outcomes in this process's spool, which wait for the database."),
    }
)
"""Every metric. The values of labels are few: candidates, our own words; never a workspace, a stage or an id."""

LEDGER_RUNS = "llm_ledger_runs_total"
LEDGER_HITS = "llm_ledger_hits_total"
LEDGER_REPLAYS = "llm_ledger_replays_total"
LEDGER_TOKENS = "llm_ledger_tokens_total"
LEDGER_COST_USD = "llm_ledger_cost_usd_total"
LEDGER_COST_UNKNOWN = "llm_ledger_cost_unknown_total"
LEDGER_SAVED_USD = "llm_ledger_saved_usd_total"
LEDGER_LIVE = "llm_ledger_live_runs"
LEDGER_SPOOL = "llm_ledger_spool_lines"

LEDGER_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        LEDGER_RUNS: Metric(
            Kind.COUNTER,
            (*WHO, "status"),
            "Runs that ended: SUCCEEDED, FAILED, CANCELLED, ABANDONED (taken over or released).",
        ),
        LEDGER_HITS: Metric(Kind.COUNTER, WHO, "Runs that the cache answered."),
        LEDGER_REPLAYS: Metric(Kind.COUNTER, WHO, "Times that answers were replayed."),
        LEDGER_TOKENS: Metric(Kind.COUNTER, (*WHO, "kind"), "Tokens, by kind: input, output."),
        LEDGER_COST_USD: Metric(Kind.COUNTER, WHO, "Dollars, where they are known."),
        LEDGER_COST_UNKNOWN: Metric(Kind.COUNTER, WHO, "Runs of which nobody knows what they cost."),
        LEDGER_SAVED_USD: Metric(Kind.COUNTER, WHO, "Dollars that hits and replays did not cost."),
        LEDGER_LIVE: Metric(
            Kind.GAUGE,
            ("lease",),
            "Runs that have not ended, by their lease: held, or over (its owner is dead).",
        ),
        LEDGER_SPOOL: Metric(
            Kind.GAUGE,
            ("state",),
            "Lines of spool files on this host: waiting for the database, or unplaced or refused, which need a human.",
        ),
    }
)
"""What `signalbox metrics` reads from the ledger at each scrape; runs of tools have the provider `tool`."""

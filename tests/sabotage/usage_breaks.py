"""Breaks of what is paid and counted: prices, the roll-up, what a prune keeps, the backfill."""

from tests.sabotage.patch import Break

PRICING, BASE = "app/llm/pricing.py", "app/db/base.py"
_HERE = "app/llm/persistence/"
STATEMENTS, ROLLUP, LEDGER = (f"{_HERE}{name}.py" for name in ("statements_usage", "rollup", "ledger"))
BACKFILL, RETENTION = (f"{_HERE}{name}.py" for name in ("backfill", "retention"))
PRICES, USAGE = "tests/unit/llm/test_pricing.py::test_", "tests/conformance/test_usage.py::test_"

USAGE_BREAKS = (
    Break(
        "unknown-price-is-zero",
        "costs",
        PRICING,
        "_NOTHING, _UNKNOWN = Price(LOCAL), Price(None)",
        "_NOTHING, _UNKNOWN = Price(LOCAL), Price(LOCAL)",
        (PRICES + "a_model_without_a_price_costs_nobody_knows_what",),
    ),
    Break(
        "cached-tokens-cost-as-much-as-others",
        "costs",
        PRICING,
        "_EXACT.fma(rates.cached.at(read), cached, micros)",
        "_EXACT.fma(rates.input.at(read), cached, micros)",
        (PRICES + "cached_tokens_are_part_of_the_input_and_have_their_own_price",),
    ),
    Break(
        "dollars-pass-through-a-float",
        "costs",
        BASE,
        "int(_EXACT.multiply(Decimal(dollars), _NANOS).to_integral_value())",
        "int(float(dollars) * 1e9)",
        (USAGE + "costs_are_exact_to_the_nano_in_rows_and_sums[sqlite]",),
    ),
    Break(
        "pruned-runs-are-forgotten",
        "costs",
        RETENTION,
        "yield from keep_usage(counted)",
        "yield from keep_usage(())",
        (USAGE + "what_is_pruned_stays_counted",),
    ),
    Break(
        "late-accounting-is-not-noted",
        "costs",
        LEDGER,
        'yield from note_changes([run["id"]])',
        "pass",
        (USAGE + "a_dead_run_is_counted_when_its_key_is_taken_over_and_again_when_its_owner_tells",),
    ),
    Break(
        "replays-of-old-answers-are-not-noted",
        "costs",
        LEDGER,
        "yield from note_changes(sorted(counts))",
        "pass",
        (USAGE + "replays_of_an_old_answer_are_counted",),
    ),
    Break(
        "older-count-is-written-over-a-newer-one",
        "costs",
        STATEMENTS,
        'usage_days.c.rolls == _bind("rolls", sa.BigInteger)',
        "sa.true()",
        (USAGE + "who_counted_earlier_does_not_write_over_who_counted_later",),
    ),
    Break(
        "change-after-the-count-is-taken-for-counted",
        "costs",
        ROLLUP,
        '"seen": state["seen"] or 0,',
        '"seen": (state["seen"] or 0) + 1,',
        (USAGE + "what_changes_between_counting_and_writing_is_counted_next_time",),
    ),
    Break(
        "run-that-ends-after-its-day-is-missed",
        "costs",
        STATEMENTS,
        "usage_days.c.live != sa.func.coalesce(_alive.c.live, _number(0))",
        "sa.false()",
        (USAGE + "a_run_that_ends_after_its_day_was_rolled_up_is_counted",),
    ),
    Break(
        "roll-up-goes-on-where-it-ended",
        "costs",
        ROLLUP,
        'return min(sure, date.fromisoformat(latest["day"]) + timedelta(days=1))',
        'return date.fromisoformat(latest["day"]) + timedelta(days=1)',
        (USAGE + "a_run_that_appears_within_an_hour_is_counted_on_its_day",),
    ),
    Break(
        "half-priced-run-gets-a-cost",
        "costs",
        BACKFILL,
        "if sent_unseen or not costs or None in costs:",
        "if sent_unseen or not costs:",
        (USAGE + "a_run_gets_its_cost_only_when_every_send_has_one",),
    ),
    Break(
        "dead-owners-run-gets-a-cost",
        "costs",
        BACKFILL,
        "if sent_unseen or not costs or None in costs:",
        "if not costs or None in costs:",
        (USAGE + "a_run_whose_owner_died_stays_unknown",),
    ),
    Break(
        "tools-are-counted-among-calls",
        "costs",
        STATEMENTS,
        "is_tool = _one_if(usage.c.provider == _text(TOOL))",
        "is_tool = _number(0)",
        (USAGE + "groups_add_up_to_the_whole_and_tools_are_apart",),
    ),
)

"""Breaks of budgets: what runs hold, what they count, and who goes on when a budget is used up."""

from tests.sabotage.patch import Break

BUDGETS, SENDS = "app/llm/budgets.py", "app/llm/sends.py"
_HERE = "app/llm/persistence/"
STATEMENTS, LEDGER, LINE, RUNS = (
    f"{_HERE}{name}.py" for name in ("statements_budgets", "ledger", "spool/line", "statements")
)
COUNTS, CALLS = "tests/conformance/test_budgets.py::test_", "tests/unit/llm/test_spending.py::test_"
BATCHES = "tests/unit/llm/persistence/executors/test_postgres.py::test_"
TOGETHER = "tests/unit/llm/test_budgets_and_rates.py::test_"

BUDGET_BREAKS = (
    Break(
        "reservation-is-taken-whether-it-fits-or-not",
        "budgets",
        STATEMENTS,
        '.where(_IS_ITS_COUNTER, _fits("tokens", sa.BigInteger), _fits("usd", Money))',
        ".where(_IS_ITS_COUNTER)",
        (COUNTS + "a_run_that_does_not_fit_is_refused_and_leaves_nothing",),
    ),
    Break(
        "dead-owners-reservation-is-held-for-ever",
        "budgets",
        LEDGER,
        'yield from budgets.abandoned(str(holder["id"]))',
        "pass",
        (COUNTS + "what_a_dead_owner_held_counts_and_its_late_word_corrects_it",),
    ),
    Break(
        "late-owner-is-counted-beside-its-estimate",
        "budgets",
        LEDGER,
        'yield from budgets.corrected(settlement.workspace_id, run["id"], charge)',
        'yield from budgets.settled(settlement.workspace_id, run["id"], charge)',
        (COUNTS + "what_a_dead_owner_held_counts_and_its_late_word_corrects_it",),
    ),
    Break(
        "send-without-figures-counts-nothing",
        "budgets",
        BUDGETS,
        "took = guess.tokens if paid else 0",
        "took = 0",
        (COUNTS + "a_send_that_may_have_been_paid_counts_as_estimated",),
    ),
    Break(
        "hit-keeps-its-reservation",
        "budgets",
        RUNS,
        '**dict.fromkeys(("flight_slot", "reserved_tokens", "reserved_cost_usd"), _NULL)',
        '"flight_slot": _NULL',
        (COUNTS + "a_replay_and_a_hit_hold_nothing",),
    ),
    Break(
        "dearer-fallback-takes-no-more",
        "budgets",
        SENDS,
        "await self.repo.note_send(self.run.run_id, len(self.attempts) + 1, more)",
        "await self.repo.note_send(self.run.run_id, len(self.attempts) + 1)",
        (CALLS + "a_fallback_that_does_not_fit_is_left_out_and_the_next_one_asked",),
    ),
    Break(
        "used-up-dollars-hold-free-candidates-back",
        "budgets",
        BUDGETS,
        "if budget.usd is None or needed.usd == FREE:",
        "if budget.usd is None:",
        (CALLS + "used_up_dollars_leave_the_candidates_that_cost_nothing",),
    ),
    Break(
        "spooled-answer-is-never-counted",
        "budgets",
        LINE,
        'if "charge" in body else None',
        'if "charge" in _HEAD else None',
        (COUNTS + "an_answer_that_waited_in_the_spool_counts_when_it_is_written",),
    ),
    Break(
        "used-up-budget-refuses-the-repetition-of-a-call-under-way",
        "budgets",
        "app/llm/spending.py",
        "if not await is_asked():",
        "if await is_asked() or True:",
        (TOGETHER + "a_repeated_call_waits_for_its_own_answer_though_the_budget_is_used_up",),
    ),
    Break(
        "failed-send-is-put-off-until-the-budget-begins-anew",
        "budgets",
        "app/llm/retry.py",
        "if SKIPPED in told.facts or isinstance(error, LLMBudgetExceeded) or",
        "if SKIPPED in told.facts or",
        (TOGETHER + "a_send_that_failed_is_not_put_off_until_the_budget_begins_anew",),
    ),
    Break(
        "counters-are-locked-as-they-come",
        "budgets",
        "app/llm/persistence/executors/postgres_batch.py",
        "if course.query.step.shares == least]",
        "if least is not None]",
        (BATCHES + "counters_of_several_workspaces_are_locked_in_one_order",),
    ),
)

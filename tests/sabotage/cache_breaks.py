"""Breaks of what is served without a send: hits, flights, and the answers that a process keeps at hand."""

from tests.sabotage.patch import Break

_HERE = "app/llm/persistence/"
AUTONOMOUS = _HERE + "autonomous.py"
LEDGER = _HERE + "ledger.py"
RECALL = _HERE + "recall.py"
STATEMENTS = _HERE + "statements.py"

CACHE = "tests/conformance/test_cache.py::test_"
GAPS = "tests/conformance/test_gaps.py::test_"
RECALLS = "tests/unit/llm/persistence/test_recall.py::test_"

CACHE_BREAKS = (
    Break(
        "cached-answer-of-any-workspace-is-found",
        "I13",
        STATEMENTS,
        'runs.c.workspace_id == _bind("workspace_id"), runs.c.prompt_sha256',
        '_bind("workspace_id").is_not(None),\n        runs.c.prompt_sha256',
        (CACHE + "an_answer_of_one_workspace_is_no_hit_in_another",),
    ),
    Break(
        "flight-of-any-workspace-is-joined",
        "I13",
        "app/llm/fingerprint.py",
        '_digest("flight", [workspace_id, prompt_sha256, candidate_sha256])',
        '_digest("flight", [prompt_sha256, candidate_sha256])',
        (CACHE + "flights_of_other_workspaces_prompts_and_candidates_do_not_meet",),
    ),
    Break(
        "process-cache-serves-any-workspace",
        "I13",
        _HERE + "memory.py",
        "return {name: answer for name, answer in found.items() if answer is not None}",
        "anybody = {where[1:]: kept[1] for where, kept in self._answers.items()}\n"
        "        return {name: anybody[prompt_sha256, name] for name in candidates"
        " if (prompt_sha256, name) in anybody}",
        (CACHE + "the_cache_of_one_workspace_is_closed_to_others",),
    ),
    Break(
        "hits-of-one-transaction-fail-together",
        "cache",
        _HERE + "behind.py",
        "if len(hits) == 1:",
        "if hits:",
        (RECALLS + "a_hit_that_cannot_be_written_takes_no_other_with_it",),
    ),
    Break(
        "claim-does-not-look-into-the-cache-again",
        "cache",
        LEDGER,
        "if answer is None and run.cache_candidates:",
        "if answer is not None and run.cache_candidates:",
        (CACHE + "a_claim_finds_the_cached_answer_and_becomes_its_hit_row",),
    ),
    Break(
        "flight-is-not-claimed",
        "cache",
        LEDGER,
        '"flight_slot": run.flight_slot',
        '"flight_slot": None',
        (CACHE + "a_second_flight_is_told_of_the_first",),
    ),
    Break(
        "landed-flight-keeps-its-slot",
        "cache",
        STATEMENTS,
        "flight_slot=_NULL, finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER ) .where",
        "finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER,\n    )\n    .where",
        (CACHE + "a_flight_that_failed_is_free",),
    ),
    Break(
        "bypassed-answer-is-a-hit",
        "cache",
        STATEMENTS,
        'runs.c.cache_mode != _literal("bypass")',
        "sa.true()",
        (CACHE + "an_answer_that_bypassed_the_cache_is_no_hit",),
    ),
    Break(
        "truncated-answer-is-a-hit",
        "cache",
        STATEMENTS,
        '[_literal("stop"), _literal("tool_calls")]',
        '[_literal("stop"), _literal("tool_calls"), _literal("length")]',
        (CACHE + "a_truncated_or_filtered_answer_is_no_hit",),
    ),
    Break(
        "stale-answer-is-a-hit",
        "cache",
        STATEMENTS,
        'runs.c.finished_at > db_now(_bind("minus_ttl_s", sa.Float))',
        '_bind("minus_ttl_s", sa.Float) < 0',
        (CACHE + "an_answer_older_than_the_time_to_live_is_no_hit",),
    ),
    Break(
        "hits-feed-hits-for-ever",
        "cache",
        STATEMENTS,
        "runs.c.source_run_id.is_(None)",
        "sa.true()",
        (CACHE + "a_hit_row_feeds_no_further_hits",),
    ),
    Break(
        "answer-of-another-model-is-a-hit",
        "cache",
        STATEMENTS,
        "runs.c.candidate_sha256 == candidate,",
        "candidate.is_not(None),",
        (GAPS + "an_answer_of_another_candidate_is_not_found",),
    ),
    Break(
        "memory-serves-any-tenants-key",
        "I13",
        RECALL,
        'return ("key", workspace_id, key)',
        'return ("key", "", key)',
        (
            RECALLS + "places_of_other_tenants_keys_prompts_and_candidates_do_not_meet",
            RECALLS + "another_tenant_with_the_same_key_gets_nothing_from_memory",
        ),
    ),
    Break(
        "memory-serves-another-request",
        "I15",
        AUTONOMOUS,
        "if known is not None and known.request_sha256 == request_sha256:",
        "if known is not None:",
        (RECALLS + "another_request_under_a_key_in_memory_is_a_conflict",),
    ),
    Break(
        "memory-serves-what-has-expired",
        "keys",
        RECALL,
        "FRESH_S if answer.left_s is None else min(FRESH_S, answer.left_s)",
        "FRESH_S",
        (RECALLS + "an_answer_that_expires_sooner_is_at_hand_until_then",),
    ),
    Break(
        "memory-never-asks-again",
        "I5",
        RECALL,
        "if self._now_s() >= kept.until_s:",
        "if self._now_s() < 0:",
        (RECALLS + "a_key_that_is_forced_elsewhere_gives_its_new_answer_when_the_look_up_is_old",),
    ),
    Break(
        "memory-keeps-what-was-forced",
        "I5",
        AUTONOMOUS,
        "self._recall.forget(of_key(run.workspace_id, run.idempotency_key))",
        "pass",
        (RECALLS + "a_key_that_is_forced_here_gives_its_new_answer_at_once",),
    ),
    Break(
        "memory-has-no-end",
        "cache",
        RECALL,
        "while self._bytes > self._max_bytes:",
        "while self._bytes < 0:",
        (RECALLS + "together_they_take_no_more_than_they_may_and_the_least_used_goes_first",),
    ),
    Break(
        "hit-behind-is-never-written",
        "cache",
        _HERE + "behind.py",
        "self._begin(self._write_hits(hits))",
        "hits.clear()",
        (RECALLS + "a_burst_of_hits_asks_the_database_once_and_leaves_a_row_each",),
    ),
)

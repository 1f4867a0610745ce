"""Breaks of what a call meets before its send: the breaker, the slots and their queue, the loading, a blank key."""

from tests.sabotage.patch import Break

_HERE = "app/llm/"
BREAKER, SENDS, LIMITS, CLIENT = (
    f"{_HERE}{name}.py" for name in ("breaker", "sends", "limits", "client_litellm")
)
_UNIT, _WIRE = "tests/unit/llm/", "tests/wire/"
CIRCUITS, SENDING, SLOTS, SETTINGS = (
    f"{_UNIT}test_{name}.py::test_" for name in ("breaker", "sends", "limits", "settings")
)
GATES, LOOPS = (f"{_WIRE}test_{name}.py::test_" for name in ("gates", "event_loop"))
LIMIT = "tests/unit/core/test_deadlines.py::test_"
TENANTS = "tests/security/test_tenants.py::test_"
BURST = GATES + "a_thousand_calls_at_once_at_a_dead_primary_are_no_sends_beyond_those_under_way"

GATE_BREAKS = (
    Break(
        "dead-provider-is-asked-by-every-call",
        "breaker",
        BREAKER,
        "if circuit.probe is permit or circuit.failures >= self._threshold:",
        "if circuit.probe is permit:",
        (CIRCUITS + "it_opens_after_three_consecutive_infrastructure_errors",),
    ),
    Break(
        "refusal-opens-the-circuit",
        "breaker",
        BREAKER,
        "else isinstance(error, LLMUnavailable | LLMTimeout)",
        "else error is not None",
        (CIRCUITS + "a_provider_that_refuses_is_alive",),
    ),
    Break(
        "every-caller-probes",
        "breaker",
        BREAKER,
        "circuit.probe = permit",
        "pass",
        (CIRCUITS + "after_the_window_one_probe_is_sent_and_its_answer_closes",),
    ),
    Break(
        "haste-of-a-caller-counts",
        "breaker",
        BREAKER,
        "return True if had_s >= self._patience_s else None",
        "return True",
        (CIRCUITS + "a_timeout_counts_from_half_the_time_that_the_settings_give_a_send",),
    ),
    Break(
        "breaker-knows-no-patience",
        "breaker",
        BREAKER,
        "patience_s=FAIR_SHARE * given_s",
        "patience_s=0 * given_s",
        (GATES + "the_haste_of_one_tenant_closes_no_provider_to_another",),
    ),
    Break(
        "old-send-frees-the-probe",
        "breaker",
        BREAKER,
        "if circuit is not None and circuit.probe is permit:",
        "if circuit is not None:",
        (CIRCUITS + "an_old_send_that_is_cancelled_does_not_let_a_second_probe_in",),
    ),
    Break(
        "late-failure-opens-again",
        "breaker",
        BREAKER,
        "if permit.era != circuit.era: return circuit.failures += 1",
        "circuit.failures += 1",
        (CIRCUITS + "failures_from_before_the_opening_do_not_open_again",),
    ),
    Break(
        "late-answer-starts-the-count-again",
        "breaker",
        BREAKER,
        "if circuit is None or permit.era != circuit.era:",
        "if circuit is None:",
        (CIRCUITS + "an_answer_from_before_the_opening_does_not_start_the_count_again",),
    ),
    Break(
        "open-circuit-is-not-asked-before-the-queue",
        "breaker",
        SENDS,
        "if not self.breaker.admits(candidate.name):",
        "if not candidate.name:",
        (SENDING + "who_finds_the_circuit_open_does_not_queue_for_a_slot",),
    ),
    Break(
        "open-circuit-is-not-asked-after-the-queue",
        "breaker",
        SENDS,
        "permit = self.breaker.begin(name)",
        "permit = self.breaker.begin(name) or Permit(name, 0)",
        (BURST,),
    ),
    Break(
        "refusal-is-lost-in-the-library",
        "breaker",
        "app/llm/wire/exchange.py",
        "self.failure = refusal",
        "pass",
        (GATES + "a_send_that_is_refused_with_its_slot_in_hand_does_not_happen",),
    ),
    Break(
        "waiting-call-takes-everybodys-slot",
        "slots",
        LIMITS,
        "await gate.slots.acquire() try: await self._total.acquire()",
        "await self._total.acquire()\n            try:\n                await gate.slots.acquire()",
        (SLOTS + "who_waits_for_a_busy_provider_takes_no_slot_from_the_others",),
        hangs_s=15,
    ),
    Break(
        "queue-has-no-end",
        "slots",
        LIMITS,
        "if self.slots.locked() and self.waiting >= limit:",
        "if self.slots.locked() and self.waiting < 0:",
        (SLOTS + "a_full_queue_refuses_and_names_who_holds_the_slots",),
        hangs_s=10,
    ),
    Break(
        "slots-are-not-bounded",
        "slots",
        CLIENT,
        "async with way.slot as waited_ms:",
        "if True:",
        (LOOPS + "the_provider_never_sees_more_calls_at_once_than_the_limit",),
    ),
    Break(
        "later-limit-waits-for-the-timer-of-the-first",
        "deadlines",
        "app/core/deadlines.py",
        "if self._timer is None or block.ends_at_s < self._timer.when():",
        "if self._timer is None:",
        (LIMIT + "a_limit_that_comes_later_may_be_reached_first_and_the_others_go_on",),
        hangs_s=10,
    ),
    Break(
        "cancellation-becomes-a-timeout",
        "deadlines",
        "app/core/deadlines.py",
        "if not others and kind is asyncio.CancelledError:",
        "if kind is asyncio.CancelledError:",
        (LIMIT + "cancelled_and_out_of_time_at_once_is_cancelled",),
    ),
    Break(
        "wait-without-a-slot-is-not-recorded",
        "slots",
        SENDS,
        "if isinstance(outcome, LLMTimeout | asyncio.CancelledError):",
        "if not send:",
        (GATES + "the_wait_of_a_call_that_never_got_a_slot_is_on_its_row",),
    ),
    Break(
        "full-queue-names-everybodys-runs",
        "I13",
        LIMITS,
        "if holder.workspace_id == workspace_id",
        "if holder.workspace_id",
        (TENANTS + "a_full_queue_names_the_own_runs_and_counts_those_of_others",),
    ),
    Break(
        "run-of-any-workspace-is-released",
        "I13",
        "app/llm/persistence/statements.py",
        'RELEASE_OWN = RELEASE.where(runs.c.workspace_id == _bind("workspace_id"))',
        'RELEASE_OWN = RELEASE.where(_bind("workspace_id").is_not(None))',
        (TENANTS + "a_run_of_another_workspace_cannot_be_released",),
    ),
    Break(
        "loading-outlasts-the-call",
        "slots",
        SENDS,
        "await self.client.warm_up(timeout_s=self.deadline.left_s())",
        "await self.client.warm_up()",
        (GATES + "a_call_ends_at_its_deadline_while_litellm_is_loading_and_the_next_one_finds_it_loaded",),
        hangs_s=15,
    ),
    Break(
        "blank-key-means-plain-text",
        "encryption",
        "app/llm/endpoints.py",
        "if value is not None and not items_of(value):",
        "if value == NO_KEY:",
        (SETTINGS + "a_payload_key_that_holds_none_is_refused_wherever_it_is_set",),
    ),
    Break(
        "empty-key-of-the-environment-means-plain-text",
        "encryption",
        "app/llm/settings.py",
        'refuse_empty("LLM_PAYLOAD_KEY", NO_KEY, settings=LLMSettings, env_file=env_file)',
        "pass",
        (SETTINGS + "a_payload_key_that_holds_none_is_refused_wherever_it_is_set",),
    ),
)

"""Breaks of what is told to traces, metrics and logs: nothing twice, nothing unasked, nothing without bounds."""

from tests.sabotage.patch import Break

TRACES, METRICS = "tests/wire/test_traces.py::test_", "tests/unit/llm/test_metrics.py::test_"

TELEMETRY_BREAKS = (
    Break(
        "tokens-of-agents-are-told-twice",
        "telemetry",
        "app/llm/tracing.py",
        "if not is_request(parent):",
        "if True:",
        (TRACES + "within_an_instrumented_agent_its_span_is_the_call_and_has_the_tokens",),
    ),
    Break(
        "texts-are-traced-unasked",
        "telemetry",
        "app/bootstrap.py",
        "redact=redactor if settings.trace_content else None",
        "redact=redactor",
        (TRACES + "prompts_and_answers_are_in_spans_only_on_demand_and_redacted",),
    ),
    Break(
        "row-does-not-know-its-trace",
        "telemetry",
        "app/llm/persistence/ledger.py",
        '"trace_id": run.trace_id',
        '"trace_id": None',
        (TRACES + "a_trace_that_is_not_sampled_has_no_spans_and_its_id_on_the_row[sqlite]",),
    ),
    Break(
        "caller-that-went-away-is-an-error",
        "telemetry",
        "app/llm/telemetry.py",
        '_FAULTS = frozenset({"FAILED", "REFUSED"})',
        '_FAULTS = frozenset({"FAILED", "REFUSED", "CANCELLED"})',
        (TRACES + "a_stream_that_its_listener_left_is_no_error[sqlite]",),
    ),
    Break(
        "every-model-has-series-of-its-own",
        "telemetry",
        "app/llm/metrics.py",
        "if len(self._models) >= self._most_models:",
        "if False:",
        (METRICS + "models_that_callers_pin_end_in_one_series",),
    ),
    Break(
        "gauges-outlive-their-service",
        "telemetry",
        "app/llm/metrics.py",
        "return lambda: self._readers[name].remove(read)",
        "return lambda: None",
        (METRICS + "queues_and_circuits_are_read_at_the_scrape_while_the_service_is_open",),
    ),
    Break(
        "who-waits-for-a-turn-is-in-no-queue",
        "telemetry",
        "app/llm/gauges.py",
        "waiting + in_line.get(provider, 0)",
        "waiting",
        (METRICS + "who_waits_for_a_turn_is_in_the_queue_too",),
    ),
    Break(
        "forced-execution-counts-as-a-takeover",
        "telemetry",
        "app/llm/persistence/ledger.py",
        'from_dead=state.how == "take_over"',
        "from_dead=True",
        ("tests/unit/llm/test_telemetry.py::test_an_answer_that_the_caller_wants_anew_is_no_takeover",),
    ),
    Break(
        "takeover-without-budgets-looks-at-them",
        "telemetry",
        "app/llm/persistence/ledger.py",
        'state.how in {"take_over", "release"} and holder["reserved_tokens"] is not None',
        'state.how in {"take_over", "release"}',
        (
            "tests/unit/llm/persistence/test_ledger.py::test_a_takeover_counts_what_the_dead_run_held_if_it_held_anything",
        ),
    ),
    Break(
        "ledger-is-served-to-everybody",
        "telemetry",
        "app/cli/metrics.py",
        '= "127.0.0.1"',
        '= "0.0.0.0"',
        ("tests/unit/cli/test_metrics.py::test_it_listens_on_loopback_unless_told_otherwise",),
    ),
    Break(
        "context-of-the-host-replaces-our-words",
        "telemetry",
        "app/llm/telemetry.py",
        "told.setdefault(field, self._of_host(value))",
        "told[field] = self._of_host(value)",
        (
            "tests/unit/core/test_logging.py::test_an_event_carries_what_the_host_bound_and_keeps_its_own_words",
        ),
    ),
)

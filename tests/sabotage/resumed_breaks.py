"""Breaks of what agents that go on under a key must neither be given again, nor lose, nor be refused for."""

from tests.sabotage.patch import Break

RECORDED, STEPS, CHECKING = (f"app/llm/pydanticai/{name}.py" for name in ("recorded", "steps", "checking"))
AGENTS, RESUMED = (f"tests/wire/test_{name}_agents.py::test_" for name in ("durable", "resumed"))

RESUMED_BREAKS = (
    Break(
        "refused-answer-is-given-to-the-next-model",
        "durable",
        STEPS,
        "return known if whose == (run.run_id, run.run_step) else 0",
        "return known if whose == (run.run_id, -1) else 0",
        (RESUMED + "an_answer_that_was_refused_is_not_given_again_to_the_next_model[sqlite-FallbackModel]",),
    ),
    Break(
        "sets-are-compared-in-the-order-of-a-process",
        "durable",
        RECORDED,
        "return sorted(written, key=json_bytes)",
        "return list(written)",
        (AGENTS + "sets_among_the_arguments_are_the_same_in_each_process[sqlite-set]",),
    ),
    Break(
        "writing-arguments-down-uses-them-up",
        "durable",
        RECORDED,
        "tool_args = _at_rest(tool_args)",
        "tool_args = dict(tool_args)",
        (AGENTS + "arguments_that_can_be_read_only_once_are_read_by_the_tool[sqlite]",),
    ),
    Break(
        "effect-that-waited-holds-its-key-for-its-callers-time",
        "I10",
        "app/llm/idempotency.py",
        "if isinstance(run.request, Effect):",
        "if run.run_id == run.request:",
        ("tests/unit/llm/test_idempotency.py::test_an_effect_that_had_to_wait_has_the_lease_of_any_other",),
    ),
    Break(
        "foreign-words-of-a-schema-end-the-call",
        "checked output",
        CHECKING,
        "except (re.error, UnknownType, Unresolvable):",
        "except ImportError:",
        (
            (
                "tests/unit/llm/pydanticai/test_checking.py::"
                "test_what_a_schema_says_in_foreign_words_is_left_to_pydantic_ai[pattern]"
            ),
        ),
    ),
)

"""Breaks of what a workflow asks for: scopes, many requests at once, the batch of the command line."""

from tests.sabotage.patch import Break

CONTEXT, STAGES = "app/llm/context.py", "app/llm/stages.py"
CONTEXTS, MAPPED = (f"tests/unit/llm/test_{name}.py::test_" for name in ("context", "stages"))

STAGE_BREAKS = (
    Break(
        "inner-scope-forgets-the-outer-one",
        "stages",
        CONTEXT,
        '_agreed({"scope": outer, "the scope inside it": said})',
        '_agreed({"the scope inside it": said})',
        (CONTEXTS + "an_inner_scope_adds_what_is_unsaid_and_may_name_another_stage",),
    ),
    Break(
        "inner-scope-leaves-its-tenant",
        "I13",
        CONTEXT,
        '_agreed({"scope": outer, "the scope inside it": said})',
        "{**outer, **said}",
        (CONTEXTS + "an_inner_scope_that_names_another_tenant_or_run_is_a_conflict",),
    ),
    Break(
        "inner-stage-is-a-conflict",
        "stages",
        CONTEXT,
        'if name != "stage" or stage is None',
        "if name",
        (CONTEXTS + "an_inner_scope_adds_what_is_unsaid_and_may_name_another_stage",),
    ),
    Break(
        "scope-outlives-its-block",
        "stages",
        CONTEXT,
        "_scope.reset(token)",
        "_scope.get()",
        (CONTEXTS + "a_scope_ends_when_its_block_fails",),
    ),
    Break(
        "answers-come-as-they-end",
        "stages",
        STAGES,
        "return [outcomes[number] for number in range(count)]",
        "return list(outcomes.values())[:count]",
        (MAPPED + "answers_stand_in_the_order_of_the_requests",),
    ),
    Break(
        "first-failure-is-returned-too",
        "stages",
        STAGES,
        'if on_error == "raise":',
        'if on_error == "raised":',
        (MAPPED + "the_first_failure_ends_what_is_under_way_and_takes_nothing_more",),
    ),
    Break(
        "one-request-too-many-is-taken",
        "stages",
        STAGES,
        "slots, number = asyncio.Semaphore(concurrency), 0",
        "slots, number = asyncio.Semaphore(concurrency + 1), 0",
        (
            MAPPED + "requests_are_taken_as_calls_end_and_no_further_ahead",
            MAPPED + "answers_stand_in_the_order_of_the_requests",
        ),
    ),
    Break(
        "failures-are-not-counted",
        "stages",
        STAGES,
        "failed += 1",
        "failed += 0",
        (MAPPED + "errors_are_returned_in_place_and_the_progress_is_told",),
    ),
    Break(
        "savepoints-of-one-session-mix",
        "stages",
        "app/llm/persistence/executor.py",
        "async with self._one_at_a_time, self._session.begin_nested():",
        "async with self._session.begin_nested():",
        (MAPPED + "a_map_in_a_unit_of_work_sends_at_once_and_writes_one_at_a_time",),
    ),
)

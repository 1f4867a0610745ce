"""Breaks of what makes agents durable: effects that are run once, and errors that say what differs."""

from tests.sabotage.patch import Break

EFFECTS, DIVERGENCE, RECORDED, STEPS, CONTEXT = (
    f"app/llm/{name}.py"
    for name in ("effects", "divergence", "pydanticai/recorded", "pydanticai/steps", "context")
)
ONCE, OWNED = (f"tests/unit/llm/test_{name}.py::test_" for name in ("effects", "effect_owners"))
AGENTS = "tests/wire/test_durable_agents.py::test_"
REFUSED, DERIVED = (f"tests/wire/test_durable_{name}.py::test_" for name in ("agents_refused", "agent_keys"))
KEPT = "tests/conformance/test_effects.py::test_"

DURABLE_BREAKS = (
    Break(
        "tool-runs-again-on-replay",
        "durable",
        EFFECTS,
        "result = await self._executed(run, work, undone) if kept is None else kept",
        "result = await self._executed(run, work, undone) if kept is None else json.dumps(await work())",
        (ONCE + "an_effect_is_run_once_by_whatever_process_and_returns_what_it_returned_then[sqlite]",),
    ),
    Break(
        "tool-runs-beside-the-ledger",
        "durable",
        RECORDED,
        "if step is None:",
        "if step is not None:",
        (AGENTS + "a_repeated_run_sends_nothing_runs_no_tool_and_says_the_same[sqlite-text]",),
    ),
    Break(
        "arguments-are-not-compared",
        "I15",
        "app/llm/fingerprint.py",
        'return _digest("effect", {"name": name, "arguments": _canonical(arguments, {})})',
        'return _digest("effect", {"name": name, "arguments": _canonical({}, {})})',
        (ONCE + "other_arguments_are_a_conflict_that_shows_both_and_where_they_differ[sqlite]",),
    ),
    Break(
        "names-of-effects-are-not-compared",
        "I15",
        "app/llm/fingerprint.py",
        'return _digest("effect", {"name": name, "arguments"',
        'return _digest("effect", {"name": "", "arguments"',
        (ONCE + "another_effect_or_a_call_never_gets_the_result_of_a_key",),
    ),
    Break(
        "abandoned-tool-is-rerun-despite-refuse",
        "I7",
        EFFECTS,
        "if isinstance(state, Conflict | Abandoned):",
        "if isinstance(state, Abandoned):\n            await self._repo.release(state.run_id, run.workspace_id)\n"
        "        if isinstance(state, Conflict):",
        (OWNED + "a_dead_owners_effect_is_run_again_or_left_to_a_person[sqlite]",),
    ),
    Break(
        "lease-of-a-long-tool-is-not-renewed",
        "I10",
        EFFECTS,
        "held = await self._repo.renew(run)",
        "held = bool(run)",
        (OWNED + "the_lease_is_renewed_while_the_work_goes_on[sqlite]",),
        hangs_s=20,
    ),
    Break(
        "fault-of-the-database-ends-the-renewing",
        "I10",
        EFFECTS,
        "error_message=str(fault)\n                )",
        "error_message=str(fault)\n                )\n                held = False",
        (OWNED + "the_lease_is_renewed_while_the_work_goes_on[sqlite]",),
        hangs_s=20,
    ),
    Break(
        "anybody-renews-a-lease",
        "I8",
        "app/llm/persistence/statements.py",
        '.values(lease_until=db_now(_bind("lease_s", sa.Float))).where(_IS_OURS, _IS_LIVE)',
        '.values(lease_until=db_now(_bind("lease_s", sa.Float))).where(_HAS_ID, _IS_LIVE)',
        (KEPT + "a_lease_is_moved_by_its_owner_while_the_run_is_started",),
    ),
    Break(
        "finished-run-is-leased-again",
        "I16",
        "app/llm/persistence/statements.py",
        '.values(lease_until=db_now(_bind("lease_s", sa.Float))).where(_IS_OURS, _IS_LIVE)',
        '.values(lease_until=db_now(_bind("lease_s", sa.Float))).where(_IS_OURS)',
        (KEPT + "a_lease_is_moved_by_its_owner_while_the_run_is_started",),
    ),
    Break(
        "late-owner-returns-its-own-result",
        "I5",
        EFFECTS,
        "return result if not finished.fenced else await self._of_successor(run, finished, result)",
        "return result if finished else await self._of_successor(run, finished, result)",
        (OWNED + "a_late_owner_returns_what_its_successor_returned[sqlite]",),
    ),
    Break(
        "result-waits-in-the-spool-unread",
        "I5",
        "app/llm/persistence/codec.py",
        "if data.startswith(_RESULT):",
        'if data.startswith(_RESULT) and row["route"] is None:',
        (ONCE + "a_result_that_the_database_did_not_take_is_replayed_from_the_spool[sqlite]",),
    ),
    Break(
        "workspace-is-told-of-anothers-request",
        "I13",
        "app/llm/persistence/statements.py",
        '.where(runs.c.workspace_id == _bind("workspace_id"), runs.c.id == _bind("id"))',
        '.where(sa.true() | (runs.c.workspace_id == _bind("workspace_id")), runs.c.id == _bind("id"))',
        (KEPT + "what_a_run_was_about_is_told_within_its_workspace_once_it_is_stored",),
    ),
    Break(
        "conflict-shows-secrets",
        "I17",
        DIVERGENCE,
        "text = redact(json.dumps(effect.arguments, ensure_ascii=False))",
        "text = json.dumps(effect.arguments, ensure_ascii=False)",
        (ONCE + "a_conflict_shows_no_secret_and_no_more_than_a_reader_takes_in",),
    ),
    Break(
        "failed-work-keeps-its-key",
        "I10",
        EFFECTS,
        "finished = await self._repo.mark_failed(run, self._failure(error, began_s))",
        "finished = Finished()",
        (ONCE + "what_raises_frees_the_key_and_is_recorded_without_secrets[sqlite]",),
    ),
    Break(
        "cancelled-work-frees-its-key",
        "I7",
        EFFECTS,
        "await self._repo.abandon(run)\n                raise\n            except Unrecordable",
        "await self._repo.mark_cancelled(run, self._failure(LLMCancelled('it is gone'), began_s))\n"
        "                raise\n            except Unrecordable",
        (OWNED + "work_that_is_cancelled_half_way_is_left_to_a_person_or_run_again[sqlite]",),
    ),
    Break(
        "work-whose-result-is-no-json-frees-its-key",
        "I7",
        EFFECTS,
        "raise Unrecordable(error.message) from None",
        "raise error from None",
        (ONCE + "work_whose_result_is_no_json_is_not_done_again_unasked[sqlite]",),
    ),
    Break(
        "retry-of-a-tool-is-not-recorded",
        "durable",
        RECORDED,
        "except ModelRetry as retry:",
        "except ModelRetry as retry:\n        if name:\n            raise",
        (AGENTS + "what_a_tool_tells_the_model_by_raising_is_a_result_too[sqlite-retry]",),
    ),
    Break(
        "tool-return-is-a-plain-value",
        "durable",
        RECORDED,
        "how = _RETURN if isinstance(returned, ToolReturn) else _VALUE",
        "how = _VALUE",
        (AGENTS + "a_tool_return_keeps_its_parts_apart",),
    ),
    Break(
        "nested-agents-share-their-keys",
        "durable",
        STEPS,
        'path = ">".join([agent, *(str(call) for _, call in _inside.get())])',
        'path = ">".join([agent, *(str(call) for _, call in _inside.get()[-1:])])',
        (DERIVED + "agents_within_tools_within_agents_have_keys_of_their_own",),
    ),
    Break(
        "tool-belongs-to-nobody",
        "I13",
        RECORDED,
        'context=context.model_copy(update={"idempotency_key": None}),',
        "context=LLMCallContext(workspace_id=context.workspace_id),",
        (DERIVED + "a_tool_belongs_to_whom_its_step_belongs_to",),
    ),
    Break(
        "stream-forgets-its-step",
        "durable",
        "app/llm/pydanticai/streams.py",
        "final = model_response(response, self._step)",
        "final = model_response(response)",
        (AGENTS + "calls_are_named_alike_by_every_provider_whole_and_streamed[sqlite-streamed-ollama]",),
    ),
    Break(
        "conflict-does-not-say-where",
        "durable",
        "app/llm/service.py",
        "if isinstance(error, LLMKeyConflict) and call is not None:",
        "if isinstance(error, LLMKeyConflict) and call is None:",
        (REFUSED + "a_dated_instruction_is_refused_with_its_place",),
    ),
)

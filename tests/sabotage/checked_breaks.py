"""Breaks of checked output: what is read from a text, what counts as the answer, and what may be served again."""

from tests.sabotage.patch import Break

READING, FAITHFUL, JUDGE, WANTED, MEANS = (
    f"app/llm/structured/{name}.py" for name in ("reading", "faithful", "judge", "wanted", "means")
)
_CHECKED = "tests/conformance/test_checked.py::test_"
_READ = "tests/unit/llm/structured/test_reading.py::test_"
_WANTED = "tests/unit/llm/structured/test_wanted.py::test_"
_ANY = "tests/property/test_reading.py::test_"

CHECKED_BREAKS = (
    Break(
        "repair-may-invent",
        "checked output",
        READING,
        "if not is_reading_of(value, text[:end]) or _LEFT_OVER.search(text[end:]):",
        "if _LEFT_OVER.search(text[end:]):",
        (_READ + "a_broken_answer_gives_the_value_that_it_says_or_none",),
    ),
    Break(
        "valid-json-is-repaired-too",
        "checked output",
        READING,
        "return strict_json(text)\n    except",
        'strict_json("")\n    except',
        (_ANY + "valid_json_is_never_changed",),
    ),
    Break(
        "inner-value-passes-for-the-answer",
        "checked output",
        READING,
        'return _Found([], "", first)',
        "at = opener.end()\n            continue",
        (_READ + "a_broken_answer_gives_the_value_that_it_says_or_none",),
    ),
    Break(
        "quote-may-end-anywhere",
        "checked output",
        FAITHFUL,
        "return end + 1 if text[end : end + 1] == _CLOSING[quote] else None",
        "return end + 1",
        (_READ + "a_broken_answer_gives_the_value_that_it_says_or_none",),
    ),
    Break(
        "backslash-of-an-escape-stands-for-itself",
        "checked output",
        FAITHFUL,
        'if not text.startswith(char, at) or (char == "\\\\" and text[at + 1 : at + 2] in _ESCAPING):',
        "if not text.startswith(char, at):",
        (_ANY + "a_broken_notation_gives_the_value_or_nothing",),
    ),
    Break(
        "truncated-answer-is-accepted",
        "checked output",
        JUDGE,
        "return CUT_OFF if said.finish_reason is FinishReason.LENGTH else check.objection(said)",
        "return check.objection(said)",
        (_CHECKED + "a_truncated_answer_is_never_accepted_however_valid_it_looks",),
    ),
    Break(
        "filtered-answer-is-judged-by-its-text",
        "checked output",
        JUDGE,
        "if reply.finish_reason is FinishReason.CONTENT_FILTER:",
        "if reply.finish_reason is None:",
        ("tests/unit/llm/structured/test_judge.py::test_a_filtered_reply_is_what_it_is_everywhere_else",),
    ),
    Break(
        "second-question-lacks-the-faults",
        "checked output",
        JUDGE,
        "self._turns += tuple(objection.turns)",
        "self._turns += ()",
        (_CHECKED + "an_invalid_answer_is_asked_again_with_its_faults",),
    ),
    Break(
        "next-candidate-is-asked-the-last-ones-question",
        "checked output",
        JUDGE,
        "self._asked, self._questions, self._turns = candidate.name, 0, ()",
        "self._asked, self._questions = candidate.name, 0",
        (_CHECKED + "after_all_tries_the_next_candidate_is_asked_the_original_question",),
    ),
    Break(
        "tries-are-not-counted",
        "checked output",
        JUDGE,
        "self._questions += 1",
        "self._questions += 0",
        (_CHECKED + "after_all_tries_the_next_candidate_is_asked_the_original_question",),
    ),
    Break(
        "invalid-answer-counts-as-an-attempt-that-went-well",
        "checked output",
        "app/llm/sends.py",
        "self._ended(send, refusal or reply)",
        "self._ended(send, reply)",
        (_CHECKED + "an_invalid_answer_is_asked_again_with_its_faults",),
    ),
    Break(
        "replay-is-not-validated",
        "checked output",
        "app/llm/story.py",
        "check_replay(call.check, stored)",
        "check_replay(None, stored)",
        (_CHECKED + "a_replay_is_validated_again_and_a_conflict_is_a_clear_error",),
    ),
    Break(
        "cached-answer-is-not-validated",
        "checked output",
        JUDGE,
        "if stored.response is None or objection_to(stored.response, check) is None",
        "if stored",
        (_CHECKED + "an_answer_that_a_plain_call_accepted_is_no_hit_for_a_checked_one",),
    ),
    Break(
        "claim-serves-what-no-check-has-seen",
        "checked output",
        "app/llm/story.py",
        "cache_candidates=() if call.check or not reads else self._cache.servable_now(route),",
        "cache_candidates=() if not reads else self._cache.servable_now(route),",
        (_CHECKED + "an_answer_that_a_plain_call_accepted_is_no_hit_for_a_checked_one",),
    ),
    Break(
        "followers-of-a-checked-flight-all-send",
        "checked output",
        "app/llm/sends.py",
        "looks = position or self.judge.check",
        "looks = position",
        (_CHECKED + "equal_checked_calls_share_one_send",),
    ),
    Break(
        "second-payment-although-never",
        "checked output",
        "app/llm/retry.py",
        "return error.retryable and self.retry_possibly_paid is not RetryPossiblyPaid.NEVER",
        "return error.retryable",
        (_CHECKED + "the_limits_of_a_call_hold_for_its_questions",),
    ),
    Break(
        "schema-is-demanded-of-everybody",
        "checked output",
        "app/llm/needs.py",
        'json_schema=form is not None and form.type == "json_schema",',
        "json_schema=schema is not None,",
        (_CHECKED + "a_candidate_without_json_schema_is_asked_in_json_mode_and_told_the_schema",),
    ),
    Break(
        "json-mode-is-not-told-the-schema",
        "checked output",
        MEANS,
        'return request.model_copy(update={"response_format": mode, **_told(request, form.json_schema)})',
        'return request.model_copy(update={"response_format": mode})',
        (_CHECKED + "a_candidate_without_json_schema_is_asked_in_json_mode_and_told_the_schema",),
    ),
    Break(
        "faults-tell-what-the-model-wrote",
        "checked output",
        WANTED,
        "[f\"{_path((*within, *fault['loc']))}: {fault['msg']}\"[:MAX_FAULT_CHARS] for fault in found]",
        "[str(error)]",
        (_WANTED + "what_is_not_valid_is_named_with_its_path_and_without_its_value",),
    ),
    Break(
        "agents-tool-arguments-are-not-checked",
        "checked output",
        "app/llm/pydanticai/checking.py",
        "yield from _misfits(call.name, call.arguments, tools[call.name].parameters_json_schema)",
        "yield from ()",
        ("tests/unit/llm/pydanticai/test_checking.py::test_arguments_that_do_not_fit_a_tool_never_reach_it",),
    ),
)

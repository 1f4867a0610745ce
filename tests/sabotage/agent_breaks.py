"""Breaks of the PydanticAI adapter: parts that would be dropped, files that nobody reads, choices and settings unsaid."""

from tests.sabotage.patch import Break

PARTS, MESSAGES, LANES, SETTINGS, CHECKING = (
    f"app/llm/pydanticai/{name}.py" for name in ("parts", "messages", "lanes", "settings", "checking")
)
_PARTS = "tests/unit/llm/pydanticai/test_parts.py::test_"
_MESSAGES = "tests/unit/llm/pydanticai/test_messages.py::test_"
_SETTINGS = "tests/unit/llm/pydanticai/test_settings.py::test_"
_OUTPUTS = "tests/wire/test_agent_outputs.py::test_"
_TOOLS = "tests/wire/test_agent_tools.py::test_"


def _agents(name: str, file: str, old: str, new: str, *tests: str) -> Break:
    return Break(name, "agents", file, old, new, tests)


AGENT_BREAKS = (
    _agents(
        "unknown-part-of-a-request-is-dropped",
        MESSAGES,
        "yield Message.user(*shown_parts(part.content, self.inline))\n            else:\n                raise refused(part)",
        "yield Message.user(*shown_parts(part.content, self.inline))",
        _MESSAGES + "every_part_of_pydantic_ai_is_understood_or_refused",
    ),
    _agents(
        "unknown-item-of-a-prompt-is-dropped",
        PARTS,
        "elif not isinstance(item, pai.CachePoint):  # a price mark, no content\n        raise refused(item)",
        "return",
        _MESSAGES + "every_part_of_pydantic_ai_is_understood_or_refused",
    ),
    _agents(
        "cache-mark-is-refused",
        PARTS,
        "elif not isinstance(item, pai.CachePoint):",
        "else:",
        _PARTS + "each_item_of_a_prompt_reaches_the_model_or_is_refused_by_name",
    ),
    _agents(
        "remote-url-is-taken-for-bytes",
        PARTS,
        'if not item.url.startswith("data:"):',
        "if not item.url:",
        _TOOLS + "a_remote_file_is_refused_before_anything_is_sent",
    ),
    _agents(
        "unread-file-passes-for-text",
        PARTS,
        "if not _is_text(media_type):",
        "if not media_type:",
        _PARTS + "a_file_that_nobody_reads_is_refused",
    ),
    _agents(
        "text-of-a-file-is-not-framed",
        PARTS,
        "return inline(item.data.decode(), media_type=item.media_type, identifier=item.identifier)",
        "return item.data.decode()",
        _PARTS + "a_document_of_text_is_text_and_its_control_tokens_are_broken_for_ollama",
    ),
    _agents(
        "texts-around-a-file-run-together",
        PARTS,
        'parts[index] = f"{parts[index]}{BETWEEN_TEXTS}"',
        'parts[index] = f"{parts[index]}"',
        _TOOLS + "images_go_to_a_model_of_ollama_that_sees_and_texts_to_any",
    ),
    _agents(
        "files-of-a-tool-are-dropped",
        MESSAGES,
        "files += known.model_response_str_and_user_content()[1]",
        "del known",
        _PARTS + "each_file_of_a_tool_reaches_the_model_or_is_refused_by_name",
        _TOOLS + "a_file_of_a_tool_is_shown_or_told_of",
    ),
    _agents(
        "file-of-a-tool-tells-the-id-that-a-provider-made-up",
        MESSAGES,
        "known = replace(part, tool_call_id=self.ids.get(part.tool_call_id, part.tool_call_id))",
        "known = part",
        _PARTS + "a_file_of_a_tool_follows_all_results_and_names_its_call",
    ),
    _agents(
        "encrypted-summary-is-sent-empty",
        MESSAGES,
        "if not part.content:\n        raise",
        "if part is None:\n        raise",
        _PARTS + "an_encrypted_summary_of_another_provider_is_refused",
    ),
    _agents(
        "speech-without-words-is-dropped",
        LANES,
        "refuse_speech_without_words(messages)\n        history",
        "history",
        _PARTS + "speech_of_which_only_the_sound_was_kept_is_refused",
    ),
    _agents(
        "summary-is-dropped",
        MESSAGES,
        "yield from self._asked([_summary(part) for part in parts])",
        "continue",
        _PARTS + "a_summary_in_an_answer_keeps_its_place",
        _PARTS + "each_part_of_an_answer_reaches_the_model_or_is_refused_by_name",
    ),
    _agents(
        "image-of-a-tool-goes-to-who-cannot-see",
        LANES,
        "supports_image_input=any(can.supports_vision for can in caps)",
        "supports_image_input=True",
        _PARTS + "a_file_of_a_tool_that_no_candidate_of_a_lane_reads_is_told_of_in_its_place",
    ),
    _agents(
        "pdf-of-a-tool-goes-to-who-cannot-read",
        LANES,
        "_TEXT_DOCUMENTS | _PDF if any(can.supports_documents for can in caps) else _TEXT_DOCUMENTS",
        "_TEXT_DOCUMENTS | _PDF",
        _TOOLS + "a_file_of_a_tool_is_shown_or_told_of",
    ),
    _agents(
        "profile-promises-what-one-lane-reads",
        LANES,
        "return frozenset.intersection(*values)",
        "return frozenset().union(*values)",
        "tests/unit/llm/pydanticai/test_renderings.py::test_the_profile_is_what_all_lanes_share",
    ),
    _agents(
        "prompted-output-is-not-held-to-json",
        LANES,
        'if prepared.output_mode == "prompted" and self._can_json:',
        'if prepared.output_mode == "json":',
        _OUTPUTS + "each_mode_of_output_leaves_in_its_providers_way_and_comes_back_typed",
    ),
    _agents(
        "format-is-sent-beside-tools",
        LANES,
        "response_format=None if tools else self._format(prepared, params)",
        "response_format=self._format(prepared, params)",
        _OUTPUTS + "beside_tools_the_schema_is_in_the_instructions_alone",
    ),
    _agents(
        "hidden-tool-is-declared",
        LANES,
        "declared = prepared.declared_tool_defs.values()",
        "declared = prepared.tool_defs.values()",
        _TOOLS + "a_tool_that_is_not_revealed_yet_does_not_leave",
    ),
    _agents(
        "choice-that-was-asked-for-is-let-go",
        LANES,
        'if mode == "auto" or not (self._can_force or asked_for):',
        'if mode == "auto" or not self._can_force:',
        _TOOLS + "a_choice_of_tools_leaves_as_the_provider_can_be_told",
    ),
    _agents(
        "tools-that-were-not-chosen-are-declared",
        LANES,
        "tools = [tool for tool in declared if names is None or tool.name in names]",
        "tools = list(declared)",
        _TOOLS + "a_choice_of_tools_leaves_as_the_provider_can_be_told",
    ),
    _agents(
        "strictness-is-lost",
        LANES,
        "strict = {tool.name: tool.strict for tool in params.tool_defs.values()}",
        "strict: dict[str, bool | None] = {}",
        _TOOLS + "strictness_goes_to_who_has_a_word_for_it",
    ),
    _agents(
        "setting-is-dropped-in-silence",
        SETTINGS,
        "return name in _FIELDS or name in _OWN or name in _APPLIED_ELSEWHERE",
        "return True",
        _SETTINGS + "a_setting_without_effect_is_named_once_per_model",
        _SETTINGS + "a_setting_of_another_provider_is_named",
    ),
    _agents(
        "wish-for-one-call-at-a-time-is-dropped-in-silence",
        SETTINGS,
        "return value is True  # what providers do anyway",
        "return True",
        _TOOLS + "a_wish_for_one_call_at_a_time_is_told_of_and_does_no_harm",
    ),
    _agents(
        "phases-of-a-timeout-are-mixed",
        SETTINGS,
        "return phases.pop() if len(phases) == 1 else None",
        "return phases.pop()",
        _SETTINGS + "a_timeout_of_several_phases_is_one_deadline_or_told_of",
    ),
    _agents(
        "prompted-output-is-not-checked",
        CHECKING,
        'self.params.output_mode in {"auto", "native", "prompted"}',
        'self.params.output_mode in {"auto", "native"}',
        "tests/unit/llm/pydanticai/test_checking.py::"
        "test_a_prompted_text_is_held_to_the_schema_and_may_have_words_around_its_fence",
        _OUTPUTS + "invalid_output_of_one_lane_falls_back_to_the_other",
    ),
    _agents(
        "file-needs-nothing",
        "app/llm/needs.py",
        'held = {part.type if part.type != "file" else part.kind for part in parts}',
        "held = {part.type for part in parts}",
        "tests/unit/llm/test_router.py::test_a_candidate_without_a_needed_skill_is_excluded",
        _TOOLS + "a_prompt_with_a_file_goes_to_who_reads_it_and_the_route_says_why",
    ),
    _agents(
        "bytes-of-a-file-do-not-count",
        "app/llm/fingerprint.py",
        'FilePart: _content("type", "media_type", data=Kind.DIGEST)',
        'FilePart: _content("type", "media_type", data=Kind.EXCLUDED)',
        "tests/unit/llm/test_fingerprint.py::test_a_file_counts_by_its_bytes_and_its_type",
    ),
    _agents(
        "large-file-is-hashed-on-the-loop",
        "app/llm/calls.py",
        'FilePart: attrgetter("data"),',
        "",
        "tests/unit/llm/test_calls.py::test_a_large_prompt_is_hashed_off_the_loop",
    ),
    _agents(
        "candidates-of-then-must-be-those-of-now",
        "app/llm/pydanticai/model.py",
        'fields["asked_sha256"] = self._asked_sha256(messages, settings, params, fields)',
        "pass",
        "tests/wire/test_resumed_agents.py::test_a_run_goes_on_with_other_candidates_than_it_began_with",
        "tests/wire/test_resumed_agents.py::test_a_run_whose_second_model_answered_is_replayed_by_the_first",
    ),
    _agents(
        "what-was-asked-does-not-count",
        "app/llm/pydanticai/model.py",
        "return prompt_sha256(LLMRequest(**{**fields, **dict(self._ablest.render(messages, settings, params))}))",
        'return "0" * 64',
        "tests/wire/test_resumed_agents.py::test_another_question_under_the_key_is_a_conflict_whoever_is_to_answer",
    ),
)

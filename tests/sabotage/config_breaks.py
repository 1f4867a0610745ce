"""Breaks of what settings say and what is learned: whose word counts, what a fault tells, who is asked and when."""

from tests.sabotage.patch import Break

_HERE = "app/llm/"
FIELDS, SETTINGS, ROUTER, PROVIDERS = (
    f"{_HERE}{name}.py" for name in ("fields/routing_file", "settings", "router", "providers/__init__")
)
VALUES, WRITTEN = (f"{_HERE}routing_file/{name}.py" for name in ("values", "written"))
KNOWLEDGE, DESCRIBING, CANDIDATES, SERVICE = (
    f"{_HERE}{name}.py" for name in ("knowledge", "wire/describing", "candidates", "service")
)
FILES, ROUTES, LEARNT = (
    f"tests/unit/llm/test_{name}.py::test_" for name in ("routing_file", "router", "knowledge")
)
COMMAND = "tests/unit/cli/test_config.py::test_"
LEARNING = "tests/wire/test_learning.py::test_"

CONFIG_BREAKS = (
    Break(
        "file-beats-the-environment",
        "settings",
        FIELDS,
        "return init_settings, env_settings, dotenv_settings, file, file_secret_settings",
        "return init_settings, dotenv_settings, file, env_settings, file_secret_settings",
        (FILES + "variables_beat_dot_env_which_beats_the_file_which_beats_the_defaults",),
    ),
    Break(
        "unknown-key-is-passed-over",
        "settings",
        VALUES,
        'self._unknown(name, written, "", self._top_level())',
        "pass",
        (FILES + "every_unknown_key_is_named_at_once_in_the_order_of_the_file",),
    ),
    Break(
        "reference-to-nothing-is-empty",
        "settings",
        VALUES,
        'self.faults.append((line, f"{key}: the variable {found[1]} is not set"))',
        "pass",
        (FILES + "a_variable_that_is_not_set_is_refused_with_its_line",),
    ),
    Break(
        "fault-tells-what-a-variable-holds",
        "settings",
        SETTINGS,
        'repr(fault.get("input") if origin.text is None else origin.text)',
        'repr(fault.get("input"))',
        (FILES + "what_a_variable_holds_shows_in_no_error_and_no_repr",),
    ),
    Break(
        "traceback-holds-the-environment",
        "settings",
        f"{_HERE}routing_file/origins.py",
        "environment: Mapping[str, str | None] = field(repr=False)",
        "environment: Mapping[str, str | None] = field()",
        ("tests/security/test_secrets.py::test_a_refused_setting_shows_no_secret_of_any_other",),
    ),
    Break(
        "traceback-holds-the-file",
        "settings",
        VALUES,
        "raise LLMSettingsError(told, variable=VARIABLE)",
        "read_written(path)\n        raise LLMSettingsError(told, variable=VARIABLE)",
        ("tests/security/test_secrets.py::test_a_fault_in_a_routing_file_shows_no_secret_of_it",),
    ),
    Break(
        "line-of-toml-is-the-last-one",
        "settings",
        WRITTEN,
        "yield path, start",
        "yield path, number",
        (FILES + "what_is_wrong_in_toml_is_refused_with_its_line",),
    ),
    Break(
        "show-prints-secrets",
        "settings",
        "app/cli/configuring.py",
        "if isinstance(value, SecretStr): return MASK",
        "if isinstance(value, SecretStr):\n        return value.get_secret_value()",
        (COMMAND + "show_names_every_setting_and_no_secret",),
    ),
    Break(
        "check-finds-faults-and-succeeds",
        "settings",
        "app/cli/config.py",
        "raise typer.Exit(FAILED)",
        "pass",
        (COMMAND + "check_fails_for_what_cannot_work",),
    ),
    Break(
        "policy-moves-the-fallback",
        "routing",
        ROUTER,
        "(each is last, each.local is not local_first)",
        "each.local is not local_first",
        (ROUTES + "the_fallback_is_tried_last_whatever_the_list_and_the_policy",),
    ),
    Break(
        "provider-that-is-off-is-asked",
        "routing",
        ROUTER,
        "if not candidate.enabled:",
        "if False:",
        (ROUTES + "a_provider_that_is_off_is_excluded_even_if_it_is_pinned",),
    ),
    Break(
        "stage-has-no-profile",
        "routing",
        ROUTER,
        "of_stage = self.stages.get(stage) if stage else None",
        "of_stage = None",
        (ROUTES + "a_stage_has_its_profile_unless_the_request_names_one",),
    ),
    Break(
        "overrides-are-passed-over",
        "routing",
        PROVIDERS,
        'return caps.model_copy(update={**better, "assumed": False}) if better else caps',
        "return caps",
        (LEARNT + "the_settings_beat_what_a_provider_says_and_a_refusal_beats_both",),
    ),
    Break(
        "learned-window-is-wider-than-the-call-s",
        "learning",
        CANDIDATES,
        "min(self.context_tokens or caps.max_context_tokens, caps.max_context_tokens)",
        "self.context_tokens or caps.max_context_tokens",
        (LEARNT + "a_window_is_never_wider_than_what_is_asked_for",),
    ),
    Break(
        "refusal-is-forgotten",
        "learning",
        KNOWLEDGE,
        "for word in self._refused.get(name, ()):",
        "for word in ():",
        (LEARNING + "a_refusal_of_tools_is_remembered_for_that_model_alone_and_in_every_view",),
    ),
    Break(
        "view-knows-nothing",
        "learning",
        SERVICE,
        "knowledge=self._story.knowledge,",
        "knowledge=None,",
        (LEARNING + "a_refusal_of_tools_is_remembered_for_that_model_alone_and_in_every_view",),
    ),
    Break(
        "silent-ollama-holds-calls-up",
        "learning",
        DESCRIBING,
        "async with asyncio.timeout(limit_s):",
        "async with asyncio.timeout(None):",
        (LEARNING + "an_ollama_that_describes_nothing_delays_one_call_by_the_timeout_and_then_answers",),
        hangs_s=20.0,
    ),
    Break(
        "each-call-waits-for-the-next-inquiry",
        "learning",
        KNOWLEDGE,
        "{each.name: task for each in asked if each.name in new}",
        "{each.name: task for each in asked}",
        (LEARNT + "after_a_while_it_is_asked_again_and_nobody_waits",),
        hangs_s=20.0,
    ),
    Break(
        "simulation-forgets-who-failed",
        "simulation",
        f"{_HERE}simulation.py",
        "next((each for each in decision.kept if each.name not in passed), None)",
        "next(iter(decision.kept), None)",
        ("tests/unit/llm/test_simulation.py::test_the_settings_in_force_move_nothing",),
    ),
    Break(
        "local-only-asks-elsewhere",
        "learning",
        DESCRIBING,
        "candidate.local or not self._settings.local_only",
        "True",
        (LEARNING + "who_must_not_be_asked_is_not_asked",),
    ),
)

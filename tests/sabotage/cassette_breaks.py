"""Breaks of record and replay: what is matched and in which order, what a file must not hold, who must not be asked."""

from tests.sabotage.patch import Break

_HERE = "app/llm/cassettes/"
LINES, TAPES, CLIENTS, HELD = (f"{_HERE}{name}.py" for name in ("lines", "tapes", "clients", "held"))
OF_LINES, OF_TAPES = (f"tests/unit/llm/cassettes/test_{name}.py::test_" for name in ("lines", "tapes"))
OF_CLIENTS = "tests/unit/llm/cassettes/test_clients.py::test_"

CASSETTE_BREAKS = (
    Break(
        "cassette-plays-the-last-answer-again",
        "cassettes",
        TAPES,
        "return left.popleft()",
        "return left[0]",
        (OF_TAPES + "the_nth_equal_request_gets_the_nth_answer_whatever_lies_between",),
    ),
    Break(
        "cassette-keeps-secrets-of-answers",
        "cassettes",
        LINES,
        "done.append(type(part)(text=redact(part.text)))",
        "done.append(type(part)(text=part.text))",
        (OF_LINES + "secrets_are_in_no_part_of_a_line",),
    ),
    Break(
        "cassette-keeps-secrets-of-requests",
        "cassettes",
        LINES,
        "json.loads(_dumped(_scrubbed(canonical_content(request), redact)))",
        "json.loads(_dumped(canonical_content(request)))",
        (OF_LINES + "secrets_are_in_no_part_of_a_line",),
    ),
    Break(
        "cassette-forgets-who-was-asked",
        "cassettes",
        LINES,
        'return f"{self.candidate} {content_sha256(dict(self.content))}"',
        "return content_sha256(dict(self.content))",
        (OF_TAPES + "the_nth_equal_request_gets_the_nth_answer_whatever_lies_between",),
    ),
    Break(
        "cassette-is-written-in-place",
        "cassettes",
        TAPES,
        "new = path.with_name(",
        "new = path if path else path.with_name(",
        (OF_TAPES + "a_file_that_cannot_be_written_stays_as_it_was",),
    ),
    Break(
        "cassette-has-calls-as-they-ended",
        "cassettes",
        TAPES,
        "[self._lines[each] for each in sorted(self._lines)]",
        "list(self._lines.values())",
        (OF_TAPES + "calls_stand_where_they_began",),
    ),
    Break(
        "each-service-rewinds-the-tape",
        "cassettes",
        HELD,
        "return _held[-1] assert settings",
        "return _opened(_held[-1].path, settings.mode)\n    assert settings",
        (OF_CLIENTS + "services_share_the_tape_that_is_held_and_rewind_their_own",),
    ),
    Break(
        "miss-is-an-internal-error",
        "cassettes",
        "app/llm/sends.py",
        "except LLMCassetteMiss:",
        "except LLMCancelled:",
        (OF_CLIENTS + "a_miss_is_what_the_caller_sees_and_stands_on_the_row",),
    ),
    Break(
        "replay-asks-what-models-can-do",
        "cassettes",
        "app/bootstrap.py",
        "client is None and settings.mode is LLMMode.LIVE",
        "client is None",
        (OF_CLIENTS + "in_a_replay_nobody_is_asked_what_a_model_can_do_and_no_key_is_needed",),
    ),
    Break(
        "replay-needs-a-key",
        "cassettes",
        "app/llm/providers/__init__.py",
        "prefix not in without_key if settings.mode is LLMMode.REPLAY else facts.usable(settings)",
        "facts.usable(settings)",
        (OF_CLIENTS + "in_a_replay_nobody_is_asked_what_a_model_can_do_and_no_key_is_needed",),
    ),
    Break(
        "replay-asks-who-had-no-key",
        "cassettes",
        "app/llm/providers/__init__.py",
        "prefix not in without_key if settings.mode is LLMMode.REPLAY",
        "True if settings.mode is LLMMode.REPLAY",
        ("tests/wire/test_cassette_keys.py::test_who_stands_first_and_has_no_key_is_passed_over_again",),
    ),
)

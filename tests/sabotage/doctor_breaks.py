"""Breaks of what `doctor`, `models`, `pull` and `warmup` promise: nothing is hidden, nothing is shown, nobody outside is asked."""

from tests.sabotage.patch import Break

_HERE = "app/diagnosis/"
FINDINGS, PROVIDERS, DATABASE, FILES = (
    f"{_HERE}{name}.py" for name in ("findings", "providers", "database", "files")
)
PULLING = "app/llm/wire/pulling.py"
LOOKS = "tests/unit/diagnosis/test_findings.py::test_"
DOCTOR = "tests/unit/diagnosis/test_doctor.py::test_"
PULL = "tests/unit/cli/test_pull.py::test_"

DOCTOR_BREAKS = (
    Break(
        "look-that-raises-hides-the-others",
        "doctor",
        FINDINGS,
        "except Exception as error: # noqa: BLE001 # one look that fails must not hide what the others find",
        "except ZeroDivisionError as error:",
        (LOOKS + "a_look_that_fails_after_all_was_told_is_told_too",),
    ),
    Break(
        "unanswered-subject-is-left-out",
        "doctor",
        FINDINGS,
        'return [*told, *(Finding.skipped(name, "not looked at: see above") for name in open_ones)]',
        "return told",
        (LOOKS + "a_look_that_raises_is_a_fault_and_hides_nothing",),
    ),
    Break(
        "local-only-asks-everybody",
        "doctor",
        PROVIDERS,
        "if settings.local_only and not any(candidate.local for candidate in own):",
        "if False:",
        (DOCTOR + "with_local_only_nobody_outside_is_asked",),
    ),
    Break(
        "refused-key-is-accepted",
        "doctor",
        PROVIDERS,
        "_REFUSED = {401, 403}",
        "_REFUSED = {403}",
        (DOCTOR + "a_wrong_key_is_red_and_never_shown",),
    ),
    Break(
        "looking-makes-a-database",
        "doctor",
        DATABASE,
        "if file is not None and not file.is_file():",
        "if False:",
        (DOCTOR + "a_file_that_is_not_there_is_not_made",),
    ),
    Break(
        "rights-are-not-looked-at",
        "doctor",
        "app/llm/persistence/health.py",
        'if not row[f"{table} {right}"]:',
        "if False:",
        (DOCTOR + "rights_that_are_missing_are_granted_by_the_remedy",),
    ),
    Break(
        "pull-that-breaks-off-succeeds",
        "doctor",
        PULLING,
        "if last != _DONE:",
        "if False:",
        (PULL + "a_connection_that_is_lost_is_told_and_goes_on_later",),
    ),
    Break(
        "warm-model-has-another-window",
        "doctor",
        PULLING,
        'body = {"model": model, "stream": False, "options": options}',
        'body = {"model": model, "stream": False}',
        (PULL + "litellm_and_the_first_local_model_are_loaded",),
    ),
)

"""Breaks of what commands promise: nobody who follows misses or sees twice, exports are exact, repetitions stand alone."""

from tests.sabotage.patch import Break

FOLLOWING, EXPORTING = "app/llm/persistence/following.py", "app/llm/persistence/exporting.py"
FILES, REPLAYING = "app/cli/exporting.py", "app/cli/replaying.py"
TOLD = "tests/conformance/test_following.py::test_"
EXPORTED, REPEATED = "tests/unit/cli/test_export.py::test_", "tests/unit/cli/test_replay.py::test_"

COMMAND_BREAKS = (
    Break(
        "open-transactions-are-not-waited-for",
        "commands",
        FOLLOWING,
        'while self._marks and self._marks[0][0] <= mark["oldest"]:',
        "while self._marks:",
        (TOLD + "a_run_that_is_committed_late_is_told_all_the_same[postgres]",),
    ),
    Break(
        "numbers-that-are-given-count-as-free",
        "commands",
        FOLLOWING,
        'return "txid_current()"',
        'return "txid_snapshot_xmax(txid_current_snapshot())"',
        (TOLD + "of_two_open_transactions_the_later_one_is_waited_for_too",),
    ),
    Break(
        "writer-of-sqlite-is-not-waited-for",
        "commands",
        FOLLOWING,
        'self._bound = mark["newest"] or self._bound',
        "self._bound = now",
        (TOLD + "a_run_that_is_committed_late_is_told_all_the_same[sqlite]",),
    ),
    Break(
        "follower-repeats-what-it-told",
        "commands",
        FOLLOWING,
        'if row["id"] in self._told:',
        "if False:",
        (TOLD + "a_run_is_told_when_it_begins_and_when_it_ends_and_then_no_more",),
    ),
    Break(
        "end-is-lost-when-the-reader-leaves-between",
        "commands",
        FOLLOWING,
        'self._live.add(row["id"])\n        yield Event',
        "yield Event",
        (TOLD + "who_leaves_in_the_middle_is_told_the_rest_later",),
    ),
    Break(
        "pages-of-an-export-overlook-equal-times",
        "commands",
        EXPORTING,
        "sa.or_(runs.c.created_at > at, runs.c.id > run_id)",
        "runs.c.created_at > at",
        (EXPORTED + "each_run_is_there_once_by_workspace_and_time_with_its_sends_and_all_digits",),
    ),
    Break(
        "exported-dollars-are-floats",
        "commands",
        FILES,
        'return f"{value.quantize(CENTS):f}"',
        "return str(float(value))",
        (EXPORTED + "each_run_is_there_once_by_workspace_and_time_with_its_sends_and_all_digits",),
    ),
    Break(
        "export-writes-in-place",
        "commands",
        FILES,
        "beside = Path(name)",
        "beside = target",
        (EXPORTED + "what_is_cut_short_leaves_the_former_file_and_nothing_else",),
    ),
    Break(
        "repetition-takes-the-old-key",
        "commands",
        REPLAYING,
        '"idempotency_key": None,',
        "",
        (REPEATED + "the_same_request_goes_to_that_candidate_alone_and_is_its_own_run",),
    ),
    Break(
        "repetition-falls-back",
        "commands",
        REPLAYING,
        "allow_fallback=False",
        "allow_fallback=True",
        (REPEATED + "the_same_request_goes_to_that_candidate_alone_and_is_its_own_run",),
    ),
)

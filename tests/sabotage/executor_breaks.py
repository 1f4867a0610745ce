"""Breaks of how statements reach a database: transactions, locks, connections, batches."""

from tests.sabotage.patch import Break

_HERE = "app/llm/persistence/"
EXECUTOR = _HERE + "executor.py"
SQLITE = _HERE + "executors/sqlite.py"
WRITER = _HERE + "executors/sqlite_writer.py"
ENGINE = "app/db/engine.py"
BASE = "app/db/base.py"

ENGINES = "tests/unit/db/test_engine.py::test_"
EXECUTORS = "tests/unit/llm/persistence/test_executor.py::test_"
JOINED = "tests/unit/llm/persistence/test_joined.py::test_"
SERVICE = "tests/unit/llm/test_service.py::test_"
SQLITES = "tests/unit/llm/persistence/executors/test_sqlite.py::test_"

EXECUTOR_BREAKS = (
    Break(
        "transaction-is-never-committed",
        "I3",
        WRITER,
        'connection.execute("COMMIT")',
        'connection.execute("ROLLBACK")',
        (SERVICE + "started_is_seen_by_others_before_the_provider_is_asked",),
    ),
    Break(
        "write-lock-is-kept-during-the-send",
        "I4",
        WRITER,
        'connection.execute("COMMIT")',
        "pass",
        (SERVICE + "while_the_provider_works_no_connection_is_held_and_others_can_write[sqlite]",),
    ),
    Break(
        "look-up-may-write",
        "I4",
        SQLITE,
        "self._connect(timeout_s=0.0, read_only=True)",
        "self._connect(timeout_s=0.0, read_only=False)",
        (SQLITES + "a_look_up_writes_nothing",),
    ),
    Break(
        "outcome-is-told-before-it-is-committed",
        "I9",
        WRITER,
        "each.outcome = drive(connection, each.steps())",
        "each.outcome = drive(connection, each.steps())\n                self._settled([each])",
        (SQLITES + "an_acknowledged_outcome_is_a_committed_one",),
    ),
    Break(
        "database-clock-stands-still-in-a-transaction",
        "I10",
        BASE,
        '"(clock_timestamp() + make_interval(',
        '"(now() + make_interval(',
        (ENGINES + "the_databases_clock_moves_inside_a_transaction_and_counts_seconds",),
    ),
    Break(
        "deadlock-is-not-tried-again",
        "executor",
        EXECUTOR,
        '_REPEATABLE = {"40001", "40P01"}',
        "_REPEATABLE: set[str] = set()",
        (EXECUTORS + "a_serialization_failure_is_run_again_from_the_start",),
    ),
    Break(
        "own-callers-lock-is-waited-for",
        "executor",
        SQLITE,
        "if holds_write_lock(self._file):",
        'if holds_write_lock(self._file / "elsewhere"):',
        (JOINED + "an_autonomous_call_inside_a_unit_of_work_on_its_file_is_refused_at_once",),
        hangs_s=8,
    ),
    Break(
        "joined-fault-takes-the-callers-work-along",
        "executor",
        EXECUTOR,
        "async with self._one_at_a_time, self._session.begin_nested():",
        "async with self._one_at_a_time:",
        (JOINED + "a_fault_of_our_sql_stays_in_its_savepoint",),
    ),
    Break(
        "settings-of-sqlite-are-forgotten",
        "executor",
        ENGINE,
        '"synchronous=FULL",',
        '"synchronous=OFF",',
        (ENGINES + "sqlite_waits_for_locks_keeps_a_log_and_syncs",),
    ),
    Break(
        "fault-in-a-batch-is-everybodys",
        "executor",
        WRITER,
        "self._perform([each])",
        "self._fail(each, error)",
        (SQLITES + "one_fault_in_a_batch_spoils_nobody",),
    ),
    Break(
        "batch-with-a-fault-is-committed-in-part",
        "executor",
        WRITER,
        "self._undo(connection)\n            raise",
        'connection.execute("COMMIT")\n            raise',
        (SQLITES + "one_fault_in_a_batch_spoils_nobody",),
    ),
    Break(
        "waiting-for-the-lock-has-no-end",
        "executor",
        WRITER,
        "if each.give_up_at_s <= now_s:",
        "if each.give_up_at_s + 3600 <= now_s:",
        (SQLITES + "a_lock_held_elsewhere_ends_in_a_busy_error_for_everybody_at_once",),
        hangs_s=20,
    ),
    Break(
        "child-uses-its-parents-connection",
        "executor",
        SQLITE,
        "if os.getpid() == self._pid:",
        "if self._pid:",
        (SQLITES + "a_forked_child_does_not_touch_its_parents_connections",),
    ),
    Break(
        "long-reads-stall-the-loop",
        "executor",
        SQLITE,
        "if step.brief and self._lookup_s < SLOW_LOOKUP_S:",
        "if self._lookup_s < SLOW_LOOKUP_S:",
        (SQLITES + "a_long_read_stays_off_the_loop",),
    ),
)

"""Breaks of the PostgreSQL executor: whose row is whose, what is committed when, who waits for whom."""

from tests.sabotage.patch import Break

_HERE = "app/llm/persistence/executors/"
LANES, BATCH, WIRE = (_HERE + f"postgres{name}.py" for name in ("", "_batch", "_wire"))
POSTGRES = "tests/unit/llm/persistence/executors/test_postgres.py::test_"
FINISHES = "tests/conformance/test_finishes.py::test_"

POSTGRES_BREAKS = (
    Break(
        "half-done-work-of-a-batch-is-seen",
        "I1",
        BATCH,
        "not course.ended and (alone or course.met_nobody)",
        "not course.ended",
        (POSTGRES + "two_of_one_flight_that_come_together_are_both_served_from_the_cache",),
    ),
    Break(
        "keys-are-taken-over-in-company",
        "I1",
        BATCH,
        "not course.ended and not course.query.writes",
        "not course.ended",
        (POSTGRES + "a_dead_owners_key_that_several_find_at_once_has_one_heir_who_names_it",),
    ),
    Break(
        "batch-is-acknowledged-before-its-commit",
        "I3",
        BATCH,
        "await wire.commit()",
        "for course in courses: course.settle_if_ended()\n        await wire.commit()",
        (POSTGRES + "nobody_is_told_before_the_commit",),
    ),
    Break(
        "rows-of-a-batch-find-another-transaction",
        "I13",
        WIRE,
        "number = record[-1]",
        "number = len(queries) - 1 - record[-1]",
        (
            POSTGRES + "every_transaction_of_a_batch_is_sent_its_own_rows",
            POSTGRES + "look_ups_of_one_moment_share_a_round_trip_and_no_rows",
        ),
    ),
    Break(
        "one-fault-fails-its-whole-batch",
        "I2",
        LANES,
        "await self._run_alone(wire, operation)",
        "if len(operations) == 1:\n"
        "                    await self._run_alone(wire, operation)\n"
        "                else:\n"
        "                    operation.fail(LLMLedgerUnavailable('the batch failed'))",
        (POSTGRES + "one_that_raises_takes_nothing_from_the_others",),
    ),
    Break(
        "claim-in-doubt-is-repeated",
        "I6",
        LANES,
        "if operation.in_doubt or tries == REPEATS",
        "if tries == REPEATS",
        (POSTGRES + "a_claim_that_is_cut_off_on_the_wire_is_told_as_a_fault_and_not_done_again",),
    ),
    Break(
        "batch-in-doubt-is-repeated",
        "I12",
        LANES,
        "if error is not None and operation.in_doubt:",
        "if error is None and operation.in_doubt:",
        (POSTGRES + "a_commit_whose_acknowledgement_is_lost_is_not_done_again",),
    ),
    Break(
        "broken-connection-fails-what-was-not-committed",
        "I12",
        LANES,
        "broke = wire.lost and not isinstance(error, TimeoutError)",
        "broke = False",
        (POSTGRES + "a_connection_that_breaks_before_the_commit_is_replaced_and_the_work_done_again",),
    ),
    Break(
        "connection-is-never-asked-whether-it-stands",
        "I6",
        WIRE,
        "if not self.lost: await self._ask()",
        "pass",
        (POSTGRES + "a_connection_that_died_while_nobody_used_it_harms_nobody",),
    ),
    Break(
        "lock-of-one-delays-all",
        "I4",
        LANES,
        "PATIENCE_S = 0.2",
        "PATIENCE_S = 99.0",
        (POSTGRES + "a_lock_that_somebody_holds_delays_only_whom_it_concerns",),
    ),
    Break(
        "texts-are-locked-in-any-order",
        "I20",
        WIRE,
        "sorted(range(len(rows)), key=locks.__getitem__)",
        "range(len(rows))",
        (POSTGRES + "what_many_write_is_locked_in_one_order",),
    ),
    Break(
        "finish-of-anothers-run-leaves-attempts",
        "I8",
        WIRE,
        'f"SELECT {each} FROM changed"',
        'f"SELECT {each} WHERE true"',
        (FINISHES + "another_owner_cannot_finish_a_run",),
    ),
    Break(
        "closing-forgets-what-is-queued",
        "I11",
        LANES,
        "await asyncio.gather(*lanes)",
        "for lane in lanes:\n            lane.cancel()",
        (POSTGRES + "closing_waits_for_what_was_begun_and_refuses_what_comes_later",),
    ),
)

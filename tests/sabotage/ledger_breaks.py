"""Breaks of the ledger: who holds a key, what a run that ends writes, and whose answer a caller gets."""

from tests.sabotage.patch import Break

_HERE = "app/llm/persistence/"
AUTONOMOUS = _HERE + "autonomous.py"
LEDGER = _HERE + "ledger.py"
STATEMENTS = _HERE + "statements.py"

CANCELLATION = "tests/crash/test_cancellation.py::test_"
CLAIMS = "tests/conformance/test_claims.py::test_"
FINISHES = "tests/conformance/test_finishes.py::test_"
GAPS = "tests/conformance/test_gaps.py::test_"
JOINED = "tests/unit/llm/persistence/test_joined.py::test_"
KEYS = "tests/unit/llm/test_idempotency.py::test_"
OUTAGE = "tests/crash/test_outage.py::test_"
SERVICE = "tests/unit/llm/test_service.py::test_"
WINDOWS = "tests/conformance/test_windows.py::test_"

LEDGER_BREAKS = (
    Break(
        "claim-takes-no-key",
        "I1",
        LEDGER,
        '"idem_slot": run.idempotency_key',
        '"idem_slot": None',
        (CLAIMS + "a_second_claim_of_a_live_key_is_told_who_holds_it_and_for_how_long",),
    ),
    Break(
        "key-slot-is-not-unique",
        "I1",
        "alembic/versions/0001_ledger.py",
        '["workspace_id", "idem_slot"], unique=True',
        '["workspace_id", "idem_slot"], unique=False',
        (CLAIMS + "a_second_claim_of_a_live_key_is_told_who_holds_it_and_for_how_long",),
    ),
    Break(
        "dead-owner-may-be-taken-over-twice",
        "I2",
        STATEMENTS,
        "TAKE_OVER = _ABANDON.where(_HAS_ID, _IS_LIVE, _LEASE_OVER)",
        "TAKE_OVER = _ABANDON.where(_HAS_ID, _LEASE_OVER)",
        (
            WINDOWS + "a_holder_that_finishes_under_a_takeover_keeps_its_answer",
            WINDOWS + "two_takeovers_of_one_dead_owner_leave_one_row_in_charge",
        ),
    ),
    Break(
        "waiter-of-a-key-executes-too",
        "I2",
        LEDGER,
        "holder = ((yield key_holder(run.workspace_id, run.idempotency_key)).first if run.idempotency_key else None)",
        "holder = None",
        (KEYS + "of_racers_that_do_not_wait_one_answers_and_the_others_are_told",),
    ),
    Break(
        "fenced-owner-returns-its-own-answer",
        "I5",
        "app/llm/story.py",
        "if not finished.fenced:",
        "if finished is not None:",
        (SERVICE + "a_fenced_call_returns_the_winners_answer",),
    ),
    Break(
        "fenced-failure-hides-the-winners-answer",
        "I5",
        "app/llm/story.py",
        "if finished.fenced and (winner := await self._winner(call, finished)) is not None:",
        "if not finished and (winner := await self._winner(call, finished)) is not None:",
        (SERVICE + "a_failed_call_that_was_fenced_returns_the_winners_answer",),
    ),
    Break(
        "further-send-is-not-noted",
        "I6",
        "app/llm/sends.py",
        "if not self.attempts and more is None:\n            return",
        "if self.attempts and more is None:\n            return",
        (SERVICE + "every_further_send_is_noted_before_it_happens",),
    ),
    Break(
        "first-send-is-not-foreseen",
        "I6",
        LEDGER,
        '"sends_noted": 1 if run.route.kept else 0',
        '"sends_noted": 0',
        (CLAIMS + "the_first_claim_of_a_key_wins_and_is_a_started_row",),
    ),
    Break(
        "note-that-failed-is-ignored",
        "I6",
        LEDGER,
        "if noted.rowcount != 1:",
        "if noted.rowcount < 0:",
        (CLAIMS + "a_fenced_owner_may_not_note_another_send",),
    ),
    Break(
        "note-asks-for-no-owner",
        "fencing",
        STATEMENTS,
        '.values(sends_noted=_bind("sends", sa.Integer)).where(_IS_OURS, _IS_LIVE)',
        '.values(sends_noted=_bind("sends", sa.Integer)).where(sa.or_(_IS_OURS, _HAS_ID), _IS_LIVE)',
        (CLAIMS + "another_owner_cannot_note_a_send",),
    ),
    Break(
        "living-owner-is-taken-over",
        "I7",
        LEDGER,
        'if holder["lease_left_s"] > 0:',
        'if holder["lease_left_s"] > 86_400:',
        (CLAIMS + "a_second_claim_of_a_live_key_is_told_who_holds_it_and_for_how_long",),
    ),
    Break(
        "takeover-does-not-look-at-the-lease-again",
        "I7",
        STATEMENTS,
        "TAKE_OVER = _ABANDON.where(_HAS_ID, _IS_LIVE, _LEASE_OVER)",
        "TAKE_OVER = _ABANDON.where(_HAS_ID, _IS_LIVE)",
        (GAPS + "a_takeover_judges_the_lease_itself",),
    ),
    Break(
        "lease-has-no-grace",
        "I7",
        "app/llm/idempotency.py",
        "return max(0.0, left_s) + self.lease_grace_s",
        "return max(0.0, left_s)",
        (SERVICE + "the_lease_is_the_deadline_and_the_grace",),
    ),
    Break(
        "waiter-writes-at-every-look",
        "I4",
        "app/llm/idempotency.py",
        "if status is not None or asked_at_s - self.left_s() >= patience_s:",
        "if status is not None or patience_s:",
        (KEYS + "a_waiter_reads_while_the_holder_lives_and_claims_no_more_when_it_has_answered",),
    ),
    Break(
        "takeover-names-no-predecessor",
        "I7",
        LEDGER,
        'supersedes=str(holder["id"])',
        "supersedes=None",
        (CLAIMS + "a_key_whose_lease_is_over_is_taken_over_by_a_new_row",),
    ),
    Break(
        "finish-asks-for-no-owner",
        "I8",
        STATEMENTS,
        "flight_slot=_NULL, finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER ) .where(_IS_OURS, _IS_LIVE)",
        "flight_slot=_NULL, finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER,\n"
        "    ).where(sa.or_(_IS_OURS, _HAS_ID), _IS_LIVE)",
        (FINISHES + "another_owner_cannot_finish_a_run",),
    ),
    Break(
        "fenced-owner-believes-it-finished",
        "I8",
        LEDGER,
        'if state["status"] != ABANDONED:',
        'if state["status"] != "":',
        (FINISHES + "a_fenced_owner_is_given_the_winners_answer",),
    ),
    Break(
        "fenced-owner-is-given-another-requests-answer",
        "I8",
        LEDGER,
        'if holder is None or holder["request_sha256"] != settlement.request_sha256:',
        "if holder is None:",
        (GAPS + "a_fenced_owner_is_not_given_the_answer_of_another_request",),
    ),
    Break(
        "joined-view-takes-the-service-along",
        "I9",
        "app/llm/service.py",
        "return LLMService( replace( self._wiring, repo=self._wiring.join(session), breaker=self._story.breaker, "
        "knowledge=self._story.knowledge, rates=self._story.rates, ) )",
        "self._repo = self._story._repo = self._wiring.join(session)\n        return self",
        (JOINED + "a_released_savepoint_still_holds_the_lock",),
    ),
    Break(
        "failed-run-keeps-its-key",
        "I10",
        STATEMENTS,
        "FINISH_UNANSWERED = FINISH_ANSWERED.values(idem_slot=_NULL)",
        "FINISH_UNANSWERED = FINISH_ANSWERED",
        (CLAIMS + "a_run_that_failed_or_was_cancelled_frees_its_key_at_once",),
    ),
    Break(
        "transition-dies-with-its-caller",
        "I11",
        AUTONOMOUS,
        "return await self._shielded(asyncio.ensure_future(self._executor.transaction(steps)))",
        "return await self._executor.transaction(steps)",
        (CANCELLATION + "cancelling_at_each_transition_leaves_nothing_behind",),
    ),
    Break(
        "claim-dies-with-its-caller",
        "I11",
        AUTONOMOUS,
        "return await self._shielded(claim, partial(self._note_won, run))",
        "return await claim",
        (CANCELLATION + "cancelling_at_each_transition_leaves_nothing_behind",),
    ),
    Break(
        "claim-that-nobody-waits-for-stays-started",
        "I11",
        AUTONOMOUS,
        "claim.add_done_callback(partial(self._settle_unclaimed, run))",
        "pass",
        (CANCELLATION + "cancelling_at_each_transition_leaves_nothing_behind",),
    ),
    Break(
        "drain-waits-for-nobody",
        "I11",
        AUTONOMOUS,
        "while self._begun: await asyncio.wait(set(self._begun))",
        "await asyncio.sleep(0)",
        (
            CANCELLATION + "cancelling_at_each_transition_leaves_nothing_behind",
            SERVICE + "closing_waits_for_what_is_written_in_the_background",
        ),
    ),
    Break(
        "finish-settles-twice",
        "I12",
        STATEMENTS,
        "flight_slot=_NULL, finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER ) .where(_IS_OURS, _IS_LIVE)",
        "flight_slot=_NULL, finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER,\n    ).where(_IS_OURS)",
        (FINISHES + "finishing_twice_changes_nothing",),
    ),
    Break(
        "lost-acknowledgement-is-a-lost-answer",
        "I12",
        LEDGER,
        'persisted=state["status"] == run["status"]',
        'persisted=state["status"] == "nothing"',
        (OUTAGE + "a_lost_acknowledgement_of_a_finish_is_no_second_finish",),
    ),
    Break(
        "key-of-any-workspace-is-found",
        "I13",
        STATEMENTS,
        '.where(runs.c.workspace_id == _bind("workspace_id"), runs.c.idem_slot == _bind("key"))',
        '.where(_bind("workspace_id").is_not(None), runs.c.idem_slot == _bind("key"))',
        (CLAIMS + "a_key_of_one_workspace_is_unknown_in_another",),
    ),
    Break(
        "other-request-gets-the-stored-answer",
        "I15",
        LEDGER,
        'if same_version and holder["request_sha256"] != request_sha256:',
        "if not same_version and not request_sha256:",
        (CLAIMS + "another_request_under_the_same_key_is_a_conflict_and_gets_no_answer",),
    ),
    Break(
        "force-takes-the-key-of-another-request",
        "I15",
        LEDGER,
        'if same_version and holder["request_sha256"] != request_sha256:',
        'if not force and same_version and holder["request_sha256"] != request_sha256:',
        (CLAIMS + "force_does_not_take_a_key_of_another_request",),
    ),
    Break(
        "late-accounting-is-overwritten",
        "I16",
        STATEMENTS,
        "runs.c.status == _literal(ABANDONED), runs.c.late == sa.false()",
        "runs.c.status == _literal(ABANDONED)",
        (FINISHES + "late_accounting_happens_once",),
    ),
    Break(
        "release-reopens-a-finished-run",
        "I16",
        STATEMENTS,
        "RELEASE = _ABANDON.where(_HAS_ID, _IS_LIVE)",
        "RELEASE = _ABANDON.where(_HAS_ID)",
        (CLAIMS + "release_declares_an_owner_dead_once",),
    ),
    Break(
        "expiry-erases-what-was-answered",
        "I16",
        STATEMENTS,
        ".values(idem_slot=_NULL) .where(_HAS_ID, runs.c.status == _literal(SUCCEEDED), runs.c.expires_at <= db_now())",
        ".values(idem_slot=_NULL, idempotency_key=_NULL)\n"
        "    .where(_HAS_ID, runs.c.status == _literal(SUCCEEDED), runs.c.expires_at <= db_now())",
        (CLAIMS + "an_expired_answer_frees_its_key_and_keeps_its_row",),
    ),
    Break(
        "key-never-expires",
        "keys",
        LEDGER,
        'if holder["expires_left_s"] is not None and holder["expires_left_s"] <= 0:',
        'if holder["expires_left_s"] is not None and holder["expires_left_s"] <= -1e9:',
        (CLAIMS + "an_expired_answer_frees_its_key_and_keeps_its_row",),
    ),
    Break(
        "refused-takeover-happens",
        "keys",
        LEDGER,
        'return Abandoned(run_id=str(holder["id"])) if refuse_abandoned else _Free("take_over")',
        'return _Free("take_over")',
        (CLAIMS + "an_abandoned_key_is_refused_where_the_settings_say_so",),
    ),
)

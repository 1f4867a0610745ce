"""Breaks of what is kept: texts that every database takes, without secrets, for as long as somebody refers to them."""

from tests.sabotage.patch import Break

_HERE = "app/llm/persistence/"
CODEC = _HERE + "codec.py"
LEDGER = _HERE + "ledger.py"
RETENTION = _HERE + "statements_retention.py"
SETTLEMENT = _HERE + "settlement.py"
STATEMENTS = _HERE + "statements.py"
WRITER = _HERE + "executors/sqlite_writer.py"
ENGINE = "app/db/engine.py"

CODECS = "tests/unit/llm/persistence/test_codec.py::test_"
FINISHES = "tests/conformance/test_finishes.py::test_"
GAPS = "tests/conformance/test_gaps.py::test_"
PRUNES = "tests/conformance/test_retention.py::test_"

TEXT_BREAKS = (
    Break(
        "prune-takes-other-workspaces-along",
        "I13",
        RETENTION,
        "wanted.append(of.c.workspace_id == which.workspace_id)",
        "pass",
        (PRUNES + "another_workspace_is_left_alone",),
    ),
    Break(
        "prune-writes-for-as-long-as-it-takes",
        "prune",
        _HERE + "retention.py",
        "if monotonic() > until_s:",
        "if False:",
        (PRUNES + "a_write_that_has_taken_long_leaves_the_rest_to_the_next_one",),
    ),
    Break(
        "prune-forgets-what-a-write-left-over",
        "prune",
        _HERE + "retention.py",
        "pieces = pieces[written:]",
        "pieces = []",
        (PRUNES + "a_write_that_has_taken_long_leaves_the_rest_to_the_next_one",),
    ),
    Break(
        "payload-holds-what-a-database-refuses",
        "I14",
        CODEC,
        "json.JSONEncoder(ensure_ascii=True,",
        "json.JSONEncoder(ensure_ascii=False,",
        (FINISHES + "any_text_is_stored_and_comes_back_as_it_was",),
    ),
    Break(
        "error-text-holds-what-a-database-refuses",
        "I14",
        SETTLEMENT,
        'text.replace("\\x00", "").encode("utf-8", "replace").decode()[:MAX_ERROR_CHARS]',
        "text[:MAX_ERROR_CHARS]",
        (FINISHES + "any_error_text_is_stored",),
    ),
    Break(
        "count-that-no-column-holds-is-stored",
        "I14",
        SETTLEMENT,
        "None if number is None or not 0 <= number <= largest else number",
        "number",
        (FINISHES + "token_counts_that_no_column_holds_are_unknown_on_the_row",),
    ),
    Break(
        "error-text-is-stored-unredacted",
        "I17",
        SETTLEMENT,
        "storable(redact(failure.error.message))",
        "storable(failure.error.message)",
        ("tests/unit/llm/test_telemetry.py::test_no_secret_is_in_a_log_line_a_row_or_an_error",),
    ),
    Break(
        "database-fault-drags-the-prompt-along",
        "I17",
        WRITER,
        "operation.fault, _ = ledger_error(error, self._timeout_s)",
        "operation.fault = error",
        (GAPS + "a_fault_has_no_error_of_the_driver_behind_it",),
    ),
    Break(
        "driver-errors-show-values",
        "I17",
        ENGINE,
        'options = {"hide_parameters": True, **options}',
        'options = {"hide_parameters": False, **options}',
        (GAPS + "an_error_of_the_driver_shows_no_values",),
    ),
    Break(
        "prune-takes-started-runs",
        "I18",
        RETENTION,
        "wanted = [of.c.status != STARTED, of.c.finished_at < _ago(which.older_than_s)]",
        "wanted = [of.c.created_at < _ago(which.older_than_s)]",
        (PRUNES + "a_started_run_is_never_touched",),
    ),
    Break(
        "prune-takes-live-keys",
        "I18",
        RETENTION,
        "return not (which.keys or which.payloads_only)",
        "return False",
        (PRUNES + "a_live_key_keeps_its_run_unless_keys_are_given_up",),
    ),
    Break(
        "prune-judges-a-page-and-not-its-rows",
        "I18",
        RETENTION,
        "wanted = _is_wanted(which, of)",
        'wanted = of.c.id > ""',
        (GAPS + "a_prune_judges_every_row_of_a_page",),
    ),
    Break(
        "prune-spares-a-key-when-it-looks-only",
        "I18",
        RETENTION,
        "sa.and_(wanted, sa.not_(_holds_live_key(of))) if _spares_keys(which) else wanted",
        "wanted",
        (GAPS + "a_prune_judges_every_row_of_a_page",),
    ),
    Break(
        "database-file-is-readable-by-others",
        "I19",
        ENGINE,
        "os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE",
        "os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644",
        ("tests/unit/db/test_migrate.py::test_a_new_sqlite_file_is_made_and_only_its_owner_may_read_it",),
    ),
    Break(
        "prune-takes-fresh-texts",
        "I20",
        RETENTION,
        "payloads.c.last_ref_at < _ago(PAYLOAD_REST_S)",
        "payloads.c.last_ref_at <= _ago(0.0)",
        (PRUNES + "a_text_of_the_last_hour_is_left_to_a_later_prune",),
    ),
    Break(
        "text-that-is-stored-again-stays-old",
        "I20",
        STATEMENTS,
        'index_elements=[payloads.c.workspace_id, payloads.c.sha256], set_={"last_ref_at": db_now()}',
        "index_elements=[payloads.c.workspace_id, payloads.c.sha256],\n"
        '        set_={"last_ref_at": payloads.c.last_ref_at},',
        (FINISHES + "storing_a_text_again_says_when_it_was_last_needed",),
    ),
    Break(
        "hit-does-not-hold-on-to-its-texts",
        "I20",
        LEDGER,
        'yield Step(sql.TOUCH_PAYLOADS, {"workspace_id": run.workspace_id, "source_run_id": answer.run_id})',
        "pass",
        (GAPS + "a_hit_renews_the_texts_that_it_refers_to",),
    ),
    Break(
        "hit-that-is-recorded-later-does-not-hold-on-to-its-texts",
        "I20",
        LEDGER,
        "sources = sorted({(run.workspace_id, answer.run_id) for run, answer in hits})",
        "sources = sorted({(run.workspace_id, run.run_id) for run, answer in hits})",
        (GAPS + "hits_that_are_recorded_together_renew_the_texts_that_they_refer_to",),
    ),
    Break(
        "only-answers-keep-texts-alive",
        "I20",
        RETENTION,
        'for name in ("request_payload", "response_payload")',
        'for name in ("response_payload",)',
        (PRUNES + "a_text_stays_while_any_run_refers_to_it",),
    ),
    Break(
        "text-is-written-otherwise-than-last-year",
        "I14",
        CODEC,
        'data.isascii() and b"\\x7f" not in data',
        "data.isascii()",
        ("tests/property/test_encodings.py::test_an_answer_is_written_as_pydantic_writes_its_parts",),
    ),
    Break(
        "bomb-is-unpacked",
        "I14",
        CODEC,
        "if not 0 <= zstandard.frame_content_size(frame) <= LARGEST_FRAME:",
        "if zstandard.frame_content_size(frame) < -2:",
        (CODECS + "a_frame_that_says_it_holds_too_much_is_not_opened",),
    ),
    Break(
        "encrypted-frame-is-not-unpacked",
        "I20",
        _HERE + "cipher.py",
        "return PLAIN.decode(_OPENED[codec], opened, workspace_id=workspace_id, address=address)",
        "return opened",
        ("tests/security/test_encryption.py::test_a_long_text_is_compressed_before_it_is_encrypted",),
    ),
)

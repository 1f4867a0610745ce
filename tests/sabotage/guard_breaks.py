"""Breaks of what keeps texts, secrets and files from strangers, and of what only a chance walk has found."""

from tests.sabotage.patch import Break

CIPHER, LEDGER = (f"app/llm/persistence/{name}.py" for name in ("cipher", "ledger"))

_SECURITY = "tests/security/"

GUARD_BREAKS = (
    Break(
        "encrypted-text-may-be-moved",
        "encryption",
        CIPHER,
        "return to_json([workspace_id, address, codec]).encode()",
        'return b""',
        (_SECURITY + "test_encryption.py::test_a_payload_that_was_moved_does_not_open",),
    ),
    Break(
        "anybody-can-test-a-guess-at-a-text",
        "encryption",
        CIPHER,
        "mac = hmac.new(self._address_key, to_json",
        'mac = hmac.new(b"", to_json',
        (_SECURITY + "test_encryption.py::test_no_two_payloads_look_alike_and_an_address_is_no_plain_hash",),
    ),
    Break(
        "only-the-newest-key-reads",
        "encryption",
        CIPHER,
        "for cipher in self._ciphers:",
        "for cipher in self._ciphers[:1]:",
        (_SECURITY + "test_encryption.py::test_after_a_rotation_old_and_new_answers_are_read",),
    ),
    Break(
        "secret-in-a-url-is-shown",
        "redaction",
        "app/llm/redaction.py",
        'return {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}',
        "return {secret}",
        (_SECURITY + "test_secrets.py::test_a_redactor_knows_every_spelling_of_a_secret",),
    ),
    Break(
        "model-name-is-an-address",
        "routing",
        "app/llm/types.py",
        "or _NO_NAME.search(name)",
        "",
        (_SECURITY + "test_smuggling.py::test_a_model_s_name_that_could_be_an_address_is_refused",),
    ),
    Break(
        "waiter-of-a-flight-fences-the-holder-of-its-key",
        "I8",
        LEDGER,
        "if (held := (yield from _flight(run.flight_slot, holder))) is not None: return held",
        "if holder is None and (held := (yield from _flight(run.flight_slot, holder))) is not None:\n"
        "            return held",
        ("tests/conformance/test_gaps.py::test_a_run_that_waits_for_a_flight_fences_nobody",),
    ),
)

"""Redaction: what must not reach a log line or a row, and what must stay readable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.redaction import REDACTED, Redactor

clean = Redactor()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ('{"api_key": "hunter2hunter2"}', "hunter2hunter2"),
        ("x-goog-api-key=abcd1234", "abcd1234"),
        ("password: swordfish", "swordfish"),
        ("GET /v1beta/models?key=abc&alt=sse", "abc"),
        ("the key AIzaSyA1234567890abcdefghijk leaked", "AIzaSyA1234567890abcdefghijk"),
        ("sk-proj-abcdefghijklmnop", "abcdefghijklmnop"),
        ("ghp_abcdefghijklmnopqrst", "abcdefghijklmnopqrst"),
        ("postgresql+asyncpg://me:pass@host/db", "pass"),
        ("write to jane.doe+x@mail.example.org", "jane.doe"),
        ("card 4111 1111 1111 1111", "1111"),
        ("call 123456789012", "123456789012"),
    ],
)
def test_secrets_and_personal_data_are_taken_out(text: str, secret: str):
    assert secret not in clean(text)
    assert REDACTED in clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "ollama:llama3.2 answered 503 after 1250 ms",
        "token limit 8192, max_output_tokens=1024",
        "2026-03-01T10:00:00",
        "0193f5a0-7c1e-7b2a-9d3e-1a2b3c4d5e6f",
        "https://generativelanguage.googleapis.com/v1beta",
        "",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str):
    assert clean(text) == text


def test_a_configured_secret_is_taken_out_wherever_it_stands():
    redact = Redactor(secrets=["open-sesame", "open-sesame-2"])
    assert redact("xopen-sesame-2y open-sesame") == f"x{REDACTED}y {REDACTED}"


def test_a_secret_of_a_few_letters_is_ignored_rather_than_blanking_words():
    assert Redactor(secrets=["", "abc"])("abc abcdef") == "abc abcdef"


def test_rules_of_the_host_application_are_applied_last():
    redact = Redactor(more=[lambda text: text.replace(REDACTED, "(hidden)"), str.upper])
    assert redact("password=swordfish") == "PASSWORD=(HIDDEN)"


@given(
    st.text(), st.text(), st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"]), min_size=8)
)
def test_no_text_around_it_saves_a_configured_secret(before: str, after: str, secret: str):
    assert secret not in Redactor(secrets=[secret])(f"{before}{secret}{after}").replace(REDACTED, "")


@pytest.mark.parametrize(
    "text", ["x" * 65_536, "1 " * 32_768 + "x", "a@" * 32_768, "://" * 20_000, "token " * 10_000]
)
def test_long_hostile_text_is_read_once_and_not_once_a_character(text: str):
    """Quadratic rules would take seconds of the event loop; the outer limit of the suite would stop them."""
    assert isinstance(Redactor()(text * 4), str)

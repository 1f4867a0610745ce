"""The rules that turn a failure into one of our errors, where the wire cannot easily produce it."""

import json
import pickle
from typing import Any

import pytest

from app.llm.errors import (
    LLMAuth,
    LLMBadRequest,
    LLMBadResponse,
    LLMCapability,
    LLMContentFiltered,
    LLMContextExceeded,
    LLMInternal,
    LLMProviderError,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnknown,
)
from app.llm.redaction import Redactor
from app.llm.types import LLMProvider
from app.llm.wire.errors import map_error
from app.llm.wire.exchange import BrokenOff, Unreachable, UnusableReply


def mapped(error: BaseException, **facts: Any) -> LLMProviderError:
    given = {
        "provider": LLMProvider.GEMINI,
        "model": "m",
        "api_base": "https://api.example/v1beta",
        "status": None,
        "headers": {},
        "body_text": "",
        "redact": Redactor(secrets=["the-secret-key"]),
    }
    return map_error(error, **{**given, **facts})


class BadRequestError(Exception):
    """Named as one of LiteLLM's classes."""


class Timeout(Exception):
    """Named as one of LiteLLM's classes."""


class TheirSubclass(BadRequestError):
    """A class of LiteLLM's that is newer than the table."""


@pytest.mark.parametrize(
    ("error", "expected", "paid"),
    [
        (Unreachable("Name or service not known"), LLMUnavailable, False),
        (BrokenOff("ServerDisconnectedError"), LLMUnavailable, True),
        (UnusableReply("the answer is empty"), LLMBadResponse, True),
        (TimeoutError(), LLMTimeout, True),
        (BadRequestError(), LLMBadRequest, False),
        (TheirSubclass(), LLMBadRequest, False),
        (Timeout(), LLMTimeout, True),
        (ValueError("?"), LLMUnknown, True),
        (TypeError("their bug"), LLMInternal, False),
        (ImportError("their bug"), LLMInternal, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_without_a_status_the_class_decides(error: Exception, expected: type[LLMProviderError], paid: object):
    failure = mapped(error)
    assert type(failure) is expected
    assert failure.possibly_paid is paid


def test_a_status_beats_the_class():
    assert type(mapped(BadRequestError(), status=503)) is LLMUnavailable


def test_what_lies_beneath_a_misleading_class_decides_third():
    error = BadRequestError("bad request")
    error.__context__ = ImportError("No module named 'mcp'")
    assert type(mapped(error)) is LLMInternal


def test_a_chain_that_bites_its_tail_ends():
    first, second = BadRequestError(), BadRequestError()
    first.__cause__, second.__cause__ = second, first
    assert type(mapped(first)) is LLMBadRequest


@pytest.mark.parametrize(
    ("beneath", "expected"),
    [(KeyError, LLMBadResponse), (TypeError, LLMBadResponse), (ImportError, LLMInternal)],
)
def test_a_good_answer_that_the_library_cannot_read_is_paid(
    beneath: type[Exception], expected: type[LLMProviderError]
):
    failure = mapped(beneath("x"), status=200)
    assert type(failure) is expected
    assert failure.possibly_paid is True


@pytest.mark.parametrize("error", [TimeoutError(), ValueError("could not be encoded")])
def test_what_was_never_written_was_never_paid(error: Exception):
    assert mapped(error, written=False).possibly_paid is False


def test_a_certificate_that_is_not_trusted_is_not_tried_again_and_names_the_setting():
    failure = mapped(Unreachable("certificate verify failed: self-signed certificate"))
    assert (failure.retryable, failure.fallback) == (False, True)
    assert "set LLM_CA_BUNDLE" in failure.message


def test_a_refused_ollama_says_how_to_start_it():
    failure = mapped(
        Unreachable("Connect call failed"), provider=LLMProvider.OLLAMA, api_base="http://localhost:11434"
    )
    assert "does not answer at http://localhost:11434: start it with `ollama serve`" in failure.message
    assert "LLM_OLLAMA_API_BASE" in failure.message


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (400, "API key expired. Please renew the API key.", LLMAuth),
        (400, '"phi" does not support thinking', LLMCapability),
        (400, "Function calling is not enabled for models/gemma-3", LLMCapability),
        (500, "input length exceeds the context length", LLMContextExceeded),
        (400, "prompt is too long", LLMContextExceeded),
        (400, "request (9000 tokens) exceeds the available context size", LLMContextExceeded),
        (500, "CUDA error: out of memory", LLMUnavailable),
        (418, "I am a teapot", LLMBadRequest),
        (599, "", LLMUnavailable),
        (600, "", LLMUnknown),
    ],
)
def test_the_words_of_the_provider_decide_where_a_status_means_several_things(
    status: int, said: str, expected: type[LLMProviderError]
):
    assert type(mapped(Exception(), status=status, body_text=f'{{"error": "{_escaped(said)}"}}')) is expected


@pytest.mark.parametrize(
    ("status", "named", "expected", "again", "paid"),
    [
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, LLMRateLimited, False, False),
        (429, {"code": "rate_limit_exceeded", "type": "tokens"}, LLMRateLimited, True, False),
        (402, {"type": "billing_error"}, LLMRateLimited, False, False),
        (402, {}, LLMRateLimited, False, False),
        (400, {"message": "Your credit balance is too low to access the API."}, LLMRateLimited, False, False),
        (413, {"code": "rate_limit_exceeded", "type": "tokens"}, LLMRateLimited, False, False),
        (413, {"type": "request_too_large"}, LLMBadRequest, False, False),
        (400, {"code": "tool_use_failed", "type": "invalid_request_error"}, LLMBadResponse, True, True),
        (400, {"code": "json_validate_failed", "type": "invalid_request_error"}, LLMBadResponse, True, True),
        (400, {"code": "context_length_exceeded"}, LLMContextExceeded, False, False),
        (400, {"code": "content_filter"}, LLMContentFiltered, False, False),
        (400, {"code": "invalid_prompt", "type": "invalid_request_error"}, LLMContentFiltered, False, False),
        (400, {"message": "Output blocked by content filtering policy"}, LLMContentFiltered, False, True),
        (400, {"message": "`temperature` may only be set to 1 when thinking is enabled."}, LLMCapability, False, False),
        (400, {"message": "Thinking may not be enabled when tool_choice forces tool use."}, LLMCapability, False, False),
        (400, {"message": "`max_tokens` must be greater than `thinking.budget_tokens`."}, LLMCapability, False, False),
        (400, {"code": 400, "type": ["x"]}, LLMBadRequest, False, False),
    ],
)  # fmt: skip
def test_a_code_or_a_word_of_one_provider_s_says_more_than_the_status(
    status: int,
    named: dict[str, Any],
    expected: type[LLMProviderError],
    again: bool,  # noqa: FBT001
    paid: bool,  # noqa: FBT001
):
    failure = mapped(Exception(), status=status, body_text=json.dumps({"error": named}))
    assert (type(failure), failure.retryable, failure.possibly_paid) == (expected, again, paid)
    assert "capability" not in failure.facts, "nothing of it is lacking for good"


def test_an_overloaded_provider_may_name_a_wait():
    assert mapped(Exception(), status=529, headers={"retry-after": "3"}).retry_after_s == 3


def _escaped(text: str) -> str:
    return text.replace('"', '\\"')


@pytest.mark.parametrize(
    "body",
    ['{"error": {"message": "over\\nquota"}}', '{"error": "over\\nquota"}', "<h1>over</h1>\n<p>quota</p>"],
)
def test_the_words_of_the_provider_are_quoted_on_one_line(body: str):
    assert mapped(Exception(), status=500, body_text=body).message == "gemini:m failed (500); over quota"


def test_long_words_are_cut_and_secrets_taken_out():
    failure = mapped(Exception(), status=500, body_text="the-secret-key " + "x" * 5000)
    assert "the-secret-key" not in failure.message
    assert len(failure.message) < 400


def test_a_secret_is_taken_out_of_what_the_connection_said():
    assert "the-secret-key" not in mapped(Unreachable("proxy the-secret-key refused")).message


@pytest.mark.parametrize("header", ["nan", "-5", "1e9", "1_0", "Wed, 99 Oct 2099", ""])
def test_a_wait_that_makes_no_sense_is_no_wait(header: str):
    assert mapped(Exception(), status=429, headers={"retry-after": header}).retry_after_s is None


def test_a_date_that_has_passed_is_no_wait_at_all():
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert mapped(Exception(), status=503, headers=headers).retry_after_s == 0.0


def test_a_wait_is_read_from_the_details_of_google():
    body = '{"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.5s"}]}}'
    assert mapped(Exception(), status=429, body_text=body).retry_after_s == 3.5


def test_a_mapped_error_survives_a_trip_to_another_process():
    failure = pickle.loads(pickle.dumps(mapped(Exception(), status=429, headers={"retry-after": "7"})))  # noqa: S301  # our own bytes
    assert (type(failure).code, failure.retry_after_s, failure.facts["http_status"]) == (
        "rate_limited",
        7.0,
        429,
    )

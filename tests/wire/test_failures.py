"""Every way a provider fails, over the wire: which error it becomes, whether it may have been paid, one send each."""

import asyncio
import inspect
from typing import Any

import pytest

from app.llm.errors import (
    LLMAuth,
    LLMBadRequest,
    LLMBadResponse,
    LLMCapability,
    LLMContentFiltered,
    LLMContextExceeded,
    LLMModelNotFound,
    LLMProviderError,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnknown,
)
from app.llm.messages import Message, ToolSpec
from app.llm.providers import Catalog
from app.llm.testing import Reply
from app.llm.types import LLMRequest
from app.llm.wire.errors import BY_CLASS
from tests.wire.conftest import Rig, in_both_lanes

PAID, FREE = True, False
SHORT = LLMRequest(messages=(Message.user("Hello"),), max_output_tokens=50)
TRUNCATED_GZIP = Reply.raw(b"\x1f\x8b\x08 no gzip", headers={"Content-Encoding": "gzip"})

EITHER = {
    "400": (Reply.status(400), LLMBadRequest, FREE),
    "409": (Reply.status(409), LLMBadRequest, FREE),
    "413": (Reply.status(413), LLMBadRequest, FREE),
    "415": (Reply.status(415), LLMBadRequest, FREE),
    "422": (Reply.status(422), LLMBadRequest, FREE),
    "401": (Reply.status(401), LLMAuth, FREE),
    "403": (Reply.status(403), LLMAuth, FREE),
    "404": (Reply.status(404), LLMModelNotFound, FREE),
    "408": (Reply.status(408), LLMTimeout, PAID),
    "429": (Reply.rate_limited(), LLMRateLimited, FREE),
    "500": (Reply.status(500), LLMUnavailable, PAID),
    "502": (Reply.raw(b"<h1>Bad gateway</h1>", status=502, content_type="text/html"), LLMUnavailable, PAID),
    "503": (Reply.status(503, message="overloaded"), LLMUnavailable, PAID),
    "504": (Reply.status(504), LLMUnavailable, PAID),
    "529": (Reply.status(529), LLMUnavailable, PAID),
    "error that is not JSON": (Reply.raw(b"\xff\x00 oops", status=500), LLMUnavailable, PAID),
    "error that never ends": (Reply.raw(b"x" * 200_000, status=500), LLMUnavailable, PAID),
    "status that makes no sense": (Reply.status(799), LLMUnknown, PAID),
    "redirect": (Reply.redirect("http://127.0.0.1:9/elsewhere"), LLMUnavailable, FREE),
    "context too long": (Reply.context_exceeded(), LLMContextExceeded, FREE),
    "reset before the headers": (Reply.reset(), LLMUnavailable, PAID),
    "closed before the headers": (Reply.reset(abrupt=False), LLMUnavailable, PAID),
    "reset after the headers": (Reply.reset(before_headers=False), LLMUnavailable, PAID),
    "truncated body": (Reply.truncated(), LLMUnavailable, PAID),
    "broken compression": (TRUNCATED_GZIP, LLMUnavailable, PAID),
    "HTML": (Reply.garbage(), LLMBadResponse, PAID),
    "nothing": (Reply.empty(), LLMBadResponse, PAID),
    "a list": (Reply.raw(b"[]"), LLMBadResponse, PAID),
    "nesting without end": (Reply.raw(b"[" * 200_000), LLMBadResponse, PAID),
    "an object of another kind": (Reply.raw(b'{"hello": 1}'), LLMBadResponse, PAID),
    "empty text": (Reply.text(""), LLMBadResponse, PAID),
    "only thoughts": (Reply.text("", thinking="hm"), LLMBadResponse, PAID),
}

ONLY_OLLAMA = {
    "model was only loaded": (Reply.load(), LLMBadResponse, PAID),
    "prompt was cut silently": (Reply.truncated_context("fine"), LLMContextExceeded, PAID),
    "stopped early by the window": (
        Reply.text("fi", finish="length", usage=(90, 10)),
        LLMContextExceeded,
        PAID,
    ),
    "out of memory": (Reply.out_of_memory(), LLMUnavailable, FREE),
    "busy": (Reply.busy(), LLMUnavailable, FREE),
    "no tools": (Reply.no_tools(), LLMCapability, FREE),
    "a message that is no object": (Reply.raw(b'{"message": "hi"}'), LLMBadResponse, PAID),
    "content that is no text": (Reply.raw(b'{"message": {"content": [1]}}'), LLMBadResponse, PAID),
}

ONLY_GEMINI = {
    "answer filtered": (Reply.blocked("SAFETY"), LLMContentFiltered, PAID),
    "recitation": (Reply.blocked("RECITATION"), LLMContentFiltered, PAID),
    "prompt filtered": (Reply.prompt_blocked(), LLMContentFiltered, PAID),
    "malformed call": (Reply.malformed_function_call(), LLMBadResponse, PAID),
    "no candidates": (Reply.no_candidates(), LLMBadResponse, PAID),
    "candidates that are no list": (Reply.raw(b'{"candidates": {"a": 1}}'), LLMBadResponse, PAID),
    "parts that are no objects": (
        Reply.raw(b'{"candidates": [{"content": {"parts": ["hi"]}}]}'),
        LLMBadResponse,
        PAID,
    ),
    "no vision": (
        Reply.status(400, message="Image input modality is not enabled for models/gemma-3-1b-it"),
        LLMCapability,
        FREE,
    ),
}


def table(rows: dict[str, tuple[Reply, type[LLMProviderError], bool]]) -> Any:
    return pytest.mark.parametrize(("reply", "error", "paid"), rows.values(), ids=rows.keys())


def is_as_the_table_says(failure: LLMProviderError, rig: Rig, error: type[LLMProviderError], paid) -> None:
    assert type(failure) is error
    assert failure.possibly_paid is paid
    assert (failure.facts["provider"], failure.facts["model"]) == (
        rig.candidate.provider,
        rig.candidate.model,
    )
    assert failure.message.startswith(rig.candidate.name)
    assert "\n" not in failure.message
    assert len(failure.message) < 600


@table(EITHER)
async def test_a_failure_of_either_provider_becomes_the_error_of_the_table_after_one_send(
    rig: Rig, reply: Reply, error: type[LLMProviderError], paid
):
    is_as_the_table_says(await rig.failure(reply, SHORT), rig, error, paid)


@table(ONLY_OLLAMA)
async def test_a_failure_of_ollama_becomes_the_error_of_the_table_after_one_send(
    on_ollama: Rig, reply: Reply, error: type[LLMProviderError], paid
):
    is_as_the_table_says(await on_ollama.failure(reply, SHORT), on_ollama, error, paid)


@table(ONLY_GEMINI)
async def test_a_failure_of_gemini_becomes_the_error_of_the_table_after_one_send(
    on_gemini: Rig, reply: Reply, error: type[LLMProviderError], paid
):
    is_as_the_table_says(await on_gemini.failure(reply, SHORT), on_gemini, error, paid)


async def test_a_refused_connection_cannot_have_been_paid(rig: Rig):
    rig.stub.down()
    with pytest.raises(LLMUnavailable, match=r"does not answer at http://127\.0\.0\.1:\d+") as caught:
        await rig.send()
    assert caught.value.possibly_paid is False
    assert rig.stub.sends == 0


@in_both_lanes
async def test_a_provider_that_comes_back_is_asked_again_on_a_new_connection(rig: Rig):
    await rig.send()
    await asyncio.to_thread(rig.stub.down)  # meanwhile the client sees its idle connection end
    rig.stub.up()
    assert (await rig.send()).parts
    assert rig.stub.sends == 2


async def test_silence_until_the_deadline_may_have_been_paid(rig: Rig):
    with rig.stub.hold():
        failure = await rig.failure(Reply.text("late"), timeout_s=0.3)
    assert type(failure) is LLMTimeout
    assert failure.possibly_paid is True


@in_both_lanes
async def test_a_body_that_drips_past_the_deadline_is_cut_off_there(rig: Rig):
    failure = await rig.failure(Reply.drip(0.05, Reply.text("x" * 1000)), timeout_s=0.3)
    assert type(failure) is LLMTimeout
    await asyncio.to_thread(rig.stub.wait_for_abandoned, 1)


@in_both_lanes
async def test_a_reply_larger_than_the_cap_is_dropped_unread(rig: Rig):
    failure = await rig.failure(Reply.huge(64 * 2**20))
    assert type(failure) is LLMBadResponse
    assert "larger than 16,777,216 bytes" in failure.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17.0), ("0", 0.0), ("1.5", 1.5), ("Wed, 21 Oct 2099 07:28:30 GMT", 30.0), ("soon", None)],
)
async def test_the_wait_that_a_provider_asks_for_is_read_from_its_header(
    rig: Rig, header: str, seconds: float | None
):
    headers = {"Retry-After": header, "Date": "Wed, 21 Oct 2099 07:28:00 GMT"}
    failure = await rig.failure(Reply.status(429, headers=headers))
    assert failure.retry_after_s == seconds


async def test_the_wait_that_a_stub_of_each_provider_asks_for_is_found_in_its_own_place(rig: Rig):
    assert (await rig.failure(Reply.rate_limited(23))).retry_after_s == 23.0


async def test_a_model_that_does_not_fit_into_memory_is_not_asked_again(on_ollama: Rig):
    failure = await on_ollama.failure(Reply.out_of_memory())
    assert (failure.retryable, failure.fallback) == (False, True)
    assert LLMUnavailable.retryable is True


async def test_a_busy_ollama_is_asked_again(on_ollama: Rig):
    failure = await on_ollama.failure(Reply.busy())
    assert (failure.retryable, failure.fallback) == (True, True)


@in_both_lanes
async def test_a_redirect_receives_nothing(rig: Rig, gemini: Any, ollama: Any):
    other = gemini if rig.stub is ollama else ollama
    await rig.failure(Reply.redirect(f"{other.base_url}/api/chat"))
    assert other.requests == ()


async def test_an_answer_that_ran_out_of_tokens_before_any_text_is_not_asked_for_again(rig: Rig):
    failure = await rig.failure(Reply.text("", thinking="hm", finish="length"))
    assert type(failure) is LLMBadResponse
    assert failure.retryable is False
    assert "max_output_tokens" in failure.message


async def test_what_a_bad_answer_consumed_is_reported(rig: Rig):
    failure = await rig.failure(Reply.text("", usage=(12, 3)))
    assert failure.facts["usage"].total_tokens == 15


async def test_the_missing_capability_is_named_for_the_matrix(on_ollama: Rig):
    tools = (ToolSpec(name="weather"),)
    failure = await on_ollama.failure(
        Reply.no_tools(), LLMRequest(messages=(Message.user("?"),), tools=tools)
    )
    assert failure.facts["capability"] == "tools"


async def test_a_missing_model_says_how_to_get_it(on_ollama: Rig, settings: Any):
    on_ollama.candidate = Catalog.from_settings(settings).pinned("ollama:phi4:14b")
    with pytest.raises(LLMModelNotFound, match="run `ollama pull phi4:14b`"):
        await on_ollama.send()


@pytest.mark.parametrize("overrides", [{"gemini_api_key": "a-wrong-key-of-mine"}])
async def test_a_wrong_key_is_an_auth_error_that_names_the_variable_and_not_the_key(on_gemini: Rig):
    with pytest.raises(LLMAuth, match="check LLM_GEMINI_API_KEY") as caught:
        await on_gemini.send()
    assert "a-wrong-key" not in repr(caught.value)
    assert on_gemini.stub.sends == 1


@pytest.mark.parametrize("overrides", [{"gemini_api_key": None}])
async def test_without_a_key_of_ours_nothing_is_sent_even_if_the_environment_has_one(
    on_gemini: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GOOGLE_API_KEY", "from-the-environment")
    with pytest.raises(LLMAuth, match="no credentials"):
        await on_gemini.send()
    assert on_gemini.stub.requests == ()
    assert on_gemini.sends_begun == []


def test_every_exception_class_of_litellm_is_mapped_on_purpose():
    import litellm.exceptions

    raised = {
        name
        for name, member in vars(litellm.exceptions).items()
        if inspect.isclass(member) and issubclass(member, BaseException)
    }
    assert set(BY_CLASS) == raised

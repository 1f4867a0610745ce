"""A recorded call as a line: what is in it, what is not, and what is read back."""

import json
from typing import Any

import pytest

from app.llm import errors
from app.llm.cassettes.lines import Asked, Interaction, NoLine, Outcome, kept, kinds, read_line
from app.llm.errors import LLMProviderError, LLMRateLimited, LLMUnavailable
from app.llm.fingerprint import prompt_sha256
from app.llm.messages import (
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from app.llm.ports import ProviderReply
from app.llm.redaction import Redactor
from app.llm.types import FinishReason, LLMRequest, ServedFrom, TokenUsage
from tests.support.ledger import request, route_of

SECRET = "correct-horse-battery"  # noqa: S105  # what must not show
REDACT = Redactor(secrets=[SECRET])
FIRST = route_of(request()).kept[0]
PARTS = (
    ThinkingPart(text="hm", signature="c2VhbA=="),
    TextPart(text="Ask them.\N{LINE SEPARATOR}Now."),
    ToolCallPart(id="toolu_01", name="lever", arguments={"number": 12, "to": None, "a": 0.5}, signature="x"),
)
USAGE = TokenUsage(input_tokens=9, output_tokens=4, cached_input_tokens=2)
REPLY = ProviderReply(parts=PARTS, finish_reason=FinishReason.TOOL_CALLS, usage=USAGE)


def of(outcome: Outcome, asked: LLMRequest | None = None, **more: Any) -> Interaction:
    return kept(Asked.of(asked or request(), FIRST, REDACT), outcome, more.get("partial", ()), REDACT)


def body(interaction: Interaction) -> dict[str, Any]:
    return dict(json.loads(interaction.line()))


def test_a_line_says_what_was_asked_and_what_came_back_and_nothing_else():
    asked = request(
        "Lock 12",
        temperature=0,
        tools=(ToolSpec(name="lever"),),
        idempotency_key="k",
        metadata={"stage": "s"},
    )
    said = body(of(REPLY, asked))
    assert list(said) == ["candidate", "request", "response", "v"]
    assert said["candidate"] == "ollama:first"
    assert sorted(said["request"]) == ["messages", "temperature", "tools"]
    assert said["response"] == {
        "finish_reason": "tool_calls",
        "parts": [
            {"text": "hm", "type": "thinking"},
            {"text": "Ask them.\N{LINE SEPARATOR}Now.", "type": "text"},
            {"arguments": {"a": 0.5, "number": 12, "to": None}, "name": "lever", "type": "tool_call"},
        ],
        "usage": {"cached_input_tokens": 2, "input_tokens": 9, "output_tokens": 4},
    }
    assert "\n" not in of(REPLY).line()


def test_an_answer_is_read_back_as_one_out_of_a_cassette():
    read = read_line(of(REPLY).line())
    assert isinstance(read.outcome, ProviderReply)
    assert read.outcome.served_from is ServedFrom.CASSETTE
    assert (read.outcome.usage, read.outcome.finish_reason) == (USAGE, FinishReason.TOOL_CALLS)
    assert [part.model_dump(exclude={"signature"}) for part in read.outcome.parts] == [
        part.model_dump(exclude={"signature"}) | ({"id": "call_0"} if part.type == "tool_call" else {})
        for part in PARTS
    ]
    assert all(part.signature is None for part in read.outcome.parts if not isinstance(part, TextPart))


@pytest.mark.parametrize("code", sorted(kinds()))
def test_every_error_of_a_provider_is_read_back(code: str):
    kind = kinds()[code]
    error = kind(
        "it failed", provider="ollama", model="first", http_status=418, retry_after_s=1.5, usage=USAGE
    )
    error.retryable = not kind.retryable
    error.possibly_paid = not kind.possibly_paid
    read = read_line(of(error, partial=PARTS[1:2]).line())
    assert type(read.outcome) is kind
    assert isinstance(read.outcome, LLMProviderError)
    assert read.outcome.facts == {**error.facts, "served_from": "cassette"}
    assert (read.outcome.message, read.partial) == ("it failed", PARTS[1:2])
    for name in ("retryable", "fallback", "possibly_paid"):
        assert getattr(read.outcome, name) is getattr(error, name)


def test_every_error_of_the_tree_that_a_provider_can_cause_is_known():
    below = {
        each.code
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, LLMProviderError)
    }
    assert below - set(kinds()) == {LLMProviderError.code}


def test_a_cancelled_call_is_read_back_as_one():
    read = read_line(of(None, partial=PARTS[1:2]).line())
    assert (read.outcome, read.partial) == (None, PARTS[1:2])


def test_secrets_are_in_no_part_of_a_line():
    asked = LLMRequest(
        messages=(
            Message.system(f"Use {SECRET}"),
            Message.user(f"key={SECRET}, write to ann@example.org"),
            Message.assistant(ToolCallPart(id="1", name="login", arguments={"with": [{"word": SECRET}]})),
            Message.tool(ToolResultPart(id="1", name="login", content=SECRET)),
        ),
        tools=(ToolSpec(name="login", description=SECRET, parameters={"type": "object", "title": SECRET}),),
        stop=(SECRET,),
    )
    call = ToolCallPart(id="2", name="login", arguments={"word": SECRET})
    reply = ProviderReply(
        parts=(TextPart(text=SECRET), ThinkingPart(text=SECRET), call),
        finish_reason=FinishReason.STOP,
        usage=USAGE,
    )
    for outcome in (reply, LLMUnavailable(f"no {SECRET}", provider="ollama", note=SECRET), None):
        line = of(outcome, asked, partial=(TextPart(text=SECRET),)).line()
        assert SECRET not in line
        assert "ann@example.org" not in line


def test_who_records_sees_what_is_replayed():
    reply = ProviderReply(
        parts=(TextPart(text=f"It is {SECRET}."),), finish_reason=FinishReason.STOP, usage=USAGE
    )
    recorded = of(reply)
    read = read_line(recorded.line())
    assert isinstance(recorded.outcome, ProviderReply)
    assert isinstance(read.outcome, ProviderReply)
    assert recorded.outcome.parts == read.outcome.parts == (TextPart(text="It is [redacted]."),)
    error = of(LLMRateLimited("slow", provider="ollama", http_status=429, retry_after_s=2.0)).outcome
    assert isinstance(error, LLMRateLimited)
    assert (error.message, error.retry_after_s, error.facts.get("served_from")) == ("slow", 2.0, None)


def test_a_request_is_found_by_the_fingerprint_of_what_is_kept():
    plain = request("Hello", temperature=1.0)
    assert of(REPLY, plain).asked.fingerprint == f"ollama:first {prompt_sha256(plain)}"
    read = read_line(of(REPLY, plain).line())
    assert read.asked.fingerprint == of(REPLY, plain).asked.fingerprint
    hidden = request(f"Hello {SECRET}")
    assert of(REPLY, hidden).asked.fingerprint == of(REPLY, request("Hello [redacted]")).asked.fingerprint
    assert of(REPLY, hidden).asked.fingerprint != of(REPLY, request("Hello")).asked.fingerprint


def test_an_image_is_its_digest():
    asked = LLMRequest(
        messages=(Message.user("See", ImagePart(data=b"\x89PNG" * 1000, media_type="image/png")),)
    )
    line = of(REPLY, asked).line()
    assert len(line) < 1000
    other = LLMRequest(
        messages=(Message.user("See", ImagePart(data=b"\x89PNG" * 999, media_type="image/png")),)
    )
    assert of(REPLY, other).asked.fingerprint != read_line(line).asked.fingerprint


def test_half_a_character_is_kept():
    reply = ProviderReply(parts=(TextPart(text="\ud83d"),), finish_reason=FinishReason.STOP, usage=USAGE)
    line = of(reply).line()
    assert line.isascii()
    assert read_line(line.encode()).outcome == read_line(line).outcome


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"v": 2}, "it is of version 2, and this one reads 1"),
        ({"candidate": "Nobody:x"}, "is not a valid LLMProvider"),
        ({"response": {"error": "no_such", "message": ""}}, "'no_such' is no error of a provider"),
        ({"response": {"parts": []}}, "KeyError"),
        ({"response": {"parts": [{"type": "text"}], "finish_reason": "stop", "usage": {}}}, "text"),
        ({"response": {"error": "timeout", "message": "", "facts": {"provider": "x"}}}, "TypeError"),
        ({"request": None}, "TypeError"),
    ],
)
def test_what_is_no_line_says_why(change: dict[str, Any], why: str):
    with pytest.raises(NoLine, match=why):
        read_line(json.dumps({**body(of(REPLY)), **change}))
    with pytest.raises(NoLine, match="JSONDecodeError"):
        read_line(b'{"candidate": ')

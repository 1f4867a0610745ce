"""The shapes of requests and answers: what they refuse, and what they derive."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from app.llm.messages import (
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.types import (
    Attempt,
    FinishReason,
    LLMCallContext,
    LLMConstraints,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    RequestVariant,
    ServedFrom,
    TokenUsage,
)

IMAGE = ImagePart(data=b"\x89PNG\xff", media_type="image/png")
CALL = ToolCallPart(id="1", name="look", arguments={"at": [1, 2.5, None]}, signature="opaque")
LOOK, LISTEN = ToolSpec(name="look"), ToolSpec(name="listen")


def ask(**fields: Any) -> LLMRequest:
    return LLMRequest(**{"messages": (Message.user("hi"),), **fields})


# -- messages


def test_plain_text_becomes_a_part():
    assert Message.model_validate({"role": "user", "content": "hi"}) == Message.user("hi")
    assert Message.user("a", IMAGE, "b").text == "ab"


@pytest.mark.parametrize(
    ("role", "part"),
    [
        ("system", IMAGE),
        ("user", CALL),
        ("user", ThinkingPart(text="hm")),
        ("assistant", IMAGE),
        ("assistant", ToolResultPart(id="1", name="look", content="")),
        ("tool", TextPart(text="hi")),
    ],
)
def test_a_part_that_does_not_fit_the_role_is_refused(role: str, part: Any):
    with pytest.raises(ValidationError, match=f"a {role} message cannot hold a {part.type} part"):
        Message.model_validate({"role": role, "content": [part]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "user", "content": []},
        {"role": "developer", "content": "hi"},
        {"role": "user", "content": "hi", "name": "jane"},
        {"role": "user", "content": [{"type": "audio", "data": "x"}]},
    ],
)
def test_a_message_of_an_unknown_form_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Message.model_validate(wrong)


def test_an_image_is_read_from_a_data_url():
    assert ImagePart.from_data_url("data:image/png;base64,iVBORw==").data == b"\x89PNG"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/a.png", "remote URLs are refused"),
        ("data:image/png,abc", "remote URLs are refused"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/svg+xml;base64,aGk=", "media_type"),
        ("data:image/png;base64,", "at least 1 byte"),
    ],
)
def test_an_image_that_is_not_in_the_url_is_refused(url: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        ImagePart.from_data_url(url)


def test_a_conversation_survives_json():
    request = ask(
        messages=(
            Message.system("Be brief."),
            Message.user("What is this?", IMAGE),
            Message.assistant(ThinkingPart(text="hm", signature="s"), CALL),
            Message.tool(ToolResultPart(id="1", name="look", content="a cat")),
        ),
        tools=(LOOK,),
        tool_choice=ToolChoiceTool(name="look"),
        response_format=ResponseFormat.of_schema({"type": "object"}),
        variants={LLMProvider.GEMINI: RequestVariant(messages=(Message.user(IMAGE),))},
    )
    assert LLMRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize("name", ["", "two words", "9lives", "x" * 65, "größe"])
def test_a_tool_name_that_some_provider_refuses_is_refused_here(name: str):
    with pytest.raises(ValidationError):
        ToolSpec(name=name)


def test_a_schema_is_given_exactly_with_its_type():
    with pytest.raises(ValidationError, match="exactly when"):
        ResponseFormat(type="json_schema")
    with pytest.raises(ValidationError, match="exactly when"):
        ResponseFormat(type="json_object", json_schema={})


# -- requests


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": ()},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0},
        {"max_output_tokens": 0},
        {"seed": 2**31},
        {"timeout_s": 0},
        {"timeout_s": math.inf},
        {"thinking": "enormous"},
        {"model": "llama3.2"},
        {"model": "ollama: x"},
        {"model": "http://host/x"},
        {"idempotency_key": ""},
        {"idempotency_key": " "},
        {"idempotency_key": "a\nb"},
        {"idempotency_key": "k" * 256},
        {"metadata": {"x": "y" * 4096}},
        {"metadata": {"x": math.nan}},
        {"metadata": {"x": {1, 2}}},
        {"temprature": 1},
    ],
)
def test_a_request_outside_its_limits_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        ask(**wrong)


@pytest.mark.parametrize(
    "model", ["ollama:llama3.2:3b", "ollama:hf.co/user/model:Q4", "gemini:gemini-2.5-flash"]
)
def test_a_model_is_pinned_by_provider_and_model(model: str):
    assert ask(model=model).model == model


def test_tools_and_tool_choice_must_fit_together():
    with pytest.raises(ValidationError, match="two tools have the same name"):
        ask(tools=(LOOK, LOOK))
    with pytest.raises(ValidationError, match="'listen', which is not among the tools"):
        ask(tools=(LOOK,), tool_choice=ToolChoiceTool(name="listen"))
    with pytest.raises(ValidationError, match="there are no tools"):
        ask(tool_choice="required")


def test_a_request_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        ask().seed = 1


def test_a_variant_replaces_its_fields_for_its_provider_only():
    variant = RequestVariant(messages=(Message.user("short"),), tools=(LISTEN,))
    request = ask(tools=(LOOK,), tool_choice="required", seed=7, variants={LLMProvider.GEMINI: variant})
    sent = request.as_sent_to(LLMProvider.GEMINI)
    assert (sent.messages, sent.tools, sent.tool_choice, sent.seed) == (variant.messages, (LISTEN,), None, 7)
    assert sent.variants == {}
    assert request.as_sent_to(LLMProvider.OLLAMA) is request


@pytest.mark.parametrize("field", sorted(LLMCallContext.model_fields))
def test_a_context_holds_printable_text_only(field: str):
    assert getattr(LLMCallContext(**{field: "ws-1"}), field) == "ws-1"
    for wrong in ("", "  ", "a\x00b", "a\r\nb", "x" * 256):
        with pytest.raises(ValidationError):
            LLMCallContext(**{field: wrong})


# -- answers


def test_a_total_is_unknown_while_a_part_of_it_is():
    assert TokenUsage(input_tokens=3, output_tokens=4).total_tokens == 7
    assert TokenUsage(input_tokens=3).total_tokens is None
    assert TokenUsage(output_tokens=0).total_tokens is None


def test_an_answer_shows_its_text_its_calls_and_its_thinking():
    response = LLMResponse(
        parts=(TextPart(text="a"), ThinkingPart(text="hm"), CALL, TextPart(text="b")),
        finish_reason=FinishReason.TOOL_CALLS,
        usage=TokenUsage(),
        original_usage=TokenUsage(),
        provider=LLMProvider.OLLAMA,
        model="m",
        run_id="r",
        served_from=ServedFrom.LIVE,
    )
    assert (response.text, response.thinking, response.tool_calls) == ("ab", "hm", (CALL,))
    assert response.model_copy(update={"parts": (CALL,)}).thinking is None
    assert LLMResponse.model_validate_json(response.model_dump_json()) == response


def test_an_attempt_survives_json():
    now = datetime(2026, 3, 1, tzinfo=UTC)
    attempt = Attempt(
        ordinal=1,
        provider=LLMProvider.GEMINI,
        model="m",
        candidate_sha256="c",
        status="FAILED",
        started_at=now,
        finished_at=now,
        latency_ms=1.5,
        error_code="timeout",
        possibly_paid=True,
    )
    assert Attempt.model_validate_json(attempt.model_dump_json()) == attempt


def test_a_model_name_with_a_control_character_is_refused():
    with pytest.raises(ValidationError, match="printable"):
        LLMRequest(messages=(Message.user("x"),), model="ollama:a\x00b")


def test_the_name_of_a_provider_is_open_and_equals_itself():
    own = LLMProvider("lighthouse")
    assert (own, own.value, own.name, f"{own}") == ("lighthouse", "lighthouse", "LIGHTHOUSE", "lighthouse")
    assert {LLMProvider("lighthouse"): 1}[own] == 1
    assert own not in set(LLMProvider)
    assert LLMConstraints.model_validate_json('{"providers": ["lighthouse"]}').providers == (own,)


@pytest.mark.parametrize("name", ["", "Beam", "a b", "9lives", "a" * 41, "beam\n", 5])
def test_what_could_be_no_provider_is_no_name_of_one(name: object):
    with pytest.raises(ValueError, match="is not a valid LLMProvider"):
        LLMProvider(name)

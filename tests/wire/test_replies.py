"""What comes back: an answer of either provider in our shapes, free of what LiteLLM invents."""

import json
from typing import Any

import pytest

from app.llm.errors import LLMBadResponse
from app.llm.messages import Message, TextPart, ThinkingPart, ToolCallPart, ToolSpec
from app.llm.testing import Call, Reply
from app.llm.types import FinishReason, LLMRequest, TokenUsage
from tests.wire.conftest import Rig

TOOLS = LLMRequest(messages=(Message.user("?"),), tools=(ToolSpec(name="weather"),))


def from_ollama(message: dict[str, Any], **rest: Any) -> Reply:
    return Reply.raw(
        json.dumps({"model": "llama3.2", "message": message, "done": True, **rest}).encode("utf-8")
    )


def from_gemini(*parts: dict[str, Any], usage: Any = None) -> Reply:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP"}
    body = {"candidates": [candidate], **({} if usage is None else {"usageMetadata": usage})}
    return Reply.raw(json.dumps(body).encode())


async def test_text_comes_back_with_its_usage_and_reason(rig: Rig):
    reply = await rig.answer(Reply.text("Grüße 🚂", usage=(10, 5)))
    assert reply.parts == (TextPart(text="Grüße 🚂"),)
    assert reply.finish_reason is FinishReason.STOP
    assert reply.usage == TokenUsage(input_tokens=10, output_tokens=5)
    assert reply.http_status == 200


async def test_thoughts_come_back_before_the_text(rig: Rig):
    reply = await rig.answer(Reply.text("Four.", thinking="2 + 2"))
    assert reply.parts == (ThinkingPart(text="2 + 2"), TextPart(text="Four."))


async def test_thoughts_within_the_text_are_taken_out_of_it(on_ollama: Rig):
    reply = await on_ollama.answer(Reply.text("<think>2 + 2</think>Four."))
    assert reply.parts == (ThinkingPart(text="2 + 2"), TextPart(text="Four."))


async def test_calls_come_back_with_ids_that_are_the_same_each_time(rig: Rig):
    reply = await rig.answer(
        Reply.tool_call("weather", {"city": "Oslo"}, more=[("weather", {"city": "Rome"})]), TOOLS
    )
    assert reply.parts == (
        ToolCallPart(id="call_0", name="weather", arguments={"city": "Oslo"}),
        ToolCallPart(id="call_1", name="weather", arguments={"city": "Rome"}),
    )
    assert reply.finish_reason is FinishReason.TOOL_CALLS


async def test_an_id_of_the_provider_is_replaced_too(rig: Rig):
    reply = await rig.answer(Reply.tool_calls([Call(name="weather", arguments={}, id="6b1f")]), TOOLS)
    assert reply.parts == (ToolCallPart(id="call_0", name="weather"),)


async def test_a_thought_signature_is_kept_beside_the_call_not_in_its_id(on_gemini: Rig):
    calls = [Call(name="weather", arguments={}, signature="U2ln"), Call(name="weather", arguments={})]
    reply = await on_gemini.answer(Reply.tool_calls(calls, text="Let me look."), TOOLS)
    assert reply.parts == (
        TextPart(text="Let me look."),
        ToolCallPart(id="call_0", name="weather", signature="U2ln"),
        ToolCallPart(id="call_1", name="weather"),
    )


async def test_a_signed_thought_keeps_its_signature(on_gemini: Rig):
    thought = {"text": "2 + 2", "thought": True, "thoughtSignature": "U2ln"}
    reply = await on_gemini.answer(from_gemini(thought, {"text": "Four."}))
    assert reply.parts == (ThinkingPart(text="2 + 2", signature="U2ln"), TextPart(text="Four."))


async def test_a_call_without_arguments_is_a_call_with_none(on_gemini: Rig):
    reply = await on_gemini.answer(from_gemini({"functionCall": {"name": "weather"}}), TOOLS)
    assert reply.parts == (ToolCallPart(id="call_0", name="weather"),)


async def test_an_answer_cut_by_the_limit_says_so(rig: Rig):
    request = LLMRequest(messages=(Message.user("?"),), max_output_tokens=5)
    reply = await rig.answer(Reply.text("On and on", finish="length", usage=(9, 5)), request)
    assert reply.finish_reason is FinishReason.LENGTH


async def test_missing_usage_is_unknown_and_the_paid_answer_is_kept(rig: Rig):
    reply = await rig.answer(Reply.no_usage("Fine."))
    assert reply.parts == (TextPart(text="Fine."),)
    assert reply.usage == TokenUsage()


@pytest.mark.parametrize("count", [-1, 1.5, True, "12", None, 2**63, float("nan")])
async def test_an_impossible_count_is_unknown(on_ollama: Rig, count: Any):
    message = {"role": "assistant", "content": "Fine."}
    reply = await on_ollama.answer(from_ollama(message, prompt_eval_count=count, eval_count=3))
    assert reply.usage == TokenUsage(input_tokens=None, output_tokens=3)


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}, (9, 4)),
        (
            {
                "promptTokenCount": 9,
                "candidatesTokenCount": 4,
                "thoughtsTokenCount": 6,
                "totalTokenCount": 19,
            },
            (9, 10),
        ),
        (
            {
                "promptTokenCount": 9,
                "candidatesTokenCount": 10,
                "thoughtsTokenCount": 6,
                "totalTokenCount": 19,
            },
            (9, 10),
        ),
        ({"promptTokenCount": 9, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 4}, (11, 4)),
        ({"promptTokenCount": -9, "candidatesTokenCount": 4}, (None, 4)),
        ({"promptTokenCount": 9}, (9, None)),
        ([1, 2], (None, None)),
    ],
    ids=["plain", "thoughts beside", "thoughts included", "tool use", "negative", "half", "no object"],
)
async def test_gemini_s_thoughts_are_counted_once_as_output(on_gemini: Rig, counts: Any, usage: Any):
    reply = await on_gemini.answer(from_gemini({"text": "Fine."}, usage=counts))
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == usage


async def test_tokens_that_gemini_read_from_its_own_cache_are_told(on_gemini: Rig):
    counts = {"promptTokenCount": 9, "cachedContentTokenCount": 5, "candidatesTokenCount": 4}
    reply = await on_gemini.answer(from_gemini({"text": "Fine."}, usage=counts))
    assert reply.usage == TokenUsage(input_tokens=9, output_tokens=4, cached_input_tokens=5)


async def test_a_lone_surrogate_is_replaced_and_other_text_is_left_alone(rig: Rig):
    text = r"a\ud800b \ud83d\ude82 \u0000 c"
    wire = {
        "ollama": f'{{"message": {{"role": "assistant", "content": "{text}"}}, "done": true}}',
        "gemini": f'{{"candidates": [{{"content": {{"parts": [{{"text": "{text}"}}]}}}}]}}',
    }[rig.candidate.provider]
    reply = await rig.answer(Reply.raw(wire.encode()))
    assert reply.parts == (TextPart(text="a\ufffdb 🚂 \x00 c"),)


async def test_bytes_that_are_no_utf_8_are_replaced(on_ollama: Rig):
    reply = await on_ollama.answer(
        Reply.raw(b'{"message": {"role": "assistant", "content": "a\xffb"}, "done": true}')
    )
    assert reply.parts == (TextPart(text="a\ufffdb"),)


@pytest.mark.parametrize(
    "function",
    [
        {"name": "weather", "arguments": "[1]"},
        {"name": "weather", "arguments": "{broken"},
        {"name": "weather", "arguments": '{"x": NaN}'},
        {"name": "", "arguments": {}},
    ],
)
async def test_a_call_that_cannot_be_made_is_a_bad_response(on_ollama: Rig, function: dict[str, Any]):
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    assert type(await on_ollama.failure(from_ollama(message), TOOLS)) is LLMBadResponse


async def test_a_message_without_content_is_fine_when_it_calls_a_tool(on_ollama: Rig):
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    reply = await on_ollama.answer(from_ollama(message), TOOLS)
    assert reply.parts == (ToolCallPart(id="call_0", name="weather"),)


async def test_a_cached_prefix_that_hides_the_size_of_the_prompt_is_no_error(on_ollama: Rig):
    message = {"role": "assistant", "content": "Fine."}
    reply = await on_ollama.answer(from_ollama(message, done_reason="stop", eval_count=3))
    assert reply.usage == TokenUsage(input_tokens=None, output_tokens=3)

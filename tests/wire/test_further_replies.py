"""What comes back from OpenAI, Groq and Anthropic: whole, as a stream, broken, or as an error."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, deltas_of, parts_of
from app.llm.errors import (
    LLMBadResponse,
    LLMContentFiltered,
    LLMContextExceeded,
    LLMProviderError,
    LLMRateLimited,
    LLMUnavailable,
)
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.testing import Call, End, Failure, Reply, Thought
from app.llm.types import FinishReason, TokenUsage
from tests.wire.conftest import Rig
from tests.wire.corpus import EITHER_SAYS, asks
from tests.wire.further import FURTHER, OF_OPENAI, rig_on
from tests.wire.pairs import ended
from tests.wire.test_requests import CITY, WANTS_CITY, WEATHER

SIGNED = "anthropic:c3R1Yg=="


@pytest.fixture(params=FURTHER)
async def far(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Each of them in turn."""
    async with rig_on(request.param) as rig:
        yield rig


def signed(rig: Rig, text: str) -> ThinkingPart:
    return ThinkingPart(text=text, signature=SIGNED if rig.stub.provider == "anthropic" else None)


async def test_an_answer_comes_with_its_tokens(far: Rig):
    reply = await far.answer(Reply.text("Grüße 🚂\u2028 [DONE]", usage=(10, 5)))
    assert reply.parts == (TextPart(text="Grüße 🚂\u2028 [DONE]"),)
    assert (reply.usage, reply.finish_reason) == (
        TokenUsage(input_tokens=10, output_tokens=5, cached_input_tokens=0),
        FinishReason.STOP,
    )


async def test_tool_calls_come_whole_and_numbered(far: Rig):
    calls = [
        Call(name="weather", arguments={"city": "Ålesund", "n": 10**30}),
        Call(name="other", arguments={}),
    ]
    reply = await far.answer(Reply.tool_calls(calls, text="Hm."), asks(tools=(WEATHER,)))
    assert reply.parts == (
        TextPart(text="Hm."),
        ToolCallPart(id="call_0", name="weather", arguments={"city": "Ålesund", "n": 10**30}),
        ToolCallPart(id="call_1", name="other"),
    )
    assert reply.finish_reason is FinishReason.TOOL_CALLS


async def test_thoughts_stand_beside_the_text(far: Rig):
    reply = await far.answer(Reply.text("Four.", thinking="2 + 2"))
    assert reply.parts == (signed(far, "2 + 2"), TextPart(text="Four."))


async def test_a_schema_is_answered_with_json(far: Rig):
    reply = await far.send(WANTS_CITY)
    assert isinstance(reply.parts[0], TextPart)
    assert json.loads(reply.parts[0].text).keys() == CITY["properties"].keys()


# -- streams


PIECES = (Thought("hm "), Thought("🤔"), "Grüße ", "日本語\u2028", "[DONE] ", "und mehr")
CALLS = (Call(name="weather", arguments={"city": "Ålesund", "n": 10**30}), Call(name="weather", arguments={}))


async def heard_of(rig: Rig, reply: Reply, request: Any = None) -> tuple[ProviderReply, list[Delta]]:
    heard = list[Delta]()

    async def on_delta(delta: Delta) -> None:
        heard.append(delta)

    rig.stub.script(reply)
    return await rig.send(request or asks(tools=(WEATHER,)), on_delta=on_delta), heard


async def test_a_stream_tells_what_it_comes_to(far: Rig):
    reply, heard = await heard_of(far, Reply.stream(*PIECES, *CALLS, usage=(3, 4)))
    assert reply.parts == (
        signed(far, "hm 🤔"),
        TextPart(text="Grüße 日本語\u2028[DONE] und mehr"),
        ToolCallPart(id="call_0", name="weather", arguments={"city": "Ålesund", "n": 10**30}),
        ToolCallPart(id="call_1", name="weather"),
    )
    assert parts_of(heard) == reply.parts
    assert reply.usage == TokenUsage(input_tokens=3, output_tokens=4, cached_input_tokens=0)
    assert len([each for each in heard if isinstance(each, TextDelta)]) > 1


async def test_deltas_come_before_the_answer_has_ended(far: Rig):
    gate = far.stub.gate()
    heard = list[Delta]()

    async def on_delta(delta: Delta) -> None:
        heard.append(delta)
        if isinstance(delta, TextDelta):
            gate.release()

    far.stub.script(Reply.stream("Hel", gate, "lo"))
    assert (await far.send(on_delta=on_delta)).parts == (TextPart(text="Hello"),)
    assert heard == [TextDelta("Hel"), TextDelta("lo")]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_chunks_of_the_network_are_no_chunks_of_the_answer(far: Rig, size: int):
    script = Reply.stream(*PIECES, *CALLS, usage=(3, 4))
    whole, _ = await heard_of(far, script)
    said = far.stub._streamed(script.content, far.stub.requests[-1]).body
    pieces = [said[i : i + size] for i in range(0, len(said), size)]
    cut, heard = await heard_of(far, Reply.stream(*pieces, end=End.UNFINISHED))
    assert cut == whole
    assert parts_of(heard) == whole.parts


async def test_a_stream_means_what_the_whole_answer_means(far: Rig):
    for name, reply in EITHER_SAYS.items():
        whole = await ended(far, reply)
        streamed = await ended(far, reply, listened=True)
        if isinstance(whole, ProviderReply):
            whole = _joined(whole)
        assert streamed == whole, name


def _joined(whole: ProviderReply) -> ProviderReply:
    from dataclasses import replace

    return replace(whole, parts=parts_of(deltas_of(whole.parts)))


def events(*said: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in said)


def hi_of_anthropic(start: dict[str, Any], end: dict[str, Any]) -> bytes:
    """Return a stream of Anthropic's with these counts at its start and at its end."""
    return events(
        {"type": "message_start", "message": {"model": "m", "content": [], "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end},
        {"type": "message_stop"},
    )


@pytest.mark.parametrize(
    "end",
    [
        {"output_tokens": 7},
        {"input_tokens": 10, "output_tokens": 7},
        {"input_tokens": None, "cache_creation": None, "output_tokens": 7},
        {"cache_read_input_tokens": 4, "cache_creation_input_tokens": 6, "output_tokens": 7},
    ],
    ids=len,
)
async def test_counts_that_anthropic_tells_at_the_start_are_kept(end: dict[str, Any]):
    start = {
        "input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1, "cache_creation_input_tokens": 6,
        "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 2},
    }  # fmt: skip
    async with rig_on("anthropic") as rig:
        reply, _ = await heard_of(rig, Reply.stream(hi_of_anthropic(start, end), end=End.UNFINISHED))
    assert reply.usage == TokenUsage(
        input_tokens=20, output_tokens=7, cached_input_tokens=4, cache_write_tokens=6, cache_write_1h_tokens=2
    )


async def test_counts_that_anthropic_tells_at_the_end_replace_those_of_the_start():
    later = {"input_tokens": 30, "cache_read_input_tokens": 8, "output_tokens": 7}
    stream = hi_of_anthropic({"input_tokens": 10, "cache_read_input_tokens": 4}, later)
    async with rig_on("anthropic") as rig:
        reply, _ = await heard_of(rig, Reply.stream(stream, end=End.UNFINISHED))
    assert reply.usage == TokenUsage(input_tokens=38, output_tokens=7, cached_input_tokens=8)


def hi_of_openai(*rest: dict[str, Any]) -> bytes:
    """Return a stream of OpenAI's with these chunks after the one that ends the answer."""
    said = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}
    return events({"choices": [said]}, {"choices": [{**said, "delta": {}, "finish_reason": "stop"}]}, *rest)


COUNTS = {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}


@pytest.mark.parametrize("choices", [{"choices": []}, {"choices": None}, {}], ids=str)
async def test_counts_come_in_a_chunk_of_their_own(choices: dict[str, Any]):
    async with rig_on("openai") as rig:
        stream = hi_of_openai({**choices, **COUNTS}) + b"data: [DONE]\n\n"
        reply, _ = await heard_of(rig, Reply.stream(stream, end=End.UNFINISHED))
    assert (reply.parts, reply.usage.total_tokens) == ((TextPart(text="Hi"),), 7)


async def test_counts_of_groq_come_in_an_object_of_its_own():
    said = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
    stream = events({"choices": [said], "x_groq": {"id": "r", **COUNTS}})
    async with rig_on("groq") as rig:
        reply, _ = await heard_of(rig, Reply.stream(stream, end=End.UNFINISHED))
    assert (reply.parts, reply.usage.total_tokens) == ((TextPart(text="Hi"),), 7)


@pytest.mark.parametrize(
    "after", [{"error": {"type": "server_error"}}, {"object": "ping"}], ids=["error", "other"]
)
async def test_what_follows_a_complete_answer_takes_nothing_of_it_away(after: dict[str, Any]):
    async with rig_on("openai") as rig:
        reply, _ = await heard_of(rig, Reply.stream(hi_of_openai(COUNTS, after), end=End.UNFINISHED))
    assert (reply.parts, reply.usage.total_tokens, reply.http_status) == ((TextPart(text="Hi"),), 7, 200)
    async with rig_on("anthropic") as rig:
        stream = hi_of_anthropic({"input_tokens": 3}, {"output_tokens": 4}) + events(after)
        reply, _ = await heard_of(rig, Reply.stream(stream, end=End.UNFINISHED))
    assert (reply.parts, reply.usage.total_tokens, reply.http_status) == ((TextPart(text="Hi"),), 7, 200)


async def test_groq_streams_no_answer_that_is_held_to_a_schema():
    """Groq cannot: the answer is asked for whole, and told at once."""
    async with rig_on("groq") as rig:
        reply, heard = await heard_of(rig, Reply.json({"city": "Oslo"}, usage=(3, 4)), WANTS_CITY)
        assert "stream" not in rig.stub.requests[-1].body
    assert parts_of(heard) == reply.parts == (TextPart(text='{"city": "Oslo"}'),)
    assert reply.usage == TokenUsage(input_tokens=3, output_tokens=4, cached_input_tokens=0)


async def test_thoughts_between_tags_are_thoughts_in_both_ways():
    async with rig_on("openai") as rig:
        whole = await rig.answer(Reply.text("<think>hm</think>Hello"))
        streamed, heard = await heard_of(rig, Reply.stream("<thi", "nk>hm</th", "ink>Hel", "lo"))
    assert (
        whole.parts == streamed.parts == parts_of(heard) == (ThinkingPart(text="hm"), TextPart(text="Hello"))
    )


async def test_calls_that_share_an_index_are_told_apart_by_their_ids():
    def piece(**call: Any) -> bytes:
        choice = {"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}, "finish_reason": None}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    first = piece(id="a", function={"name": "weather", "arguments": '{"city": "Oslo"}'})
    second = piece(id="b", function={"name": "weather", "arguments": '{"city":'})
    rest = piece(function={"arguments": ' "Bergen"}'})
    async with rig_on("openai") as rig:
        reply, heard = await heard_of(rig, Reply.stream(first, second, rest))
    assert [part.arguments for part in reply.parts if isinstance(part, ToolCallPart)] == [
        {"city": "Oslo"},
        {"city": "Bergen"},
    ]
    assert parts_of(heard) == reply.parts


async def test_thoughts_of_two_blocks_keep_their_signatures():
    async with rig_on("anthropic") as rig:
        reply, heard = await heard_of(rig, Reply.stream(Thought("one"), "a", Thought("two"), "b"))
    assert [part for part in reply.parts if isinstance(part, ThinkingPart)] == [
        ThinkingPart(text="one", signature=SIGNED),
        ThinkingPart(text="two", signature=SIGNED),
    ]
    assert [each.signature for each in heard if isinstance(each, ThinkingDelta)] == [
        None,
        SIGNED,
        None,
        SIGNED,
    ]


# -- what goes wrong


async def test_a_refusal_is_a_filtered_answer(far: Rig):
    async def refused(listened: bool) -> Any:  # noqa: FBT001
        return await ended(far, reply, listened=listened)

    if far.stub.provider == "anthropic":
        reply = Reply.text("", finish="refusal")
        assert (await refused(listened=True))["error"] is LLMContentFiltered
    else:
        message = {"role": "assistant", "content": None, "refusal": "I cannot."}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        reply = Reply.raw(json.dumps(body).encode())
    assert (await refused(listened=False))["error"] is LLMContentFiltered


@pytest.mark.parametrize("begun", [True, False])
async def test_an_error_within_a_stream_has_the_status_that_it_would_have_had(far: Rig, begun: bool):  # noqa: FBT001
    before = ("Hel",) if begun else ()
    for status, error in ((429, LLMRateLimited), (500, LLMUnavailable)):
        failed = await ended(far, Reply.stream(*before, Failure(status=status)), listened=True)
        assert (failed["error"], failed["http_status"]) == (error, status)


CUT_WITHIN = [
    pytest.param("", id="before its arguments"),
    pytest.param('{"city": "Os', id="within its arguments"),
]


def cut_call_of_openai(arguments: str) -> tuple[Reply, Reply]:
    """Return the answer of OpenAI that ended within a call, whole and as a stream."""
    call = {
        "index": 0,
        "id": "a",
        "type": "function",
        "function": {"name": "weather", "arguments": arguments},
    }
    choice = {"index": 0, "finish_reason": "length"}
    whole = {"choices": [{**choice, "message": {"content": None, "tool_calls": [call]}}], **COUNTS}
    said = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
    ends = {"choices": [{**choice, "delta": {}}], **COUNTS}
    stream = Reply.stream(events(said, ends), end=End.UNFINISHED)
    return Reply.raw(json.dumps(whole).encode()), stream


def cut_call_of_anthropic(arguments: str) -> tuple[Reply, Reply]:
    """Likewise of Anthropic, which leaves a call that ended too early without input."""
    block = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}
    counts = {"input_tokens": 3, "output_tokens": 4}
    whole = {"model": "m", "content": [block], "stop_reason": "max_tokens", "usage": counts}
    delta = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": arguments},
    }
    said = [
        {"type": "message_start", "message": {"model": "m", "content": [], "usage": counts}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *([delta] if arguments else []),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": counts},
    ]  # fmt: skip
    return Reply.raw(json.dumps(whole).encode()), Reply.stream(events(*said), end=End.UNFINISHED)


@pytest.mark.parametrize("arguments", CUT_WITHIN)
async def test_a_call_that_was_cut_off_is_none_and_is_not_asked_for_again(far: Rig, arguments: str):
    """Else a tool is run without what it needs."""
    said = cut_call_of_anthropic if far.stub.provider == "anthropic" else cut_call_of_openai
    request = asks(tools=(WEATHER,))
    whole, stream = said(arguments)
    told = [await ended(far, whole, request), await ended(far, stream, request, listened=True)]
    for each in told:
        assert isinstance(each, dict), each
        assert (each["error"], each["retryable"], each["possibly_paid"]) == (LLMBadResponse, False, True)
        assert "max_output_tokens" in each["message"]
        assert each["usage"].total_tokens == 7
    _, heard = await _heard_until_it_fails(far, stream, request)
    assert heard == []


async def _heard_until_it_fails(rig: Rig, reply: Reply, request: Any) -> tuple[LLMProviderError, list[Delta]]:
    heard = list[Delta]()

    async def on_delta(delta: Delta) -> None:
        heard.append(delta)

    rig.stub.always(reply)
    with pytest.raises(LLMProviderError) as caught:
        await rig.send(request, on_delta=on_delta)
    return caught.value, heard


async def test_of_a_call_of_anthropic_s_that_was_cut_off_no_part_is_taken_for_the_whole():
    block = {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Os"}}
    said = {"model": "m", "content": [block], "stop_reason": "max_tokens", "usage": {}}
    async with rig_on("anthropic") as rig:
        told = await ended(rig, Reply.raw(json.dumps(said).encode()), asks(tools=(WEATHER,)))
    assert (told["error"], told["retryable"]) == (LLMBadResponse, False)


async def test_a_call_that_is_whole_stands_though_the_answer_reached_its_length():
    whole, stream = cut_call_of_openai('{"city": "Oslo"}')
    async with rig_on("openai") as rig:
        for reply in (await rig.answer(whole, asks(tools=(WEATHER,))), (await heard_of(rig, stream))[0]):
            assert reply.parts == (ToolCallPart(id="call_0", name="weather", arguments={"city": "Oslo"}),)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_code_within_a_stream_says_more_than_its_type(begun: bool):  # noqa: FBT001
    failed = {
        "error": {"type": "invalid_request_error", "code": "tool_use_failed", "message": "Failed to call."}
    }
    before = {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]}
    async with rig_on("groq") as rig:
        reply = Reply.stream(events(*([before] * begun), failed), end=End.UNFINISHED)
        told = await ended(rig, reply, listened=True)
    assert (told["error"], told["possibly_paid"]) == (LLMBadResponse, True)


async def test_a_stream_without_its_end_is_no_answer(far: Rig):
    for end in (End.UNFINISHED, End.BROKEN):
        failed = await ended(far, Reply.stream("Hel", "lo", end=end), listened=True)
        assert (failed["error"], failed["possibly_paid"]) == (LLMUnavailable, True)


async def test_a_complete_answer_survives_its_connection(far: Rig):
    """What follows the end may be missing."""
    said = far.stub
    whole, _ = await heard_of(far, Reply.stream("Hello"))
    body = said._streamed(Reply.stream("Hello").content, said.requests[-1]).body
    marks = {"openai": b'"finish_reason": "stop"', "anthropic": b'"stop_reason": "end_turn"'}
    end = body.index(b"\n\n", body.index(marks[said.provider])) + 2
    cut, _ = await heard_of(far, Reply.stream(body[:end], end=End.BROKEN))
    assert cut.parts == whole.parts


async def test_a_prompt_that_is_too_long_is_one(far: Rig):
    assert isinstance(await far.failure(Reply.context_exceeded()), LLMContextExceeded)


OF_OPENAI_SAYS = [
    b"[]", b"5", b"{}", b'{"choices": null}', b'{"choices": []}', b'{"choices": [5]}', b'{"choices": [{}]}',
    b'{"choices": [{"message": null}]}', b'{"choices": [{"message": {"content": 5}}]}',
    b'{"choices": [{"message": {"content": null}}]}', b'{"choices": [{"message": {"tool_calls": {}}}]}',
    b'{"choices": [{"message": {"tool_calls": {"a": 1}}}]}', b'{"choices": [{"message": {"tool_calls": [5]}}]}',
    b'{"choices": [{"message": {"tool_calls": [{"function": 5}]}}]}',
    b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}}]}',
    b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "", "arguments": "{}"}}]}}]}',
    b'{"choices": [{"message": {"tool_calls": [{"function": {"name": 5, "arguments": "{}"}}]}}]}',
    b'{"choices": [{"message": {"content": "", "reasoning": {"a": 1}}}]}',
]  # fmt: skip
OF_ANTHROPIC_SAYS = [
    b"[]", b"{}", b'{"content": null}', b'{"content": "a"}', b'{"content": []}', b'{"content": [5]}', b'{"content": [{}]}',
    b'{"content": [{"type": "text", "text": 5}]}', b'{"content": [{"type": "thinking", "thinking": 5}]}',
    b'{"content": [{"type": "tool_use"}]}', b'{"content": [{"type": "tool_use", "name": "a", "input": [1]}]}',
    b'{"content": [{"type": "new"}]}', b'{"type": "error", "error": {"type": "api_error"}}',
]  # fmt: skip


async def test_what_is_no_answer_is_refused_as_one(far: Rig):
    for said in OF_ANTHROPIC_SAYS if far.stub.provider == "anthropic" else OF_OPENAI_SAYS:
        outcome = await ended(far, Reply.raw(said))
        assert isinstance(outcome, dict), said
        assert (outcome["error"], outcome["possibly_paid"]) == (LLMBadResponse, True), said


@pytest.mark.parametrize("provider", OF_OPENAI)
@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens": -1}, {"prompt_tokens": 1.5, "completion_tokens": "9"}]
)
async def test_counts_that_are_none_take_no_answer_away(provider: str, usage: Any):
    body = {"choices": [{"message": {"content": "Fine."}, "finish_reason": "whatever"}], "usage": usage}
    async with rig_on(provider) as rig:
        reply = await rig.answer(Reply.raw(json.dumps(body).encode()))
    assert (reply.parts, reply.usage) == ((TextPart(text="Fine."),), TokenUsage())


async def test_counts_of_anthropic_that_are_none_take_no_answer_away():
    body = {
        "content": [{"type": "text", "text": "Fine."}],
        "usage": {"input_tokens": "x", "output_tokens": 2**40},
    }
    async with rig_on("anthropic") as rig:
        reply = await rig.answer(Reply.raw(json.dumps(body).encode()))
    assert (reply.parts, reply.usage) == ((TextPart(text="Fine."),), TokenUsage())


async def test_an_error_says_what_to_do(far: Rig):
    failed = await far.failure(Reply.status(401))
    provider = far.candidate.provider
    assert f"check LLM_{provider.upper()}_API_KEY" in failed.message
    assert isinstance(failed, LLMProviderError)


async def test_nobody_listening_is_named_with_its_variable(far: Rig):
    far.stub.down()
    with pytest.raises(LLMUnavailable, match=f"LLM_{far.candidate.provider.upper()}_API_BASE"):
        await far.send()

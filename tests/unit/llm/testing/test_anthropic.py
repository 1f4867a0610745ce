"""The wire of Anthropic's messages: blocks, events by name, errors by type, a cache that counts."""

import re
from typing import Any

import aiohttp
import pytest

from app.llm.testing import Call, Failure, Reply, StubAnthropic, Thought

KEY = {"x-api-key": "stub-key", "anthropic-version": "2023-06-01"}
ASKED: dict[str, Any] = {
    "model": "claude-haiku-4-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello there"}],
}
MARKED = [{"type": "text", "text": "Be brief. " * 9, "cache_control": {"type": "ephemeral"}}]


@pytest.fixture
def stub():
    with StubAnthropic() as running:
        yield running


async def message(stub: StubAnthropic, headers: Any = None, **body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client:
        answer = await client.post(
            f"{stub.base_url}/v1/messages",
            json={**ASKED, **body},
            headers=KEY if headers is None else headers,
        )
        return answer.status, await (answer.text() if body.get("stream") else answer.json())


async def test_an_answer_has_its_blocks(stub):
    stub.script(Reply.text("hi", thinking="hm", usage=(11, 3)))
    status, body = await message(stub)
    assert (status, body["type"], body["stop_reason"]) == (200, "message", "end_turn")
    assert [block["type"] for block in body["content"]] == ["thinking", "text"]
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (11, 3)


async def test_a_stream_opens_and_closes_each_block(stub):
    stub.script(
        Reply.stream(
            Thought("hm"), "a", "b", Call(name="t", arguments={"x": 1}), Call(name="t", arguments={})
        )
    )
    _, said = await message(stub, stream=True)
    kinds = re.findall(r"^event: (\w+)$", said, re.MULTILINE)
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    assert said.count("text_delta") == 2


async def test_an_error_within_a_stream_is_an_event(stub):
    stub.script(Reply.stream("a", Failure(status=529)))
    _, said = await message(stub, stream=True)
    assert said.endswith(
        'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'
    )


async def test_refusals_are_said_before_any_model_runs(stub):
    assert (await message(stub, headers={}))[1]["error"]["type"] == "authentication_error"
    assert (await message(stub, max_tokens=None))[1]["error"]["message"] == "max_tokens: Field required"
    assert (await message(stub, messages=[]))[0] == 400
    assert (await message(stub, model="claude-9"))[0] == 404
    assert (await message(stub, headers={"x-api-key": "stub-key"}))[0] == 400


async def test_what_is_marked_is_written_once_and_read_from_then_on(stub):
    stub.always(Reply.text("hi", usage=(100, 3)))
    counts = [(await message(stub, system=MARKED))[1]["usage"] for _ in range(2)]
    assert [each["input_tokens"] for each in counts] == [counts[0]["input_tokens"]] * 2
    first, second = (
        (each["cache_creation_input_tokens"], each["cache_read_input_tokens"]) for each in counts
    )
    assert first == second[::-1] != (0, 0)


async def test_the_rest_of_the_api(stub):
    async with aiohttp.ClientSession(headers=KEY) as client:
        listed = await (await client.get(f"{stub.base_url}/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["claude-haiku-4-5"]
        assert (await client.get(f"{stub.base_url}/v1/files")).status == 404
    async with aiohttp.ClientSession() as client:
        assert (await client.get(f"{stub.base_url}/v1/models")).status == 401

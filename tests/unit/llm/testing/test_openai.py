"""The wire of OpenAI's chat completions: bodies, keys, errors, streams that end with `[DONE]`."""

from typing import Any

import aiohttp
import pytest

from app.llm.testing import Call, Reply, StubOpenAI

KEY = {"authorization": "Bearer stub-key"}
ASKED: dict[str, Any] = {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "Hello there"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def stub():
    with StubOpenAI() as running:
        yield running


async def complete(stub: StubOpenAI, headers: Any = None, **body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client:
        answer = await client.post(
            f"{stub.base_url}/chat/completions",
            json={**ASKED, **body},
            headers=KEY if headers is None else headers,
        )
        return answer.status, await (answer.text() if body.get("stream") else answer.json())


async def test_an_answer_has_every_field_that_is_read(stub):
    stub.script(Reply.text("hi", usage=(11, 3)))
    status, body = await complete(stub)
    assert (status, body["object"], body["model"]) == (200, "chat.completion", "gpt-4.1-mini")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["total_tokens"] == 14


async def test_a_stream_tells_calls_in_pieces_and_counts_only_if_asked(stub):
    stub.always(Reply.stream("hi", Call(name="weather", arguments={"city": "Oslo"}), usage=(3, 4)))
    _, plain = await complete(stub, stream=True)
    _, counted = await complete(stub, stream=True, stream_options={"include_usage": True})
    assert plain.endswith("data: [DONE]\n\n")
    assert ("usage" in plain, '"prompt_tokens": 3' in counted) == (False, True)
    assert plain.count('"index": 0, "function": {"arguments"') == 2


async def test_refusals_are_said_before_any_model_runs(stub):
    stub.script(Reply.text("kept"))
    assert (await complete(stub, headers={}))[1]["error"]["code"] == "invalid_api_key"
    assert (await complete(stub, messages=[]))[0] == 400
    assert (await complete(stub, model="gpt-9"))[0] == 404
    assert (await complete(stub))[1]["choices"][0]["message"]["content"] == "kept"
    assert stub.sends == 4


@pytest.mark.parametrize(("choice", "called"), [("auto", True), ("required", True), ("none", False)])
async def test_a_tool_is_called_as_the_choice_says(stub, choice, called):
    _, body = await complete(stub, tools=[TOOL], tool_choice=choice)
    assert ("tool_calls" in body["choices"][0]["message"]) is called


async def test_the_rest_of_the_api(stub):
    async with aiohttp.ClientSession(headers=KEY) as client:
        listed = await (await client.get(f"{stub.base_url}/models")).json()
        assert [each["id"] for each in listed["data"]] == ["gpt-4.1-mini"]
        assert (await client.get(f"{stub.base_url}/files")).status == 404
    async with aiohttp.ClientSession() as client:
        assert (await client.get(f"{stub.base_url}/models")).status == 401

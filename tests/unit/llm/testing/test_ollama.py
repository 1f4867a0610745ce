"""The wire of Ollama, field by field."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from app.llm.testing import Call, Reply, StubOllama

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture
def stub():
    with StubOllama() as running:
        yield running


async def chat(stub: StubOllama, text: str = "Hello there", **fields: Any) -> tuple[int, Any]:
    body = {"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": text}], **fields}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{stub.base_url}/api/chat", json=body) as answer,
    ):
        return answer.status, json.loads(await answer.read())


async def get(stub: StubOllama, path: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as client, client.get(f"{stub.base_url}{path}") as answer:
        return answer.status, await answer.read()


async def post(stub: StubOllama, path: str, body: Any) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as client, client.post(f"{stub.base_url}{path}", json=body) as answer:
        return answer.status, await answer.read()


async def show(stub: StubOllama, model: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client:
        answer = await client.post(f"{stub.base_url}/api/show", json={"model": model})
        return answer.status, await answer.json()


async def test_an_answer_has_every_field_of_the_real_one(stub):
    stub.script(Reply.text("hi", usage=(11, 3)))
    status, body = await chat(stub)
    assert status == 200
    assert body.pop("created_at").endswith("Z")
    durations = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    assert all(body.pop(name) > 0 for name in durations)
    assert body == {
        "model": "llama3.2",
        "message": {"role": "assistant", "content": "hi"},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 11,
        "eval_count": 3,
    }


async def test_thinking_and_finish_travel_in_their_fields(stub):
    stub.script(Reply.text("hi", thinking="hm", finish="length"))
    _, body = await chat(stub)
    assert (body["message"]["thinking"], body["done_reason"]) == ("hm", "length")


async def test_tool_calls_carry_objects_and_only_the_ids_they_were_given(stub):
    stub.script(
        Reply.tool_call("a", {"x": 1}, more=[("b", {})]),
        Reply.tool_calls([Call(name="c", arguments={}, id="call_7")], text="well"),
    )
    _, parallel = await chat(stub)
    _, single = await chat(stub)
    assert parallel["message"]["tool_calls"] == [
        {"function": {"index": 0, "name": "a", "arguments": {"x": 1}}},
        {"function": {"index": 1, "name": "b", "arguments": {}}},
    ]
    assert single["message"]["tool_calls"][0]["id"] == "call_7"
    assert single["message"]["content"] == "well"


@pytest.mark.parametrize("stream", [True, None])
async def test_a_request_that_does_not_refuse_streaming_gets_lines(stub, stream):
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "Hello"}]}
    body |= {} if stream is None else {"stream": stream}
    async with aiohttp.ClientSession() as client:
        answer = await client.post(f"{stub.base_url}/api/chat", json=body)
        lines = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert answer.content_type == "application/x-ndjson"
    assert [line["done"] for line in lines] == [*[False] * (len(lines) - 1), True]
    assert len(lines) > 2
    assert "".join(line["message"]["content"] for line in lines) == "Stub answer about: Hello."
    assert "eval_count" in lines[-1]
    assert "eval_count" not in lines[0]


async def test_a_model_that_is_not_pulled_is_404_and_leaves_the_script(stub):
    stub.script(Reply.text("kept"))
    assert await chat(stub, model="qwen3") == (404, {"error": "model 'qwen3' not found"})
    assert (await chat(stub))[1]["message"]["content"] == "kept"
    assert stub.sends == 2


async def test_the_tag_latest_is_implied_both_ways():
    with StubOllama(models=("qwen3:latest", "llama3.2:1b")) as stub:
        assert (await chat(stub, model="qwen3"))[0] == 200
        assert (await chat(stub, model="llama3.2"))[0] == 404


async def test_a_body_that_is_no_json_object_is_refused(stub):
    async with aiohttp.ClientSession() as client:
        answer = await client.post(f"{stub.base_url}/api/chat", data=b"{")
        assert (answer.status, "error" in await answer.json()) == (400, True)


async def test_missing_capabilities_are_refused_in_ollamas_words():
    with StubOllama(capabilities=["completion"]) as stub:
        tools = await chat(stub, tools=TOOLS)
        thinking = await chat(stub, think=True)
    assert tools == (400, {"error": "registry.ollama.ai/library/llama3.2:latest does not support tools"})
    assert thinking == (400, {"error": '"llama3.2" does not support thinking'})


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        (
            Reply.out_of_memory(),
            500,
            "model requires more system memory (5.5 GiB) than is available (2.1 GiB)",
        ),
        (Reply.busy(), 503, "server busy, please try again.  maximum pending requests exceeded"),
        (Reply.no_tools(), 400, "registry.ollama.ai/library/llama3.2:latest does not support tools"),
        (Reply.context_exceeded(), 400, "the input length exceeds the context length"),
        (Reply.status(404), 404, "model 'llama3.2' not found"),
        (Reply.status(418), 418, "unexpected error"),
    ],
)
async def test_failures_speak_as_ollama_does(stub, reply, status, words):
    stub.script(reply)
    assert await chat(stub) == (status, {"error": words})


async def test_a_rate_limit_states_its_wait_in_the_header(stub):
    stub.script(Reply.rate_limited(7), Reply.rate_limited())
    body = {"model": "llama3.2", "messages": []}
    async with aiohttp.ClientSession() as client:
        answers = [await client.post(f"{stub.base_url}/api/chat", json=body) for _ in range(2)]
    assert [(each.status, each.headers.get("Retry-After")) for each in answers] == [(429, "7"), (429, None)]


async def test_no_usage_leaves_the_counts_out_and_still_answers(stub):
    stub.script(Reply.no_usage(), Reply.no_usage("said"))
    for words in ("Stub answer about: Hello there.", "said"):
        _, body = await chat(stub)
        assert body["message"]["content"] == words
        assert not {"prompt_eval_count", "eval_count"} & body.keys()


async def test_load_is_an_empty_answer_without_counts(stub):
    stub.script(Reply.load())
    _, body = await chat(stub)
    assert (body["message"]["content"], body["done_reason"], body["done"]) == ("", "load", True)
    assert "eval_count" not in body


@pytest.mark.parametrize("options", [{"num_ctx": 512}, None])
async def test_a_truncated_context_fills_the_window_exactly(stub, options):
    stub.script(Reply.truncated_context())
    _, body = await chat(stub, options=options)
    assert body["prompt_eval_count"] + body["eval_count"] == (options or {"num_ctx": 4096})["num_ctx"]


async def test_show_tells_window_and_capabilities():
    with StubOllama(capabilities=["completion", "tools"], context_length=8_192) as stub:
        status, body = await show(stub, "llama3.2")
        missing = await show(stub, "nope")
    assert (status, body["capabilities"]) == (200, ["completion", "tools"])
    assert body["model_info"]["llama.context_length"] == 8_192
    assert missing == (404, {"error": "model 'nope' not found"})
    assert stub.sends == 0


async def test_while_show_hangs_a_chat_completes(stub):
    gate = stub.hang_show()
    hanging = asyncio.create_task(show(stub, "llama3.2"))
    await asyncio.to_thread(stub.wait_for_request, "/api/show")
    assert (await chat(stub))[0] == 200
    assert not hanging.done()
    gate.release()
    assert (await hanging)[0] == 200


async def test_tags_version_and_root_answer(stub):
    tags = json.loads((await get(stub, "/api/tags"))[1])
    assert [model["name"] for model in tags["models"]] == ["llama3.2:latest"]
    assert json.loads((await get(stub, "/api/version"))[1]) == {"version": "0.12.6"}
    assert await get(stub, "/") == (200, b"Ollama is running")
    assert (await get(stub, "/api/unknown"))[0] == 404


async def test_a_tool_is_called_once_and_its_result_is_told(stub):
    _, first = await chat(stub, "Weather in Oslo?", tools=TOOLS)
    called = first["message"]["tool_calls"]
    assert called == [{"function": {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Oslo?"},
        first["message"],
        {"role": "tool", "content": "12 degrees"},
    ]
    _, second = await chat(stub, tools=TOOLS, messages=messages)
    assert "get_weather was: 12 degrees" in second["message"]["content"]
    _, third = await chat(
        stub,
        tools=TOOLS,
        messages=[*messages, second["message"], {"role": "user", "content": "And in Rome?"}],
    )
    assert third["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}


async def test_format_decides_the_shape_of_the_answer(stub):
    schema = {
        "type": "object",
        "properties": {"total": {"type": "number"}, "currency": {"enum": ["USD", "EUR"]}},
        "required": ["total", "currency"],
    }
    _, shaped = await chat(stub, "Pay 3 chairs, total 42.50 EUR", format=schema)
    _, free = await chat(stub, "Pay", format="json")
    assert json.loads(shaped["message"]["content"]) == {"total": 42.5, "currency": "EUR"}
    assert isinstance(json.loads(free["message"]["content"]), dict)


async def test_a_pull_is_told_line_by_line_and_the_model_is_there():
    with StubOllama(models=(), library=("a",)) as stub:
        _, body = await post(stub, "/api/pull", {"model": "a"})
        lines = [json.loads(line) for line in body.splitlines()]
        whole = await post(stub, "/api/pull", {"model": "a", "stream": False})
        unknown = await post(stub, "/api/pull", {"model": "b"})
        tags = json.loads((await get(stub, "/api/tags"))[1])
    assert lines[0] == {"status": "pulling manifest"}
    assert {"status", "digest", "total"} == lines[1].keys(), "nothing has come by then"
    assert {"status", "digest", "total", "completed"} == lines[2].keys()
    assert lines[-1] == {"status": "success"}
    assert json.loads(whole[1]) == {"status": "success"}
    assert (unknown[0], json.loads(unknown[1].splitlines()[-1])) == (
        200,
        {"error": "pull model manifest: file does not exist"},
    )
    assert [each["name"] for each in tags["models"]] == ["a:latest"]


async def test_an_empty_prompt_loads_a_model(stub):
    status, body = await post(stub, "/api/generate", {"model": "llama3.2", "keep_alive": -1})
    assert (status, json.loads(body)["done_reason"], json.loads(body)["response"]) == (200, "load", "")
    assert (
        json.loads((await post(stub, "/api/generate", {"model": "llama3.2", "keep_alive": 0}))[1])[
            "done_reason"
        ]
        == "unload"
    )
    assert (await post(stub, "/api/generate", {"model": "none"}))[0] == 404
    assert (await post(stub, "/api/generate", {"model": "llama3.2", "keep_alive": "-1"}))[0] == 400


async def test_a_proxy_wants_its_token():
    with StubOllama(api_key="k") as stub:
        assert (await get(stub, "/api/tags"))[0] == 401
        assert (await chat(stub))[0] == 401

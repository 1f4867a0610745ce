"""The wire of Gemini: bodies, keys, Google's errors, failures dressed as success."""

import json
from typing import Any

import aiohttp
import pytest

from app.llm.testing import Call, Reply, StubGemini

KEY = {"x-goog-api-key": "stub-key"}


def asking(text: str = "Hello there") -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]}


@pytest.fixture
def stub():
    with StubGemini() as running:
        yield running


async def generate(
    stub: StubGemini,
    body: Any = None,
    *,
    model: str = "gemini-2.5-flash",
    headers: dict[str, str] | None = None,
    query: str = "",
) -> tuple[int, Any]:
    url = f"{stub.base_url}/models/{model}:generateContent{query}"
    async with aiohttp.ClientSession() as client:
        answer = await client.post(
            url, json=asking() if body is None else body, headers=KEY if headers is None else headers
        )
        return answer.status, await answer.json()


async def test_an_answer_has_every_field_of_the_real_one(stub):
    stub.script(Reply.text("hi", usage=(11, 3)))
    assert stub.base_url.endswith("/v1beta")
    assert await generate(stub) == (
        200,
        {
            "candidates": [
                {"content": {"parts": [{"text": "hi"}], "role": "model"}, "finishReason": "STOP", "index": 0}
            ],
            "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 3, "totalTokenCount": 14},
            "modelVersion": "gemini-2.5-flash",
            "responseId": "stub-1",
        },
    )


async def test_the_key_is_accepted_in_the_header_or_in_the_query(stub):
    assert (await generate(stub))[0] == 200
    assert (await generate(stub, headers={}, query="?key=stub-key"))[0] == 200


async def test_a_wrong_key_is_400_and_a_missing_one_403_as_google_says_it(stub):
    stub.script(Reply.text("kept"))
    status, wrong = await generate(stub, headers={"x-goog-api-key": "other"})
    assert (status, wrong["error"]["code"], wrong["error"]["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert wrong["error"]["message"] == "API key not valid. Please pass a valid API key."
    assert wrong["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    status, missing = await generate(stub, headers={})
    assert (status, missing["error"]["status"]) == (403, "PERMISSION_DENIED")
    _, body = await generate(stub)
    assert body["candidates"][0]["content"]["parts"] == [{"text": "kept"}]
    assert stub.sends == 3


async def test_an_unknown_model_is_404(stub):
    status, body = await generate(stub, model="gemini-9")
    assert (status, body["error"]["status"]) == (404, "NOT_FOUND")
    assert body["error"]["message"].startswith("models/gemini-9 is not found for API version v1beta")


async def test_a_body_without_contents_is_400(stub):
    assert [(await generate(stub, body))[0] for body in ({}, [])] == [400, 400]


async def test_models_are_listed_for_those_with_a_key(stub):
    async with aiohttp.ClientSession(headers=KEY) as client:
        listed = await (await client.get(f"{stub.base_url}/models")).json()
        one = await (await client.get(f"{stub.base_url}/models/gemini-2.5-flash")).json()
        unknown = await client.get(f"{stub.base_url}/models/nope")
    async with aiohttp.ClientSession() as client:
        refused = await client.get(f"{stub.base_url}/models")
    assert listed["models"] == [one]
    assert one["inputTokenLimit"] == 1_048_576
    assert (unknown.status, refused.status) == (404, 403)


async def test_thoughts_calls_ids_and_signatures_become_parts(stub):
    call = Call(name="f", arguments={"x": 1}, id="c1", signature="c2ln")
    stub.script(
        Reply.text("hi", thinking="let me see", finish="length"),
        Reply.tool_calls([call]),
        Reply.tool_call("g", {}),
    )
    _, thought = await generate(stub)
    _, signed = await generate(stub)
    _, plain = await generate(stub)
    candidate = thought["candidates"][0]
    assert candidate["content"]["parts"] == [{"text": "let me see", "thought": True}, {"text": "hi"}]
    assert candidate["finishReason"] == "MAX_TOKENS"
    counts = thought["usageMetadata"]
    parts = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    assert counts["totalTokenCount"] == sum(counts[name] for name in parts)
    assert signed["candidates"][0]["content"]["parts"] == [
        {"functionCall": {"id": "c1", "name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"}
    ]
    assert plain["candidates"][0]["content"]["parts"] == [{"functionCall": {"name": "g", "args": {}}}]


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        (Reply.blocked(), "SAFETY"),
        (Reply.blocked("RECITATION"), "RECITATION"),
        (Reply.malformed_function_call(), "MALFORMED_FUNCTION_CALL"),
    ],
)
async def test_a_blocked_answer_is_a_success_without_parts(stub, reply, finish):
    stub.script(reply)
    status, body = await generate(stub)
    assert status == 200
    assert body["candidates"] == [{"content": {}, "finishReason": finish, "index": 0}]
    assert "candidatesTokenCount" not in body["usageMetadata"]


async def test_a_blocked_prompt_and_a_missing_candidate_leave_candidates_out(stub):
    stub.script(Reply.prompt_blocked(), Reply.no_candidates())
    _, blocked = await generate(stub)
    _, without = await generate(stub)
    assert blocked["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}
    assert "candidates" not in blocked.keys() | without.keys()
    assert without["usageMetadata"]["promptTokenCount"] > 0


async def test_no_usage_leaves_the_counts_out_and_still_answers(stub):
    stub.script(Reply.no_usage())
    _, body = await generate(stub)
    assert "usageMetadata" not in body
    assert body["candidates"][0]["content"]["parts"] == [{"text": "Stub answer about: Hello there."}]


async def test_an_exceeded_context_names_both_counts(stub):
    stub.script(Reply.context_exceeded(1_200_000, 1_000_000))
    status, body = await generate(stub)
    assert (status, body["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert body["error"]["message"] == (
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1000000)."
    )


async def test_a_rate_limit_states_its_wait_in_the_details(stub):
    stub.script(Reply.rate_limited(7), Reply.rate_limited())
    status, body = await generate(stub)
    assert (status, body["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    assert body["error"]["details"] == [retry]
    assert "details" not in (await generate(stub))[1]["error"]


@pytest.mark.parametrize(
    ("code", "status"),
    [(403, "PERMISSION_DENIED"), (500, "INTERNAL"), (503, "UNAVAILABLE"), (418, "UNKNOWN")],
)
async def test_a_status_has_googles_word_for_it(stub, code, status):
    stub.script(Reply.status(code))
    answer = await generate(stub)
    assert (answer[0], answer[1]["error"]["code"], answer[1]["error"]["status"]) == (code, code, status)


@pytest.mark.parametrize(
    "config",
    [
        {
            "responseMimeType": "application/json",
            "responseSchema": {
                "type": "OBJECT",
                "properties": {"city": {"type": "STRING"}, "days": {"type": "INTEGER", "nullable": True}},
            },
        },
        {
            "response_mime_type": "application/json",
            "response_json_schema": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    ],
)
async def test_a_schema_is_answered_in_either_spelling(stub, config):
    _, body = await generate(stub, asking("A trip to Oslo, 3 nights") | {"generationConfig": config})
    said = json.loads(body["candidates"][0]["content"]["parts"][0]["text"])
    assert said == {"city": "Oslo", "days": 3}


async def test_json_without_a_schema_is_still_json(stub):
    config = {"responseMimeType": "application/json"}
    _, body = await generate(stub, asking() | {"generationConfig": config})
    assert isinstance(json.loads(body["candidates"][0]["content"]["parts"][0]["text"]), dict)


def _declaring(*names: str, mode: str | None = None, allowed: list[str] | None = None) -> dict[str, Any]:
    parameters = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
    tools = [{"functionDeclarations": [{"name": name, "parameters": parameters} for name in names]}]
    calling = {"mode": mode, "allowedFunctionNames": allowed}
    return {"tools": tools, "toolConfig": {"functionCallingConfig": calling}} if mode else {"tools": tools}


async def test_the_calling_mode_is_obeyed(stub):
    async def called(**chosen: Any) -> str | None:
        _, body = await generate(stub, asking("Weather in Oslo") | _declaring("first", "second", **chosen))
        return body["candidates"][0]["content"]["parts"][0].get("functionCall", {}).get("name")

    assert await called() == "first"
    assert await called(mode="ANY", allowed=["second"]) == "second"
    assert await called(mode="NONE") is None


async def test_a_tool_result_leads_to_the_output_tool_or_to_text(stub):
    turns = [
        *asking("Weather in Oslo?")["contents"],
        {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"output": "12 C"}}}]},
    ]
    _, final = await generate(stub, {"contents": turns} | _declaring("look", "final_result"))
    _, text = await generate(stub, {"contents": turns} | _declaring("look"))
    _, forced = await generate(stub, {"contents": turns} | _declaring("look", mode="ANY"))
    called = final["candidates"][0]["content"]["parts"][0]["functionCall"]
    assert called == {"name": "final_result", "args": {"city": "Oslo"}}
    assert "The result of look was: 12 C" in text["candidates"][0]["content"]["parts"][0]["text"]
    assert forced["candidates"][0]["content"]["parts"][0]["functionCall"]["name"] == "look"

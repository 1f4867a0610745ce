"""What leaves: the exact body and headers that each provider receives for a request of ours."""

from typing import Any

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.messages import (
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.providers import Catalog
from app.llm.settings import LLMSettings
from app.llm.testing import StubOllama
from app.llm.types import LLMRequest
from tests.wire.conftest import GEMINI_KEY, HELLO, Rig, in_both_lanes

PNG = ImagePart(data=b"\x89PNG\r\n\x1a\n", media_type="image/png")
PNG_BASE64 = "iVBORw0KGgo="
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = ToolSpec(name="weather", description="Weather of a city", parameters=CITY)
WEATHER_DECLARED = {"name": "weather", "description": "Weather of a city", "parameters": CITY}
HISTORY = (
    Message.system("Be brief."),
    Message.user("Where is this?", PNG),
    Message.assistant(
        ThinkingPart(text="A fjord.", signature="VGhvdWdodA=="),
        "Let me look.",
        ToolCallPart(id="x1", name="weather", arguments={"city": "Ålesund"}, signature="U2lnbmF0dXJl"),
        ToolCallPart(id="x2", name="weather", arguments={"city": "Oslo"}),
    ),
    Message.tool(
        ToolResultPart(id="x1", name="weather", content="rain"),
        ToolResultPart(id="x2", name="weather", content="sun"),
    ),
    Message.user("And now?"),
)
EVERYTHING = LLMRequest(
    messages=HISTORY,
    temperature=0.5,
    top_p=0.25,
    max_output_tokens=99,
    stop=("END",),
    seed=7,
    thinking=True,
    tools=(WEATHER,),
)
WANTS_CITY = LLMRequest(
    messages=HELLO.messages, response_format=ResponseFormat.of_schema(CITY, name="place", strict=True)
)
WANTS_JSON = LLMRequest(messages=HELLO.messages, response_format=ResponseFormat(type="json_object"))


async def test_ollama_receives_everything_in_its_own_words(on_ollama: Rig):
    said = await on_ollama.body(EVERYTHING)
    calls = [{"function": {"name": "weather", "arguments": {"city": city}}} for city in ("Ålesund", "Oslo")]
    assert said == {
        "model": "llama3.2",
        "stream": False,
        "messages": [
            {"role": "system", "content": "Be brief.", "images": []},
            {"role": "user", "content": "Where is this?", "images": [PNG_BASE64]},
            {
                "role": "assistant",
                "content": "Let me look.",
                "thinking": "A fjord.",
                "images": [],
                "tool_calls": calls,
            },
            {"role": "tool", "content": "rain", "images": [], "tool_call_id": "call_0"},
            {"role": "tool", "content": "sun", "images": [], "tool_call_id": "call_1"},
            {"role": "user", "content": "And now?", "images": []},
        ],
        "tools": [{"type": "function", "function": WEATHER_DECLARED}],
        "think": True,
        "options": {
            "num_ctx": 8192,
            "temperature": 0.5,
            "top_p": 0.25,
            "num_predict": 99,
            "stop": ["END"],
            "seed": 7,
        },
    }


async def test_gemini_receives_everything_in_its_own_words(on_gemini: Rig):
    said = await on_gemini.body(EVERYTHING)
    first = {
        "function_call": {"name": "weather", "args": {"city": "Ålesund"}},
        "thoughtSignature": "U2lnbmF0dXJl",
    }
    results = [
        {"function_response": {"name": "weather", "response": {"content": text}}} for text in ("rain", "sun")
    ]
    assert said == {
        "system_instruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Where is this?"},
                    {"inline_data": {"data": PNG_BASE64, "mime_type": "image/png"}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {"text": "A fjord.", "thought": True, "thoughtSignature": "VGhvdWdodA=="},
                    {"text": "Let me look."},
                    first,
                    {"function_call": {"name": "weather", "args": {"city": "Oslo"}}},
                ],
            },
            {"role": "user", "parts": results},
            {"role": "user", "parts": [{"text": "And now?"}]},
        ],
        "tools": [{"function_declarations": [WEATHER_DECLARED]}],
        "generationConfig": {
            "temperature": 0.5,
            "top_p": 0.25,
            "max_output_tokens": 99,
            "stop_sequences": ["END"],
            "seed": 7,
            "thinkingConfig": {"includeThoughts": True},
        },
    }


@in_both_lanes
async def test_gemini_receives_files_as_their_bytes(on_gemini: Rig):
    pdf = FilePart(data=b"%PDF-1.7", media_type="application/pdf")
    sound = FilePart(data=b"RIFF", media_type="audio/wav")
    film = FilePart(data=b"ftyp", media_type="video/mp4")
    said = await on_gemini.body(LLMRequest(messages=(Message.user("Read", pdf, "hear", sound, film),)))
    assert said["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "Read"},
                {"inline_data": {"data": "JVBERi0xLjc=", "mime_type": "application/pdf"}},
                {"text": "hear"},
                {"inline_data": {"data": "UklGRg==", "mime_type": "audio/wav"}},
                {"inline_data": {"data": "ZnR5cA==", "mime_type": "video/mp4"}},
            ],
        }
    ]


async def test_a_request_that_says_nothing_sends_only_what_the_identity_of_the_candidate_names(
    on_ollama: Rig, on_gemini: Rig
):
    assert (await on_ollama.body(HELLO))["options"] == {"num_ctx": 8192}
    assert (await on_gemini.body(HELLO))["generationConfig"] == {"temperature": 1.0}


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "ollama_num_ctx": 4096,
            "ollama_keep_alive": "10m",
            "ollama_headers": "X-Team: blue; X-Other: a:b",
            "ollama_api_key": "ollama-proxy-key",
        }
    ],
)
async def test_the_settings_of_ollama_travel_with_each_call(on_ollama: Rig):
    said = await on_ollama.body(HELLO)
    headers = on_ollama.stub.requests[-1].headers
    assert (said["options"]["num_ctx"], said["keep_alive"]) == (4096, "10m")
    assert (headers["x-team"], headers["x-other"]) == ("blue", "a:b")
    assert headers["authorization"] == "Bearer ollama-proxy-key"
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("overrides", [{"ollama_keep_alive": "-1"}])
async def test_a_time_without_a_unit_is_a_number_for_ollama(on_ollama: Rig):
    """As a text Ollama would refuse it, and every call with it."""
    assert (await on_ollama.body(HELLO))["keep_alive"] == -1


@in_both_lanes
async def test_a_key_in_the_environment_goes_to_no_ollama_of_ours(
    on_ollama: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OLLAMA_API_KEY", "a key for another server")
    await on_ollama.send()
    assert "authorization" not in on_ollama.stub.requests[-1].headers


async def test_the_key_of_gemini_travels_in_a_header_and_never_in_the_address(on_gemini: Rig):
    await on_gemini.send()
    received = on_gemini.stub.requests[-1]
    assert received.headers["x-goog-api-key"] == GEMINI_KEY
    assert dict(received.query) == {}


async def test_a_schema_reaches_ollama_as_its_format(on_ollama: Rig):
    assert (await on_ollama.body(WANTS_CITY))["format"] == CITY
    assert (await on_ollama.body(WANTS_JSON))["format"] == "json"


async def test_a_schema_is_not_sent_to_ollama_beside_tools_which_it_would_silence(on_ollama: Rig):
    both = WANTS_CITY.model_copy(update={"tools": (WEATHER,)})
    said = await on_ollama.body(both)
    assert "format" not in said
    assert len(said["tools"]) == 1


async def test_tool_choice_none_takes_the_tools_away_from_ollama_and_gives_the_format_back(on_ollama: Rig):
    neither = WANTS_CITY.model_copy(update={"tools": (WEATHER,), "tool_choice": "none"})
    said = await on_ollama.body(neither)
    assert "tools" not in said
    assert said["format"] == CITY


async def test_a_schema_reaches_gemini_as_a_json_schema(on_gemini: Rig):
    config = (await on_gemini.body(WANTS_CITY))["generationConfig"]
    assert config["response_mime_type"] == "application/json"
    assert config["response_json_schema"] == CITY
    config = (await on_gemini.body(WANTS_JSON))["generationConfig"]
    assert config["response_mime_type"] == "application/json"
    assert "response_json_schema" not in config


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (ToolChoiceTool(name="weather"), {"mode": "ANY", "allowed_function_names": ["weather"]}),
    ],
)
async def test_a_tool_choice_reaches_gemini(on_gemini: Rig, choice: Any, sent: dict[str, Any]):
    request = LLMRequest(messages=HELLO.messages, tools=(WEATHER,), tool_choice=choice)
    assert (await on_gemini.body(request))["toolConfig"]["functionCallingConfig"] == sent


@pytest.mark.parametrize(
    ("model", "thinking", "sent"),
    [
        ("gemini-2.5-flash", True, {"includeThoughts": True}),
        ("gemini-2.5-flash", "low", {"thinkingBudget": 1024, "includeThoughts": True}),
        ("gemini-2.5-flash", False, {"thinkingBudget": 0, "includeThoughts": False}),
        ("gemini-2.5-pro", False, {"thinkingBudget": 128}),
    ],
)
async def test_thinking_reaches_gemini_within_what_the_model_allows(
    on_gemini: Rig, settings: LLMSettings, model: str, thinking: Any, sent: dict[str, Any]
):
    on_gemini.candidate = Catalog.from_settings(settings).pinned(f"gemini:{model}")
    said = await on_gemini.body(LLMRequest(messages=HELLO.messages, thinking=thinking))
    assert said["generationConfig"]["thinkingConfig"] == sent


@pytest.mark.parametrize(("thinking", "sent"), [(True, True), (False, False), ("high", True)])
async def test_thinking_reaches_ollama_as_a_switch(on_ollama: Rig, thinking: Any, sent):
    said = await on_ollama.body(LLMRequest(messages=HELLO.messages, thinking=thinking))
    assert said["think"] is sent


async def test_thinking_reaches_gpt_oss_as_a_level(settings: LLMSettings, client: LiteLLMClient):
    with StubOllama(models=("gpt-oss:20b",)) as stub:
        there = settings.model_copy(update={"ollama_api_base": stub.base_url})
        client = LiteLLMClient(settings=there, limits=client._limits)
        rig = Rig(stub, Catalog.from_settings(there).pinned("ollama:gpt-oss:20b"), client)
        said = await rig.body(LLMRequest(messages=HELLO.messages, thinking="high"))
        await client.close()
    assert said["think"] == "high"


async def test_a_gemini_model_that_litellm_never_heard_of_is_not_degraded(
    on_gemini: Rig, settings: LLMSettings
):
    """LiteLLM would fold the system prompt into the user's turn and paste the schema as text."""
    on_gemini.candidate = Catalog.from_settings(settings).pinned("gemini:unheard-of")
    messages = (Message.system("Be brief."), *HELLO.messages)
    said = await on_gemini.body(WANTS_CITY.model_copy(update={"messages": messages}))
    assert said["system_instruction"] == {"parts": [{"text": "Be brief."}]}
    assert said["contents"] == [{"role": "user", "parts": [{"text": "Hello"}]}]
    assert said["generationConfig"]["response_schema"]["required"] == ["city"]


@in_both_lanes
async def test_equal_histories_leave_as_equal_bytes_whatever_their_call_ids(rig: Rig):
    def asked(first: str, second: str) -> LLMRequest:
        turn = [
            (
                Message.assistant(ToolCallPart(id=name, name="weather", arguments={"city": name[0]})),
                Message.tool(ToolResultPart(id=name, name="weather", content="sun")),
            )
            for name in (first, second)
        ]
        return LLMRequest(messages=(*HELLO.messages, *turn[0], *turn[1]), tools=(WEATHER,))

    await rig.send(asked("a-1", "b-1"))
    await rig.send(asked("a-6f1c", "b-02d4"))
    assert rig.stub.requests[0].raw == rig.stub.requests[1].raw


@in_both_lanes
async def test_a_signature_never_reaches_ollama(on_ollama: Rig):
    await on_ollama.send(EVERYTHING)
    assert b"U2lnbmF0dXJl" not in on_ollama.stub.requests[-1].raw
    assert b"VGhvdWdodA" not in on_ollama.stub.requests[-1].raw


@in_both_lanes
async def test_nothing_but_the_call_itself_is_asked_of_a_provider(rig: Rig):
    await rig.send()
    await rig.send(EVERYTHING)
    assert len(rig.stub.requests) == rig.stub.sends == 2


@in_both_lanes
async def test_a_proxy_of_the_environment_is_used_for_other_hosts(
    settings: LLMSettings, client: LiteLLMClient, monkeypatch: pytest.MonkeyPatch, ollama: StubOllama
):
    monkeypatch.setenv("http_proxy", ollama.base_url)
    there = settings.model_copy(update={"ollama_api_base": "http://ollama.invalid:11434"})
    proxied = LiteLLMClient(settings=there, limits=client._limits)
    rig = Rig(ollama, Catalog.from_settings(there).pinned("ollama:llama3.2"), proxied)
    await rig.send()
    await proxied.close()
    assert ollama.requests[-1].headers["host"] == "ollama.invalid:11434"


@in_both_lanes
async def test_a_proxy_of_the_environment_is_not_used_for_this_host(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert (await rig.send()).parts

"""What leaves for OpenAI, Groq and Anthropic: their bodies, their keys, and nothing that they were not to get."""

import asyncio
from typing import Any

import pytest

from app.llm.errors import LLMCapability
from app.llm.messages import (
    Message,
    ResponseFormat,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
)
from app.llm.providers import known
from app.llm.testing import Reply
from app.llm.types import LLMRequest
from app.llm.wire.exchange import Exchange
from tests.wire.corpus import REQUESTS, asks
from tests.wire.further import FURTHER, KEY, OF_OPENAI, rig_on
from tests.wire.pairs import ended
from tests.wire.test_requests import CITY, EVERYTHING, HISTORY, PNG_BASE64, WANTS_CITY, WANTS_JSON, WEATHER

IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_BASE64}"}}
CALLS = [
    {
        "id": f"call_{place}",
        "type": "function",
        "function": {"name": "weather", "arguments": f'{{"city": "{city}"}}'},
    }
    for place, city in enumerate(("Ålesund", "Oslo"))
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Where is this?"}, IMAGE]},
    {"role": "assistant", "content": "Let me look.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    {"role": "user", "content": "And now?"},
]
DECLARED = {"name": "weather", "description": "Weather of a city", "parameters": CITY}


@pytest.mark.parametrize("provider", OF_OPENAI)
async def test_a_server_of_openais_chat_receives_everything_and_no_thoughts(provider: str):
    async with rig_on(provider) as rig:
        assert await rig.body(EVERYTHING) == {
            "model": FURTHER[provider].model,
            "messages": CHAT,
            "temperature": 0.5,
            "top_p": 0.25,
            "max_tokens": 99,
            "stop": ["END"],
            "seed": 7,
            "tools": [{"type": "function", "function": DECLARED}],
        }
        assert rig.stub.requests[-1].path == "/v1/chat/completions"


async def test_anthropic_receives_everything_but_the_seed_in_its_own_words():
    async with rig_on("anthropic") as rig:
        said = await rig.body(EVERYTHING.model_copy(update={"thinking": None}))
    image = {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}
    assert said == {
        "model": "claude-haiku-4-5",
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Where is this?"}, {"type": "image", "source": image}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me look."},
                    *(
                        {
                            "type": "tool_use",
                            "id": f"call_{place}",
                            "name": "weather",
                            "input": {"city": city},
                        }
                        for place, city in enumerate(("Ålesund", "Oslo"))
                    ),
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_0", "content": "rain"},
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "sun"},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        "temperature": 0.5,
        "top_p": 0.25,
        "max_tokens": 99,
        "stop_sequences": ["END"],
        "tools": [
            {"name": "weather", "description": "Weather of a city", "input_schema": CITY, "type": "custom"}
        ],
    }


@pytest.mark.parametrize("provider", FURTHER)
async def test_the_key_travels_in_its_header_and_nowhere_else(provider: str, monkeypatch: pytest.MonkeyPatch):
    """LiteLLM would take what the environment holds of other accounts."""
    for name in ("OPENAI", "GROQ", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", "another-account")
        monkeypatch.setenv(f"{name}_API_BASE", "http://127.0.0.1:9")
    async with rig_on(provider) as rig:
        await rig.send()
    (sent,) = rig.stub.requests
    held = [name for name, value in sent.headers.items() if KEY in value]
    assert held == [FURTHER[provider].header]
    assert KEY.encode() not in sent.raw
    assert "another-account" not in str(sent)


async def test_a_server_that_wants_no_key_gets_none_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    """As a provider of a user's own may be one; LiteLLM would send it the key of another account."""
    monkeypatch.setenv("OPENAI_API_KEY", "another-account")
    async with rig_on("openai") as rig:
        options = known()[rig.candidate.provider].call_options(rig.client._settings, "gpt-4.1-mini", asks())
        del options["api_key"]
        lane = rig.client._lanes.of[rig.candidate.provider]  # type: ignore[union-attr]
        exchange = Exchange(max_bytes=10_000, on_send=lambda: None)
        with pytest.raises(Exception, match="AuthenticationError"):
            await lane.send(rig.candidate, options, exchange)
        assert exchange.status == 401
        assert "another-account" not in str(rig.stub.requests[-1].headers)


@pytest.mark.parametrize("listened", [False, True])
@pytest.mark.parametrize("provider", FURTHER)
async def test_every_request_of_the_corpus_is_one_request(provider: str, listened: bool):  # noqa: FBT001
    """Whatever is asked: it leaves once, or not at all because the model cannot do it."""
    refused = set()
    async with rig_on(provider) as rig:
        for name, request in REQUESTS.items():
            before = len(rig.stub.requests)
            outcome = await ended(rig, None, request, listened=listened)
            if isinstance(outcome, dict):
                refused.add((name, outcome["error"].__name__))
            assert len(rig.stub.requests) - before <= 1, name
    assert refused == REFUSED[provider]


REFUSED: dict[str, set[tuple[str, str]]] = {
    "openai": {(f"thinking {level}", "LLMCapability") for level in ("low", "medium", "high")},
    "groq": set(),
    "anthropic": {("only system", "LLMBadRequest")},
}
"""GPT-4.1 does not think, and Anthropic wants a message."""


@pytest.mark.parametrize(
    ("choice", "said", "of_anthropic"),
    [
        ("auto", "auto", {"type": "auto"}),
        ("required", "required", {"type": "any"}),
        ("none", "none", {"type": "none"}),
        (
            ToolChoiceTool(name="weather"),
            {"type": "function", "function": {"name": "weather"}},
            {"type": "tool", "name": "weather"},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("provider", FURTHER)
async def test_a_tool_choice_is_said(provider: str, choice: Any, said: Any, of_anthropic: Any):
    async with rig_on(provider) as rig:
        body = await rig.body(asks(tools=(WEATHER,), tool_choice=choice))
    assert body["tool_choice"] == (of_anthropic if provider == "anthropic" else said)


@pytest.mark.parametrize("provider", OF_OPENAI)
async def test_a_schema_goes_to_openais_servers_as_it_is(provider: str):
    async with rig_on(provider) as rig:
        wanted = (await rig.body(WANTS_CITY))["response_format"]
        assert wanted == {
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": CITY, "strict": True},
        }
        assert (await rig.body(WANTS_JSON))["response_format"] == {"type": "json_object"}


async def test_a_schema_goes_to_anthropic_as_the_format_of_its_answer():
    async with rig_on("anthropic") as rig:
        body = await rig.body(WANTS_CITY)
    form = body.get("output_format") or body["output_config"]["format"]
    assert form == {"type": "json_schema", "schema": {**CITY, "additionalProperties": False}}
    assert "tools" not in body


@pytest.mark.parametrize(
    ("provider", "model", "thinking", "effort"),
    [
        ("openai", "gpt-5-mini", False, "minimal"),
        ("openai", "gpt-5-mini", True, None),
        ("openai", "gpt-5-mini-2025-08-07", "high", "high"),
        ("openai", "gpt-5.1", True, "medium"),
        ("openai", "gpt-5.1", False, "none"),
        ("openai", "o4-mini", False, "low"),
        ("openai", "gpt-4.1", False, None),
        ("groq", "openai/gpt-oss-20b", False, "low"),
        ("groq", "openai/gpt-oss-120b", "medium", "medium"),
        ("groq", "qwen/qwen3.8-27b", False, "none"),
    ],
)
async def test_thinking_is_said_as_an_effort(provider: str, model: str, thinking: Any, effort: str | None):
    async with rig_on(provider, model) as rig:
        assert (await rig.body(asks(thinking=thinking))).get("reasoning_effort") == effort


async def test_a_model_that_cannot_think_is_not_asked_to():
    async with rig_on("openai", "gpt-4.1") as rig:
        with pytest.raises(LLMCapability):
            await rig.send(asks(thinking="high"))
        assert rig.stub.sends == 0


async def test_models_that_think_are_limited_by_their_own_word():
    async with rig_on("openai", "gpt-5-mini") as rig:
        body = await rig.body(asks(max_output_tokens=99))
    assert (body.get("max_tokens"), body["max_completion_tokens"]) == (None, 99)


async def test_anthropic_is_told_a_limit_even_if_nobody_names_one():
    async with rig_on("anthropic", anthropic_max_tokens=77) as rig:
        assert (await rig.body(asks()))["max_tokens"] == 77


async def test_anthropic_thinks_as_long_as_is_asked_for():
    async with rig_on("anthropic") as rig:
        assert "thinking" not in await rig.body(asks(thinking=False))
        budgets = [
            (await rig.body(asks(thinking=each)))["thinking"]["budget_tokens"]
            for each in ("low", True, "high")
        ]
    assert budgets == sorted(set(budgets))


async def test_a_signature_goes_back_to_its_maker_only():
    ours = ThinkingPart(text="hm", signature="anthropic:U2ln")
    theirs = ThinkingPart(text="so", signature="R2VtaW5p")
    asked = asks(
        Message.user("?"), Message.assistant(ours, "b"), Message.user("?"), Message.assistant(theirs, "c")
    )
    asked = asked.model_copy(update={"messages": (*asked.messages, Message.user("?"))})
    async with rig_on("anthropic") as rig:
        said = await rig.body(asked.model_copy(update={"thinking": "low"}))
        assert said["messages"][1]["content"][0] == {
            "type": "thinking",
            "thinking": "hm",
            "signature": "U2ln",
        }
        assert "R2VtaW5p" not in str(said)
    async with rig_on("openai") as rig:
        assert "U2ln" not in str(await rig.body(asked))


# -- Anthropic's cache


SYSTEM = Message.system("You know the timetable by heart.")


async def test_what_is_to_be_kept_is_marked_where_a_setting_says_so():
    mark = {"type": "ephemeral", "ttl": "5m"}
    async with rig_on("anthropic", anthropic_prompt_cache="5m") as rig:
        body = await rig.body(
            asks(SYSTEM, Message.user("When?"), Message.assistant("Now."), Message.user("Where?"))
        )
    assert body["system"] == [{"type": "text", "text": SYSTEM.text, "cache_control": mark}]
    assert [each["content"] for each in body["messages"]] == [
        [{"type": "text", "text": "When?"}],
        [{"type": "text", "text": "Now."}],
        [{"type": "text", "text": "Where?", "cache_control": mark}],
    ]


async def test_the_results_of_tools_are_kept_too():
    """An agent's conversation grows by them, long after its user has spoken."""
    mark = {"type": "ephemeral", "ttl": "1h"}
    called = Message.assistant(*(ToolCallPart(id=each, name="weather", arguments={}) for each in "ab"))
    results = Message.tool(*(ToolResultPart(id=each, name="weather", content="rain") for each in "ab"))
    async with rig_on("anthropic", anthropic_prompt_cache="1h") as rig:
        body = await rig.body(asks(SYSTEM, Message.user("When?"), called, results, tools=(WEATHER,)))
    assert str(body).count("cache_control") == 2
    assert body["system"][0]["cache_control"] == mark
    first, last = body["messages"][-1]["content"]
    assert ("cache_control" in first, last["type"], last["cache_control"]) == (False, "tool_result", mark)


@pytest.mark.parametrize(("how_long", "an_hour"), [("5m", False), ("1h", True)])
async def test_tokens_that_were_written_to_anthropics_cache_are_told_by_how_long_they_are_kept(
    how_long: str,
    an_hour: bool,  # noqa: FBT001
):
    async with rig_on("anthropic", anthropic_prompt_cache=how_long) as rig:
        rig.stub.always(Reply.text("Now.", usage=(100, 3)))
        first, second = [await rig.send(asks(SYSTEM, Message.user("When?"))) for _ in range(2)]
    written = first.usage.cache_write_tokens
    assert written
    assert first.usage.cache_write_1h_tokens == (written if an_hour else None)
    assert (second.usage.cache_write_tokens, second.usage.cached_input_tokens) == (None, written)


async def test_without_the_setting_nothing_is_marked():
    async with rig_on("anthropic") as rig:
        assert "cache_control" not in str(await rig.body(asks(*HISTORY)))


async def test_tokens_that_were_read_from_anthropics_cache_are_among_those_of_the_prompt():
    async with rig_on("anthropic", anthropic_prompt_cache="1h") as rig:
        rig.stub.always(Reply.text("Now.", usage=(100, 3)))
        first, second = [await rig.send(asks(SYSTEM, Message.user("When?"))) for _ in range(2)]
    assert first.usage.input_tokens == second.usage.input_tokens == 100
    assert (first.usage.cached_input_tokens, bool(second.usage.cached_input_tokens)) == (0, True)


# -- alike, at once


async def test_calls_at_once_do_not_mix():
    async with rig_on("openai") as rig:
        answers = await asyncio.gather(*(rig.send(asks(Message.user(f"number {n}"))) for n in range(20)))
    assert [f"number {n}" in answer.parts[0].text for n, answer in enumerate(answers)] == [True] * 20  # type: ignore[union-attr]


def test_a_request_is_left_as_it_is():
    """Marks are put on what is rendered, not on the request."""
    asked = LLMRequest(
        messages=(SYSTEM, Message.user("When?"), Message.assistant(ToolCallPart(id="a", name="t", arguments={})),
                  Message.tool(ToolResultPart(id="a", name="t", content="x"))),
        response_format=ResponseFormat.of_schema(CITY),
    )  # fmt: skip
    before = asked.model_dump_json()
    from app.llm.providers import anthropic
    from app.llm.settings import isolated_settings

    anthropic.call_options(isolated_settings(anthropic_prompt_cache="5m"), "claude-haiku-4-5", asked)
    assert asked.model_dump_json() == before

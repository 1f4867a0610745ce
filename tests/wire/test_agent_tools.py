"""An agent's tools and files at both providers: what is declared, what is forced, what comes back and goes in again."""

import json
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    BinaryContent,
    DeferredToolRequests,
    DeferredToolResults,
    DocumentUrl,
    ImageUrl,
    Tool,
)
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import ToolOutput
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

from app.llm.errors import LLMNoCandidate
from app.llm.pydanticai import LLMModelSettings, PydanticAiLiteLLMModel, SettingNotHonoured
from app.llm.testing import Reply
from app.llm.types import LLMConstraints
from tests.wire.agents import ACME, PARIS, City, World, declared, world_on

BOTH = ("ollama", "gemini")
in_both = pytest.mark.parametrize("provider", BOTH)

PNG = BinaryContent(b"\x89PNG", media_type="image/png")
PDF = BinaryContent(b"%PDF-1.7", media_type="application/pdf")
WAV = BinaryContent(b"RIFF", media_type="audio/wav")
MP4 = BinaryContent(b"ftyp", media_type="video/mp4")
NOTE = BinaryContent(b"The Louvre is in Paris.", media_type="text/plain")


@pytest.fixture
async def world(sqlite_url: str) -> AsyncIterator[World]:
    async with world_on(sqlite_url) as world:
        yield world


def population(of: str) -> int:
    """How many live there."""
    return len(of)


def delete(name: str) -> str:
    """Delete a file."""
    return f"{name} is gone"


def results(provider: str, body: Any) -> list[Any]:
    """Return the contents of the tool results that left, in order."""
    if provider == "ollama":
        return [message["content"] for message in body["messages"] if message["role"] == "tool"]
    responses = [
        part["function_response"]
        for content in body["contents"]
        for part in content["parts"]
        if "function_response" in part
    ]
    return [one["response"].get("content", one["response"]) for one in responses]


def how(body: Any) -> Any:
    """Return how Gemini may choose among its tools."""
    return body.get("toolConfig", {}).get("functionCallingConfig")


# -- calls


@in_both
async def test_several_calls_of_one_answer_are_run_and_answered_in_order(world: World, provider: str) -> None:
    stub = world.stub(provider)
    more = [("population", {"of": "Oslo"}), ("delete", {"name": "a"})]
    stub.script(Reply.tool_call("population", {"of": "Bergen"}, more=more), Reply.text("Done."))
    agent = Agent(world.model(provider), tools=[population, delete])
    assert (await agent.run("Count, and delete.", **ACME)).output == "Done."
    _, second = world.asked(stub)
    assert results(provider, second) == ["6", "4", "a is gone"]


@in_both
async def test_a_wish_for_one_call_at_a_time_is_told_of_and_does_no_harm(world: World, provider: str) -> None:
    stub = world.stub(provider)
    calls = Reply.tool_call("population", {"of": "Bergen"}, more=[("population", {"of": "Oslo"})])
    stub.script(calls, Reply.text("Done."))
    agent = Agent(world.model(provider), tools=[population], model_settings={"parallel_tool_calls": False})
    with pytest.warns(SettingNotHonoured, match="'parallel_tool_calls'"):
        assert (await agent.run("Count.", **ACME)).output == "Done."


async def test_strictness_goes_to_who_has_a_word_for_it(world: World) -> None:
    for provider in BOTH:
        world.stub(provider).script(Reply.text("Done."))
        agent = Agent(
            world.model(provider), tools=[Tool(population, strict=True), Tool(delete, strict=False)]
        )
        await agent.run("x", **ACME)
    (on_ollama,), (on_gemini,) = (world.asked(world.stub(provider)) for provider in BOTH)
    assert [tool["function"]["strict"] for tool in on_ollama["tools"]] == [True, False]
    assert "strict" not in str(on_gemini["tools"])


# -- choice

A, B, OUT = ToolDefinition(name="a"), ToolDefinition(name="b"), ToolDefinition(name="out", kind="output")
TEXT_OR_TOOLS = ModelRequestParameters(function_tools=[A, B])
OUTPUT_TOO = ModelRequestParameters(
    function_tools=[A, B], output_tools=[OUT], output_mode="tool", allow_text_output=False
)
FORCED_A = {"mode": "ANY", "allowed_function_names": ["a"]}
FORCED_OUT = {"mode": "ANY", "allowed_function_names": ["out"]}


@pytest.mark.parametrize(
    ("params", "choice", "tools", "on_gemini", "sent_to_ollama"),
    [
        (TEXT_OR_TOOLS, None, ["a", "b"], {"mode": "AUTO"}, True),
        (TEXT_OR_TOOLS, "auto", ["a", "b"], {"mode": "AUTO"}, True),
        (TEXT_OR_TOOLS, "none", [], None, True),
        (TEXT_OR_TOOLS, [], [], None, True),
        (TEXT_OR_TOOLS, "required", ["a", "b"], {"mode": "ANY"}, False),
        (TEXT_OR_TOOLS, ["a"], ["a"], FORCED_A, False),
        (TEXT_OR_TOOLS, ["a", "b"], ["a", "b"], {"mode": "ANY"}, False),
        (TEXT_OR_TOOLS, ToolOrOutput(function_tools=["a"]), ["a"], {"mode": "AUTO"}, True),
        (OUTPUT_TOO, None, ["a", "b", "out"], {"mode": "ANY"}, True),
        (OUTPUT_TOO, "none", ["out"], FORCED_OUT, True),
        (OUTPUT_TOO, ["a", "out"], ["a", "out"], {"mode": "ANY"}, False),
        (OUTPUT_TOO, ToolOrOutput(function_tools=["a"]), ["a", "out"], {"mode": "ANY"}, True),
        (OUTPUT_TOO, ToolOrOutput(function_tools=[]), ["out"], FORCED_OUT, True),
    ],
)
async def test_a_choice_of_tools_leaves_as_the_provider_can_be_told(
    world: World,
    params: Any,
    choice: Any,
    tools: list[str],
    on_gemini: Any,
    sent_to_ollama: bool,  # noqa: FBT001
) -> None:
    """A force that only PydanticAI derived is let go at Ollama; one that was asked for excludes it."""
    settings = LLMModelSettings(llm_workspace_id="acme", llm_cache="bypass")
    if choice is not None:
        settings["tool_choice"] = choice
    prompt = [ModelRequest.user_text_prompt("x")]
    for provider in BOTH:
        reply = Reply.text("Done.") if not tools else Reply.tool_call(tools[0], {})
        world.stub(provider).script(reply)
        model = world.model(provider)
        if provider == "ollama" and not sent_to_ollama:
            with pytest.raises(LLMNoCandidate, match="cannot be forced"):
                await model_request(model, prompt, model_settings=settings, model_request_parameters=params)
            assert world.sends[0] == 0
            continue
        await model_request(model, prompt, model_settings=settings, model_request_parameters=params)
        (body,) = world.asked(world.stub(provider))
        assert declared(provider, body) == tools
        if provider == "gemini":
            assert how(body) == on_gemini


async def test_a_choice_that_is_no_tool_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="Invalid tool names"):
        await model_request(
            world.model("gemini"),
            [ModelRequest.user_text_prompt("x")],
            model_settings={"tool_choice": ["c"]},
            model_request_parameters=TEXT_OR_TOOLS,
        )
    assert world.sends == (0, 0)


async def test_an_output_tool_that_is_forced_by_name_ends_the_run(world: World) -> None:
    world.gemini.script(Reply.tool_call("place", PARIS))
    agent = Agent(world.model("gemini"), output_type=ToolOutput(City, name="place"), tools=[population])
    result = await agent.run("x", model_settings={"tool_choice": ["place"]}, **ACME)
    assert result.output == City(**PARIS)
    assert how(world.asked(world.gemini)[0]) == {"mode": "ANY", "allowed_function_names": ["place"]}


# -- deferred


@in_both
async def test_a_call_that_needs_approval_waits_for_it(world: World, provider: str) -> None:
    stub = world.stub(provider)
    stub.script(
        Reply.tool_call("delete", {"name": "a"}, more=[("population", {"of": "Oslo"})]), Reply.text("Done.")
    )
    agent: Agent[None, Any] = Agent(
        world.model(provider),
        tools=[Tool(delete, requires_approval=True), population],
        output_type=[str, DeferredToolRequests],
    )
    paused = await agent.run("Delete a.", **ACME)
    (waiting,) = paused.output.approvals
    assert (waiting.tool_name, waiting.args_as_dict()) == ("delete", {"name": "a"})
    given = DeferredToolResults(approvals={waiting.tool_call_id: True})
    result = await agent.run(message_history=paused.all_messages(), deferred_tool_results=given, **ACME)
    assert result.output == "Done."
    first, second = world.asked(stub)
    assert declared(provider, first) == declared(provider, second) == ["delete", "population"]
    assert results(provider, second) == ["a is gone", "4"]


@in_both
async def test_a_call_that_is_answered_elsewhere_comes_back_later(world: World, provider: str) -> None:
    stub = world.stub(provider)
    stub.script(Reply.tool_call("sign", {}), Reply.text("Done."))
    elsewhere = ExternalToolset([ToolDefinition(name="sign", description="A person signs.")])
    agent: Agent[None, Any] = Agent(
        world.model(provider), toolsets=[elsewhere], output_type=[str, DeferredToolRequests]
    )
    paused = await agent.run("Sign.", **ACME)
    (waiting,) = paused.output.calls
    given = DeferredToolResults(calls={waiting.tool_call_id: "signed"})
    result = await agent.run(message_history=paused.all_messages(), deferred_tool_results=given, **ACME)
    assert result.output == "Done."
    assert results(provider, world.asked(stub)[-1]) == ["signed"]


@in_both
async def test_a_tool_that_is_not_revealed_yet_does_not_leave(world: World, provider: str) -> None:
    stub = world.stub(provider)
    search = Reply.tool_call("search_tools", {"queries": ["delete"]})
    stub.script(search, Reply.tool_call("delete", {"name": "a"}), Reply.text("Done."))
    agent = Agent(world.model(provider), tools=[population, Tool(delete, defer_loading=True)])
    assert (await agent.run("Delete a.", **ACME)).output == "Done."
    first, second, third = world.asked(stub)
    assert sorted(declared(provider, first)) == ["population", "search_tools"]
    assert "Delete a file" not in json.dumps(first)
    assert {"population", "delete"} <= set(declared(provider, second))
    assert results(provider, third)[-1] == "a is gone"


# -- files


async def test_a_prompt_with_a_file_goes_to_who_reads_it_and_the_route_says_why(world: World) -> None:
    agent = Agent(PydanticAiLiteLLMModel(world.llm))
    for file, reason in ((PDF, "no_documents"), (WAV, "no_audio"), (MP4, "no_video"), (PNG, "no_vision")):
        world.gemini.script(Reply.text("Seen."))
        result = await agent.run(["What is it?", file], **ACME)
        assert result.output == "Seen."
        sent = world.asked(world.gemini)[-1]["contents"][-1]["parts"]
        assert sent == [
            {"text": "What is it?"},
            {"inline_data": {"data": file.base64, "mime_type": file.media_type}},
        ]
        (response,) = [message for message in result.new_messages() if message.kind == "response"]
        route = (response.metadata or {})["route"]
        assert {entry["provider"]: entry["reason"] for entry in route}["ollama"] == reason
    assert world.sends == (0, 4)


async def test_a_file_that_no_candidate_reads_is_an_error_with_words(world: World) -> None:
    here = PydanticAiLiteLLMModel(world.llm, constraints=LLMConstraints(local_only=True))
    for file, words in ((PDF, "cannot read PDF files"), (WAV, "cannot hear"), (MP4, "cannot watch")):
        with pytest.raises(LLMNoCandidate, match=words):
            await Agent(here).run([file], **ACME)
    assert world.sends == (0, 0)


async def test_images_go_to_a_model_of_ollama_that_sees_and_texts_to_any(world: World) -> None:
    seeing = PydanticAiLiteLLMModel(world.llm, model="ollama:qwen3-vl")
    await Agent(seeing).run(["What is it?", PNG, "Say."], **ACME)
    await Agent(world.model("ollama")).run(["Sum up:", NOTE], **ACME)
    shown, told = world.asked(world.ollama)
    assert shown["messages"] == [{"role": "user", "content": "What is it?\n\nSay.", "images": [PNG.base64]}]
    assert "The Louvre is in Paris." in told["messages"][0]["content"]
    assert told["messages"][0]["images"] == []


async def test_a_file_of_a_tool_is_shown_or_told_of(world: World) -> None:
    for provider in BOTH:
        stub = world.stub(provider)
        stub.script(Reply.tool_call("scan", {}), Reply.text("Done."))
        agent = Agent(world.model(provider))

        @agent.tool_plain
        def scan() -> list[Any]:
            """Scan a page."""
            return ["page 1", PDF]

        assert (await agent.run("Scan.", **ACME)).output == "Done."
    on_ollama, on_gemini = (world.asked(world.stub(provider))[-1] for provider in BOTH)
    (told,) = results("ollama", on_ollama)
    assert "was not sent: this model cannot read application/pdf documents" in told
    assert results("gemini", on_gemini) == [f'["page 1","See file {PDF.identifier}."]']
    opened, file, closed = on_gemini["contents"][-1]["parts"]
    assert file == {"inline_data": {"data": PDF.base64, "mime_type": "application/pdf"}}
    assert 'tool_name="scan" tool_call_id="call_0"' in opened["text"]
    assert closed["text"] == "</pyai:tool_result>"


async def test_a_remote_file_is_refused_before_anything_is_sent(world: World) -> None:
    for url in (ImageUrl("https://example.org/a.png"), DocumentUrl("https://example.org/a.pdf")):
        with pytest.raises(UserError, match=r"remote URLs are refused; fetch it yourself"):
            await Agent(world.model("gemini")).run(["?", url], **ACME)
    assert world.sends == (0, 0)


async def test_equal_files_are_paid_once(world: World) -> None:
    world.gemini.script(Reply.text("A report."))
    agent = Agent(world.model("gemini"))
    with warnings.catch_warnings(action="error"):
        first, again = [await agent.run(["What is it?", PDF], **ACME) for _ in range(2)]
    assert first.output == again.output == "A report."
    assert world.sends == (0, 1)

"""What each lane makes of an agent's request: output modes, tools and the choice between them, schemas, texts."""

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    BinaryImage,
    NativeOutput,
    ToolOutput,
    WebSearchTool,
)
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.tools import ToolDefinition

from app.llm.messages import ToolChoiceTool
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.pydanticai.lanes import Lane
from app.llm.types import (
    LLMRequest,
    RequestVariant,
)
from tests.unit.llm.pydanticai.scripted import (
    BOTH,
    GEMINI,
    OLLAMA,
    PARIS,
    PARIS_JSON,
    STARTED,
    City,
    ScriptedService,
    answer,
    call,
    candidate,
    failed_attempt,
    gemini_only,
    last,
)


async def test_ollama_is_asked_for_native_json_and_knows_the_schema_from_its_instructions() -> None:
    llm = ScriptedService(answer(PARIS_JSON), candidates=(candidate(OLLAMA),))
    result = await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    assert result.output == City(**PARIS)
    (request,) = llm.requests
    assert request.response_format is not None
    assert request.response_format.name == "City"
    assert request.response_format.json_schema is not None
    assert set(request.response_format.json_schema["properties"]) == {"name", "country"}
    assert (request.tools, request.tool_choice) == ((), None)
    assert [message.role for message in request.messages] == ["system", "user"]
    assert '"country"' in request.messages[0].text
    assert request.messages[1].text == "Where is the Louvre?"


async def test_gemini_is_forced_to_call_the_output_tool() -> None:
    llm = gemini_only(answer(call("final_result", PARIS), provider=GEMINI))
    result = await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    assert result.output == City(**PARIS)
    (request,) = llm.requests
    assert [tool.name for tool in request.tools] == ["final_result"]
    assert (request.tool_choice, request.response_format) == ("required", None)


async def test_one_request_carries_the_rendering_of_each_provider() -> None:
    llm = ScriptedService(answer(PARIS_JSON))
    await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    (request,) = llm.requests
    assert set(request.variants) == {GEMINI}
    assert request.as_sent_to(OLLAMA).response_format is not None
    assert [tool.name for tool in request.as_sent_to(GEMINI).tools] == ["final_result"]


async def test_renderings_that_are_equal_make_no_variant() -> None:
    llm = ScriptedService(answer("Paris."))
    await Agent(PydanticAiLiteLLMModel(llm), instructions="Be brief.").run("Where is the Louvre?")
    assert llm.requests[0].variants == {}


async def test_an_agent_does_not_notice_that_another_lane_answered() -> None:
    """Ollama (native JSON) answers 503, Gemini answers with a call of the output tool."""
    failed = failed_attempt()
    llm = ScriptedService(answer(call("final_result", PARIS), provider=GEMINI, attempts=(failed,)))
    result = await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    assert result.output == City(**PARIS)
    response = last(result)
    (attempt,) = response.failed_attempts or []
    assert (attempt.provider_name, attempt.model_name) == ("ollama", "llama3.2")
    assert (attempt.error, attempt.timestamp) == ("unavailable (HTTP 503)", STARTED)
    assert (response.provider_name, response.model_name) == ("gemini", "gemini-2.5-flash")


async def test_function_tools_turn_ollama_to_tool_output_without_a_forced_choice() -> None:
    llm = ScriptedService(
        answer(call("population", {"of": "Paris"})), answer(call("final_result", PARIS)), candidates=BOTH[:1]
    )
    agent = Agent(PydanticAiLiteLLMModel(llm), output_type=City)

    @agent.tool_plain
    def population(of: str) -> dict[str, int]:
        """How many live there."""
        return {of: 2_100_000}

    result = await agent.run("Where is the Louvre?")
    assert result.output == City(**PARIS)
    first, second = llm.requests
    assert [tool.name for tool in first.tools] == ["population", "final_result"]
    assert (first.tool_choice, first.response_format) == ("auto", None)
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    (asked,), (told,) = second.messages[1].content, second.messages[2].content
    assert asked.type == "tool_call"
    assert told.type == "tool_result"
    assert asked.id == told.id
    assert told.content == '{"Paris":2100000}'


async def test_native_output_that_is_insisted_on_goes_into_the_instructions_beside_tools() -> None:
    llm = ScriptedService(answer(PARIS_JSON))
    agent = Agent(PydanticAiLiteLLMModel(llm), output_type=NativeOutput(City), tools=[len])
    assert (await agent.run("Where is the Louvre?")).output == City(**PARIS)
    for provider in (OLLAMA, GEMINI):
        request = llm.requests[0].as_sent_to(provider)
        assert [tool.name for tool in request.tools] == ["len"]
        assert request.response_format is None
        assert '"country"' in request.messages[0].text


async def test_native_output_without_tools_is_a_response_format_for_both() -> None:
    llm = ScriptedService(answer(PARIS_JSON))
    await Agent(PydanticAiLiteLLMModel(llm), output_type=NativeOutput(City)).run("Where is the Louvre?")
    for provider in (OLLAMA, GEMINI):
        assert llm.requests[0].as_sent_to(provider).response_format is not None


async def test_a_cloud_model_of_ollama_gets_tool_output() -> None:
    llm = ScriptedService(
        answer(call("final_result", PARIS)), candidates=(candidate(OLLAMA, supports_json_schema=False),)
    )
    await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    assert llm.requests[0].response_format is None
    assert llm.requests[0].tool_choice == "auto"


async def test_control_tokens_in_user_text_are_broken_for_ollama_and_mended_in_the_answer() -> None:
    llm = ScriptedService(answer("You said <|im_start|>."))
    result = await Agent(PydanticAiLiteLLMModel(llm)).run("Say <|im_start|>")
    assert llm.requests[0].as_sent_to(GEMINI).messages[0].text == "Say <|im_start|>"
    assert llm.requests[0].as_sent_to(OLLAMA).messages[0].text != "Say <|im_start|>"
    assert result.output == "You said <|im_start|>."


@pytest.mark.parametrize(
    ("choice", "tools", "on_ollama", "on_gemini"),
    [
        (None, ["a", "b"], "auto", "auto"),
        ("none", [], None, None),
        ("required", ["a", "b"], "required", "required"),
        (["b"], ["b"], ToolChoiceTool(name="b"), ToolChoiceTool(name="b")),
        (ToolOrOutput(function_tools=["a"]), ["a"], "auto", "auto"),
    ],
)
async def test_a_choice_that_was_asked_for_is_kept_so_that_routing_excludes_who_cannot_be_forced(
    choice: Any, tools: list[str], on_ollama: Any, on_gemini: Any
) -> None:
    llm = ScriptedService(answer("done"))
    await model_request(
        PydanticAiLiteLLMModel(llm),
        [ModelRequest.user_text_prompt("x")],
        model_settings={"tool_choice": choice} if choice else None,
        model_request_parameters=ModelRequestParameters(
            function_tools=[ToolDefinition(name="a"), ToolDefinition(name="b")]
        ),
    )
    for provider, expected in ((OLLAMA, on_ollama), (GEMINI, on_gemini)):
        sent = llm.requests[0].as_sent_to(provider)
        assert ([spec.name for spec in sent.tools], sent.tool_choice) == (tools, expected)


async def test_a_choice_that_only_switches_tools_off_does_not_force_ollama() -> None:
    llm = ScriptedService(answer(call("final_result", PARIS)))
    agent = Agent(PydanticAiLiteLLMModel(llm), output_type=City, tools=[len])
    await agent.run("x", model_settings={"tool_choice": "none"})
    on_ollama, on_gemini = (llm.requests[0].as_sent_to(provider) for provider in (OLLAMA, GEMINI))
    assert (
        [spec.name for spec in on_ollama.tools] == [spec.name for spec in on_gemini.tools] == ["final_result"]
    )
    assert (on_ollama.tool_choice, on_gemini.tool_choice) == ("auto", ToolChoiceTool(name="final_result"))


async def test_each_lane_passes_schemas_on_as_the_agent_wrote_them() -> None:
    """What a provider can be told of them is settled where the request leaves, for every caller alike."""

    class Trip(City):
        """A trip."""

        kind: Any = None
        via: tuple[City, ...] = ()

    llm = ScriptedService(answer(call("final_result", {**PARIS, "via": [PARIS]}), provider=GEMINI))
    result = await Agent(PydanticAiLiteLLMModel(llm), output_type=ToolOutput(Trip, strict=False)).run("x")
    assert result.output.via == (City(**PARIS),)
    on_ollama, on_gemini = (llm.requests[0].as_sent_to(provider).tools[0] for provider in (OLLAMA, GEMINI))
    assert on_ollama.parameters == on_gemini.parameters
    assert "$ref" in str(on_ollama.parameters)
    assert on_ollama.parameters["title"] == "Trip"
    assert on_ollama.strict is on_gemini.strict is False


async def test_image_output_and_native_tools_are_refused() -> None:
    model = PydanticAiLiteLLMModel(ScriptedService())
    with pytest.raises(UserError, match="Image output"):
        await Agent(model, output_type=BinaryImage).run("x")
    with pytest.raises(UserError, match="WebSearchTool"):
        await model_request(
            model,
            [ModelRequest.user_text_prompt("x")],
            model_request_parameters=ModelRequestParameters(native_tools=[WebSearchTool()]),
        )


async def test_two_types_of_output_reach_both_lanes() -> None:
    class Country(BaseModel):
        """A country."""

        name: str

    llm = ScriptedService(
        answer('{"result": {"kind": "Country", "data": {"name": "France"}}}'),
        answer(call("final_result_Country", {"name": "France"}), provider=GEMINI),
    )
    agent: Agent[None, City | Country] = Agent(PydanticAiLiteLLMModel(llm), output_type=[City, Country])
    assert (await agent.run("x")).output == (await agent.run("x")).output == Country(name="France")
    tools = llm.requests[0].as_sent_to(GEMINI).tools
    assert [spec.name for spec in tools] == ["final_result_City", "final_result_Country"]


async def test_the_profile_is_what_all_lanes_share() -> None:
    both, gemini = (
        PydanticAiLiteLLMModel(ScriptedService(candidates=listed)).profile for listed in (BOTH, BOTH[1:])
    )
    assert (both["context_window"], gemini["context_window"]) == (8192, 1_000_000)
    assert (both["supports_forced_tool_choice"], gemini["supports_forced_tool_choice"]) == (False, True)
    assert both["may_tokenize_special_tokens_in_content"]
    assert (both["supports_image_input"], gemini["supports_image_input"]) == (False, True)
    pdf = "application/pdf"
    assert pdf in gemini["supported_document_media_types"]
    assert both["supported_document_media_types"] == gemini["supported_document_media_types"] - {pdf}


async def test_a_lane_never_sends() -> None:
    lane: Model[Any] = Lane(OLLAMA, BOTH[:1])
    with pytest.raises(NotImplementedError):
        await lane.request([], None, None)  # type: ignore[arg-type]


def test_a_variant_replaces_what_the_model_renders() -> None:
    """The request's own fields are the first provider's rendering, so both must have the same fields."""
    assert set(RequestVariant.model_fields) <= set(LLMRequest.model_fields)

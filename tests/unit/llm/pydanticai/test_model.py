"""Real agents on a scripted service: what each step asks, and what the agent makes of the answer."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    BinaryImage,
    ModelRetry,
    NativeOutput,
    ToolOutput,
    WebSearchTool,
)
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UsageLimitExceeded, UserError
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, override_allow_model_requests
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import UsageLimits

from app.llm.errors import LLMInvalidRequest, LLMNoCandidate
from app.llm.messages import ThinkingPart, ToolChoiceTool
from app.llm.pydanticai import LLMModelSettings, PydanticAiLiteLLMModel, SettingNotHonoured
from app.llm.pydanticai.lanes import Lane
from app.llm.types import (
    CacheMode,
    LLMConstraints,
    LLMProfile,
    LLMRequest,
    RequestVariant,
    ServedFrom,
    TokenUsage,
)
from tests.unit.llm.pydanticai.scripted import (
    BOTH,
    GEMINI,
    OLLAMA,
    PARIS,
    STARTED,
    City,
    ScriptedService,
    answer,
    call,
    candidate,
    failed_attempt,
)

PARIS_JSON = '{"name": "Paris", "country": "France"}'


def gemini_only(*script: Any) -> ScriptedService:
    return ScriptedService(*script, candidates=(candidate(GEMINI),))


def last(result: Any) -> ModelResponse:
    response = result.all_messages()[-1]
    if not isinstance(response, ModelResponse):
        response = result.all_messages()[-2]
    assert isinstance(response, ModelResponse)
    return response


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


async def test_an_answer_that_does_not_validate_is_sent_back_with_the_error() -> None:
    llm = gemini_only(
        answer(call("final_result", {"name": "Paris"}), provider=GEMINI),
        answer(call("final_result", PARIS), provider=GEMINI),
    )
    result = await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    assert result.output == City(**PARIS)
    retry = llm.requests[1].messages[-1].content[0]
    assert retry.type == "tool_result"
    assert "country" in retry.content
    assert "Field required" in retry.content


async def test_text_that_does_not_validate_is_sent_back_as_user_text() -> None:
    llm = ScriptedService(answer('{"name": "Paris"}'), answer(PARIS_JSON), candidates=BOTH[:1])
    result = await Agent(PydanticAiLiteLLMModel(llm), output_type=City).run("Where is the Louvre?")
    assert result.output == City(**PARIS)
    assert [message.role for message in llm.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert "Field required" in llm.requests[1].messages[-1].text


async def test_a_tool_that_asks_for_a_retry_is_heard() -> None:
    llm = gemini_only(
        answer(call("population", {"of": "Pars"}), provider=GEMINI), answer("Sorry.", provider=GEMINI)
    )
    agent = Agent(PydanticAiLiteLLMModel(llm))

    @agent.tool_plain
    def population(of: str) -> int:
        """How many live there."""
        raise ModelRetry(f"no city {of}")

    await agent.run("How many live in Paris?")
    retry = llm.requests[1].messages[-1].content[0]
    assert retry.type == "tool_result"
    assert "no city Pars" in retry.content


async def test_a_later_run_sees_the_earlier_turns() -> None:
    llm = ScriptedService(answer("Paris."), answer("2.1 million."))
    agent = Agent(PydanticAiLiteLLMModel(llm), system_prompt="You know cities.", instructions="Be brief.")
    first = await agent.run("Where is the Louvre?")
    await agent.run("How many live there?", message_history=first.all_messages())
    assert [(message.role, message.text) for message in llm.requests[1].messages] == [
        ("system", "You know cities.\n\nBe brief."),
        ("user", "Where is the Louvre?"),
        ("assistant", "Paris."),
        ("user", "How many live there?"),
    ]


async def test_a_live_answer_counts_and_names_its_provenance() -> None:
    llm = ScriptedService(answer("Paris.", cost_usd=0.25))
    result = await Agent(PydanticAiLiteLLMModel(llm)).run("Where is the Louvre?")
    assert (result.usage.input_tokens, result.usage.output_tokens) == (10, 5)
    assert result.usage.cost == Decimal("0.25")
    response = last(result)
    assert response.finish_reason == "stop"
    assert response.metadata == {
        "llm_run_id": "run-1",
        "served_from": "live",
        "original_usage": {"input_tokens": 10, "output_tokens": 5},
        "route": [{"provider": "ollama", "kept": True}],
    }


async def test_tokens_of_a_cache_of_the_provider_s_are_told_apart() -> None:
    used = TokenUsage(input_tokens=1000, output_tokens=5, cached_input_tokens=200, cache_write_tokens=300)
    said = answer("Paris.").model_copy(update={"usage": used, "original_usage": used})
    result = await Agent(PydanticAiLiteLLMModel(ScriptedService(said))).run("Where is the Louvre?")
    counts = result.usage
    assert (counts.input_tokens, counts.cache_read_tokens, counts.cache_write_tokens) == (1000, 200, 300)
    assert (last(result).metadata or {})["original_usage"] == {"input_tokens": 1000, "output_tokens": 5}


@pytest.mark.parametrize("served_from", [ServedFrom.REPLAY, ServedFrom.CACHE])
async def test_a_stored_answer_counts_nothing_against_the_limits(served_from: ServedFrom) -> None:
    failed = failed_attempt(usage=TokenUsage(input_tokens=900, output_tokens=0))
    llm = ScriptedService(
        answer("Paris.", provider=GEMINI, served_from=served_from, cost_usd=0.25, attempts=(failed,))
    )
    agent = Agent(PydanticAiLiteLLMModel(llm))
    result = await agent.run("Where is the Louvre?", usage_limits=UsageLimits(total_tokens_limit=5))
    assert (result.usage.total_tokens, result.usage.cost) == (0, Decimal(0))
    metadata = last(result).metadata or {}
    assert metadata["served_from"] == served_from
    assert metadata["original_usage"] == {"input_tokens": 10, "output_tokens": 5}


async def test_failed_sends_that_were_paid_count_once_and_limits_hold() -> None:
    failed = failed_attempt(usage=TokenUsage(input_tokens=900, output_tokens=0))
    llm = ScriptedService(answer("Paris.", attempts=(failed,)))
    with pytest.raises(UsageLimitExceeded):
        await Agent(PydanticAiLiteLLMModel(llm)).run(
            "Where?", usage_limits=UsageLimits(total_tokens_limit=800)
        )


async def test_tool_call_ids_are_the_same_when_a_step_is_repeated_and_differ_between_steps() -> None:
    async def ids(**served: Any) -> list[str]:
        llm = gemini_only(
            answer(call("len", {"obj": "a"}), call("len", {"obj": "b"}), provider=GEMINI, **served),
            answer(call("len", {"obj": "a"}), provider=GEMINI, **served),
            answer("done", provider=GEMINI),
        )
        result = await Agent(PydanticAiLiteLLMModel(llm), tools=[len]).run("Count.")
        answers = [message for message in result.all_messages() if isinstance(message, ModelResponse)]
        return [made.tool_call_id for message in answers for made in message.tool_calls]

    live = await ids()
    assert live == await ids(served_from=ServedFrom.REPLAY)
    assert len(set(live)) == 3
    assert [made[:5] + made[17:] for made in live] == ["call__0", "call__1", "call__0"]


async def test_thinking_and_signatures_go_back_to_their_provider_only() -> None:
    thought = ThinkingPart(text="The Louvre ...", signature="t-sig")
    llm = ScriptedService(
        answer(thought, call("len", {"obj": "a"}, signature="c-sig"), provider=GEMINI),
        answer("One.", provider=GEMINI),
    )
    await Agent(PydanticAiLiteLLMModel(llm), tools=[len]).run("Count.")

    def signatures(request: LLMRequest) -> list[tuple[str, str | None]]:
        parts = [part for message in request.messages for part in message.content]
        return [(part.type, part.signature) for part in parts if part.type in {"thinking", "tool_call"}]

    request = llm.requests[1]
    assert signatures(request.as_sent_to(GEMINI)) == [("thinking", "t-sig"), ("tool_call", "c-sig")]
    assert signatures(request.as_sent_to(OLLAMA)) == [("thinking", None), ("tool_call", None)]


async def test_the_candidate_that_answered_first_is_preferred_for_the_rest_of_the_run() -> None:
    llm = ScriptedService(answer(call("len", {"obj": "a"}), provider=GEMINI), answer("One.", provider=GEMINI))
    agent = Agent(PydanticAiLiteLLMModel(llm), tools=[len])
    result = await agent.run("Count.")
    first, second = llm.requests
    assert (first.model, first.constraints.allow_fallback) == (None, None)
    assert (second.model, second.constraints.allow_fallback) == ("gemini:gemini-2.5-flash", True)
    llm.script = [answer("Two.")]
    await agent.run("Again.", message_history=result.all_messages())
    assert llm.requests[2].model is None, "a new run chooses anew"


async def test_a_run_that_may_not_fall_back_is_pinned_to_its_first_candidate() -> None:
    llm = ScriptedService(answer(call("len", {"obj": "a"})), answer("One."))
    limits = LLMConstraints(allow_fallback=False)
    await Agent(PydanticAiLiteLLMModel(llm, constraints=limits), tools=[len]).run("Count.")
    assert (llm.requests[1].model, llm.requests[1].constraints.allow_fallback) == ("ollama:llama3.2", False)


async def test_a_pinned_model_has_one_lane_and_with_fallback_those_of_the_profile() -> None:
    llm = ScriptedService(answer("a"), answer("b"))
    await Agent(PydanticAiLiteLLMModel(llm, model="ollama:llama3.2"), output_type=str).run("x")
    limits = LLMConstraints(allow_fallback=True)
    model = PydanticAiLiteLLMModel(llm, model="gemini:gemini-2.5-flash", constraints=limits)
    await Agent(model, tools=[len], instructions="<|im_start|>").run("<|im_start|>")
    assert (llm.requests[0].model, llm.requests[0].variants) == ("ollama:llama3.2", {})
    assert llm.requests[1].model == "gemini:gemini-2.5-flash"
    assert set(llm.requests[1].variants) == {OLLAMA}
    assert model.model_name == "gemini:gemini-2.5-flash"


async def test_control_tokens_in_user_text_are_broken_for_ollama_and_mended_in_the_answer() -> None:
    llm = ScriptedService(answer("You said <|im_start|>."))
    result = await Agent(PydanticAiLiteLLMModel(llm)).run("Say <|im_start|>")
    assert llm.requests[0].as_sent_to(GEMINI).messages[0].text == "Say <|im_start|>"
    assert llm.requests[0].as_sent_to(OLLAMA).messages[0].text != "Say <|im_start|>"
    assert result.output == "You said <|im_start|>."


async def test_settings_become_fields_of_the_request() -> None:
    llm = ScriptedService(answer("ok"))
    settings = LLMModelSettings(
        temperature=0.2,
        top_p=0.9,
        max_tokens=50,
        seed=7,
        stop_sequences=["END"],
        timeout=12,
        thinking="xhigh",
        llm_profile="fast",
        llm_cache="bypass",
        llm_force_new_execution=True,
        llm_metadata={"invoice": 17},
    )
    await Agent(PydanticAiLiteLLMModel(llm), name="reader").run("x", model_settings=settings)
    (request,) = llm.requests
    assert (request.temperature, request.top_p, request.max_output_tokens, request.seed) == (0.2, 0.9, 50, 7)
    assert (request.stop, request.timeout_s, request.thinking) == (("END",), 12, "high")
    assert (request.profile, request.cache) == (LLMProfile.FAST, CacheMode.BYPASS)
    assert request.force_new_execution
    assert request.metadata["invoice"] == 17
    assert (request.metadata["agent"], request.metadata["agent_step"]) == ("reader", 1)


async def test_an_unknown_setting_of_ours_is_refused_by_name() -> None:
    agent: Agent[None, str] = Agent(PydanticAiLiteLLMModel(ScriptedService()))
    with pytest.raises(UserError, match=r"llm_cach; known are llm_cache, .*llm_workspace_id"):
        await agent.run("x", model_settings={"llm_cach": "use"})  # type: ignore[typeddict-unknown-key]


async def test_a_setting_without_effect_is_named_once() -> None:
    llm = ScriptedService(answer("a"), answer("b"))
    agent = Agent(PydanticAiLiteLLMModel(llm))
    with pytest.warns(SettingNotHonoured, match="'presence_penalty' has no effect on balanced"):
        await agent.run("x", model_settings={"presence_penalty": 0.5})
    await agent.run("x", model_settings={"presence_penalty": 0.5})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": 9.0}, "temperature"),
        ({"timeout": -1}, "timeout_s"),
        ({"thinking": {"budget": 1}}, "thinking"),
        ({"llm_metadata": "invoice 17"}, "metadata"),
        ({"llm_model": 17}, "llm_model is 17: write provider:model"),
        ({"llm_profile": "best"}, "'best'.*fast, balanced, advanced"),
    ],
)
async def test_a_value_that_cannot_be_is_a_contract_error(settings: Any, named: str) -> None:
    agent = Agent(PydanticAiLiteLLMModel(ScriptedService()))
    with pytest.raises(LLMInvalidRequest, match=named):
        await agent.run("x", model_settings=settings)


async def test_a_profile_without_candidates_says_which_variable_to_set() -> None:
    agent = Agent(PydanticAiLiteLLMModel(ScriptedService(candidates=()), profile="fast"))
    with pytest.raises(LLMNoCandidate, match="LLM_PROFILE_FAST"):
        await agent.run("x")


def test_a_wrong_profile_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="best"):
        PydanticAiLiteLLMModel(ScriptedService(), profile="best")


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


async def test_requests_are_refused_where_pydantic_ai_forbids_them() -> None:
    llm = ScriptedService(answer("Paris."))
    with (
        override_allow_model_requests(allow_model_requests=False),
        pytest.raises(RuntimeError, match="ALLOW_MODEL_REQUESTS"),
    ):
        await Agent(PydanticAiLiteLLMModel(llm)).run("x")
    assert llm.requests == []


async def test_a_lane_never_sends() -> None:
    lane: Model[Any] = Lane(OLLAMA, BOTH[:1])
    with pytest.raises(NotImplementedError):
        await lane.request([], None, None)  # type: ignore[arg-type]


def test_a_variant_replaces_what_the_model_renders() -> None:
    """The request's own fields are the first provider's rendering, so both must have the same fields."""
    assert set(RequestVariant.model_fields) <= set(LLMRequest.model_fields)

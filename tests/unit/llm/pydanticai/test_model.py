"""Real agents on a scripted service: what each step asks, and what the agent makes of the answer."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    ModelRetry,
)
from pydantic_ai.exceptions import UsageLimitExceeded, UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.usage import UsageLimits

from app.llm.errors import LLMInvalidRequest, LLMNoCandidate
from app.llm.messages import ThinkingPart
from app.llm.pydanticai import LLMModelSettings, PydanticAiLiteLLMModel, SettingNotHonoured
from app.llm.types import (
    CacheMode,
    LLMConstraints,
    LLMProfile,
    LLMRequest,
    ServedFrom,
    TokenUsage,
)
from tests.unit.llm.pydanticai.scripted import (
    BOTH,
    GEMINI,
    OLLAMA,
    PARIS,
    PARIS_JSON,
    City,
    ScriptedService,
    answer,
    call,
    failed_attempt,
    gemini_only,
    last,
)


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


async def test_requests_are_refused_where_pydantic_ai_forbids_them() -> None:
    llm = ScriptedService(answer("Paris."))
    with (
        override_allow_model_requests(allow_model_requests=False),
        pytest.raises(RuntimeError, match="ALLOW_MODEL_REQUESTS"),
    ):
        await Agent(PydanticAiLiteLLMModel(llm)).run("x")
    assert llm.requests == []

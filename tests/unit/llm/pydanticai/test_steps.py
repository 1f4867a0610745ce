"""Correlation and keys: who a request belongs to, and a key for each step that no other run can have."""

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest

from app.llm.errors import LLMInvalidRequest, LLMWorkspaceConflict
from app.llm.pydanticai import LLMModelSettings, NestedRuns, PydanticAiLiteLLMModel
from app.llm.types import LLMCallContext
from tests.unit.llm.pydanticai.scripted import ScriptedService, answer, call

RUN = {"workspace_id": "acme", "pipeline_run_id": "p-1", "stage": "extract", "idempotency_key": "invoice-17"}


def keys(llm: ScriptedService) -> list[str | None]:
    return [request.idempotency_key for request in llm.requests]


async def test_the_metadata_of_a_run_names_whom_it_belongs_to() -> None:
    llm = ScriptedService(answer("ok"))
    await Agent(PydanticAiLiteLLMModel(llm), name="reader").run("x", metadata=RUN)
    assert llm.contexts == [LLMCallContext(workspace_id="acme", pipeline_run_id="p-1", stage="extract")]


async def test_model_settings_name_it_too() -> None:
    llm = ScriptedService(answer("ok"))
    settings = LLMModelSettings(llm_workspace_id="acme", llm_stage="extract", llm_idempotency_key="k")
    await Agent(PydanticAiLiteLLMModel(llm), name="reader").run("x", model_settings=settings)
    assert llm.contexts == [LLMCallContext(workspace_id="acme", stage="extract")]
    assert keys(llm) == ["k/reader/1"]


async def test_each_step_of_a_run_has_a_key_of_its_own() -> None:
    llm = ScriptedService(answer(call("len", {"obj": "a"})), answer("One."))
    await Agent(PydanticAiLiteLLMModel(llm), name="reader", tools=[len]).run("x", metadata=RUN)
    assert keys(llm) == ["invoice-17/reader/1", "invoice-17/reader/2"]


async def test_without_a_key_there_is_none() -> None:
    llm = ScriptedService(answer("ok"))
    await Agent(PydanticAiLiteLLMModel(llm)).run("x", metadata={"workspace_id": "acme", "ticket": 5})
    assert keys(llm) == [None]


async def test_the_name_of_the_model_serves_an_agent_without_one() -> None:
    llm = ScriptedService(answer("ok"))
    await Agent(PydanticAiLiteLLMModel(llm, name="reader")).run("x", metadata=RUN, infer_name=False)
    assert keys(llm) == ["invoice-17/reader/1"]


async def test_a_key_without_any_name_is_refused_with_what_to_write() -> None:
    llm = ScriptedService(answer("ok"))
    with pytest.raises(UserError, match=r"Agent\(\.\.\., name='extract'\)"):
        await Agent(PydanticAiLiteLLMModel(llm)).run("x", metadata=RUN, infer_name=False)
    assert llm.requests == []


async def test_a_request_outside_an_agent_has_the_key_itself() -> None:
    llm = ScriptedService(answer("ok"))
    settings = LLMModelSettings(llm_idempotency_key="k")
    await model_request(
        PydanticAiLiteLLMModel(llm), [ModelRequest.user_text_prompt("x")], model_settings=settings
    )
    assert keys(llm) == ["k"]


@pytest.mark.parametrize("field", ["workspace_id", "pipeline_run_id", "stage"])
async def test_two_sources_that_disagree_are_refused_and_both_named(field: str) -> None:
    agent = Agent(PydanticAiLiteLLMModel(ScriptedService()), name="reader")
    settings: Any = {f"llm_{field}": "globex"}
    with pytest.raises(
        LLMWorkspaceConflict, match=f"the model settings names {field} 'globex', the run's metadata names"
    ):
        await agent.run("x", metadata=RUN, model_settings=settings)


async def test_a_function_of_the_run_is_the_first_source() -> None:
    llm = ScriptedService(answer("ok"))

    def context_of(run: RunContext[str]) -> LLMCallContext:
        return LLMCallContext(workspace_id=run.deps, idempotency_key="of deps")

    agent = Agent(PydanticAiLiteLLMModel(llm, context=context_of), name="reader", deps_type=str)
    await agent.run("x", deps="acme", metadata=RUN)
    assert keys(llm) == ["of deps/reader/1"]
    with pytest.raises(LLMWorkspaceConflict, match="context= names workspace_id 'globex'"):
        await agent.run("x", deps="globex", metadata=RUN)


async def test_a_value_that_is_no_text_is_refused_with_its_source() -> None:
    agent = Agent(PydanticAiLiteLLMModel(ScriptedService()), name="reader")
    with pytest.raises(LLMInvalidRequest, match=r"the run's metadata: workspace_id: .*string"):
        await agent.run("x", metadata={"workspace_id": 17})


async def test_runs_that_parallel_tool_calls_start_have_keys_of_their_own() -> None:
    inner = ScriptedService(answer("a"), answer("b"))
    summarizer = Agent(PydanticAiLiteLLMModel(inner), name="summarizer")
    outer = ScriptedService(
        answer(call("summarize", {"text": "one"}), call("summarize", {"text": "two"})), answer("done")
    )
    writer = Agent(PydanticAiLiteLLMModel(outer), name="writer", capabilities=[NestedRuns()])

    @writer.tool
    async def summarize(ctx: RunContext[None], text: str) -> str:
        """Sum up."""
        await asyncio.sleep(0)  # both runs are under way at once
        return (await summarizer.run(text, metadata=ctx.metadata)).output

    await writer.run("x", metadata=RUN)
    paths = [str(key).split("/") for key in keys(inner)]
    assert [path[0] for path in paths] == ["invoice-17", "invoice-17"]
    assert [path[2] for path in paths] == ["1", "1"]
    assert {path[1][-2:] for path in paths} == {"_0", "_1"}
    assert all(path[1].startswith("summarizer>call_") for path in paths)
    assert keys(outer) == ["invoice-17/writer/1", "invoice-17/writer/2"], "the outer run is in no tool"

"""Agents under one key: where it comes from, and whose derived keys never meet."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from pydantic_ai import Agent, FunctionToolset, RunContext
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.toolsets import CombinedToolset

from app.bootstrap import build_llm_service
from app.llm.errors import (
    LLMContractError,
    LLMKeyConflict,
    LLMKeyInProgress,
)
from app.llm.pydanticai import LLMModelSettings, NestedRuns, PydanticAiLiteLLMModel, RecordedToolset
from app.llm.settings import load_settings
from app.llm.testing import Reply
from app.llm.types import LLMCallContext
from tests.support.ledger import Outside
from tests.wire.durable import RECEIPT, RUN, World, results, same_providers, world_on


@pytest.fixture
async def world(db_url: str) -> AsyncIterator[World]:
    async with world_on(db_url) as opened:
        yield opened


def _by_settings(world: World) -> dict[str, Any]:
    return {"model_settings": LLMModelSettings(llm_workspace_id="acme", llm_idempotency_key="k")}


def _by_context(world: World) -> dict[str, Any]:
    context = LLMCallContext(workspace_id="acme", idempotency_key="k")
    return {"model": PydanticAiLiteLLMModel(world.llm, context=lambda _: context)}


def _behind_a_fallback(world: World) -> dict[str, Any]:
    own = PydanticAiLiteLLMModel(world.llm)
    return {"model": FallbackModel(own, own), "metadata": RUN}


@pytest.mark.parametrize("said", [_by_settings, _by_context, _behind_a_fallback])
async def test_tools_have_the_key_of_their_step_however_it_was_named(
    world: World, said: Callable[[World], dict[str, Any]]
) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    for _ in range(2):
        how = said(world)
        model = how.pop("model", None)
        assert (await world.agent(pay, model=model).run("Pay.", **how)).output == "Paid."
    assert (world.sends, world.done) == (2, [1])


async def test_without_a_key_tools_just_run(world: World) -> None:
    def pay(order: int) -> Any:
        """Pay an order."""
        world.done.append(order)
        return {"when": RECEIPT}

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    result = await world.agent(pay).run("Pay.", metadata={"workspace_id": "acme"})
    assert [part.content for part in results(result)] == [{"when": RECEIPT}]
    assert world.done == [1]
    assert {row["provider"] for row in await world.outside.runs()} == {"ollama"}


async def test_a_tool_belongs_to_whom_its_step_belongs_to(world: World) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    run = {**RUN, "pipeline_run_id": "p-1", "stage": "pay"}
    await world.agent(pay).run("Pay.", metadata=run)
    owners = {
        (row["workspace_id"], row["pipeline_run_id"], row["stage"]) for row in await world.outside.runs()
    }
    assert owners == {("acme", "p-1", "pay")}


# -- agents in agents, and beside each other


async def test_agents_within_tools_within_agents_have_keys_of_their_own(world: World) -> None:
    """Two calls at once of a tool whose agent's tool starts a third agent: ten keys, all different, all replayed."""

    def look(text: str) -> str:
        """Look something up."""
        world.done.append(text)
        return f"seen {len(world.done)}"

    reader = world.agent(look, name="reader")

    async def read(ctx: RunContext[Any], text: str) -> str:
        """Let somebody read."""
        return str((await reader.run("Read.", metadata=ctx.metadata)).output)

    editor = world.agent(read, name="editor")

    async def edit(ctx: RunContext[Any], text: str) -> str:
        """Let somebody edit."""
        return str((await editor.run("Edit.", metadata=ctx.metadata)).output)

    writer = world.agent(edit, name="writer")
    two = Reply.tool_call("edit", {"text": "one"}, more=[("edit", {"text": "two"})])
    world.ollama.script(two)
    first = await writer.run("Write.", metadata=RUN)
    sends, keys = world.sends, await world.keys()
    assert len(keys) == len(set(keys)) == 16
    assert len(world.done) == 2
    again = await writer.run("Write.", metadata=RUN)
    assert again.output == first.output
    assert (world.sends, len(world.done), await world.keys()) == (sends, 2, keys)
    deepest = sorted(key for key in keys if key.startswith("k/reader>"))
    assert {key.split("/")[1].count(">") for key in deepest} == {2}


async def test_a_tool_that_is_recorded_from_now_on_changes_no_key_of_the_agents_in_it(world: World) -> None:
    """The run of an older version replays: `NestedRuns`, which named them then, and recording agree."""
    summarizer = world.agent(name="summarizer")

    async def summarize(ctx: RunContext[Any], text: str) -> str:
        """Sum up."""
        return str((await summarizer.run(text, metadata=ctx.metadata)).output)

    model, nested = PydanticAiLiteLLMModel(world.llm), NestedRuns()
    world.ollama.script(Reply.tool_call("summarize", {"text": "one"}))
    older = Agent(model, name="clerk", tools=[summarize], capabilities=[nested])
    first = await older.run("x", metadata=RUN)
    sends, keys = world.sends, await world.keys()
    again = await world.agent(summarize, capabilities=[nested]).run("x", metadata=RUN)
    assert (again.output, world.sends) == (first.output, sends)
    (tool,) = [row for row in await world.outside.runs() if row["provider"] == "tool"]
    assert await world.keys() == [*keys, tool["idempotency_key"]]


async def _at_once(world: World, *runs: Coroutine[Any, Any, Any]) -> list[Any]:
    """Return how runs end of which none is answered before one of them has ended."""
    with world.ollama.hold():
        tasks = [asyncio.create_task(run) for run in runs]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("prompts", [("x", "x"), ("x", "y")], ids=["alike", "not alike"])
async def test_two_runs_of_one_agent_under_one_key_never_get_each_others_answers(
    world: World, prompts: tuple[str, str]
) -> None:
    """While one of them is at work, the other one is refused in clear words."""

    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    agent = world.agent(pay)
    both = await _at_once(world, *(agent.run(prompt, metadata=RUN) for prompt in prompts))
    (refused,) = [each for each in both if isinstance(each, LLMContractError)]
    assert isinstance(refused, LLMKeyInProgress if prompts[0] == prompts[1] else LLMKeyConflict)
    assert "this key" in str(refused)
    assert [each.output for each in both if not isinstance(each, BaseException)] == ["Paid."]
    assert (world.sends, world.done) == (2, [1])


@pytest.mark.parametrize("prompts", [("one", "two"), ("one", "one")], ids=["not alike", "alike"])
async def test_two_runs_at_once_within_one_tool_call_are_refused_with_the_remedy(
    world: World, db_url: str, prompts: tuple[str, str]
) -> None:
    summarizer = Agent(PydanticAiLiteLLMModel(world.llm), name="summarizer")
    both: list[Any] = []

    async def summarize(ctx: RunContext[Any]) -> str:
        """Sum up twice at once."""
        runs = (summarizer.run(each, model=model, metadata=ctx.metadata) for each in prompts)
        both.extend(await _at_once(world, *runs))
        return "both"

    world.ollama.script(Reply.tool_call("summarize", {}))
    async with build_llm_service(
        load_settings(**{**same_providers(world), "database_url": db_url})
    ) as world.llm:
        model = PydanticAiLiteLLMModel(world.llm)
        await world.agent(summarize).run("x", metadata=RUN)
    (refused,) = [each for each in both if isinstance(each, BaseException)]
    assert isinstance(refused, LLMKeyInProgress if prompts[0] == prompts[1] else LLMKeyConflict)
    assert refused.run_id
    assert "this key" in refused.message
    assert "a key for each item" in refused.message
    assert "agents of different names" in refused.message


async def test_a_refused_key_of_no_tools_run_says_nothing_of_tools(world: World) -> None:
    agent = world.agent()
    await agent.run("x", metadata=RUN)
    with pytest.raises(LLMKeyConflict) as caught:
        await agent.run("y", metadata=RUN)
    assert "tool call" not in caught.value.message


@pytest.mark.parametrize("spare", [0, 7, 8, 30])
async def test_keys_that_would_get_too_long_end_in_a_hash(world: World, db_url: str, spare: int) -> None:
    """A key of 255 characters at most serves, to any depth; what fits stays as it was."""
    reader = world.agent(name="reader")

    async def read(ctx: RunContext[Any], text: str) -> str:
        """Let somebody read."""
        world.done.append(text)
        return str((await reader.run(text, metadata=ctx.metadata)).output)

    key = "k" * (255 - spare)
    run = {"workspace_id": "acme", "idempotency_key": key}
    two = Reply.tool_call("read", {"text": "one"}, more=[("read", {"text": "two"})])
    outside = Outside(db_url)
    async with build_llm_service(
        load_settings(**{**same_providers(world), "database_url": db_url})
    ) as world.llm:
        reader.model = PydanticAiLiteLLMModel(world.llm)
        world.ollama.script(two)
        first = await world.agent(read).run("x", metadata=run)
        sends = world.sends
        again = await world.agent(read).run("x", metadata=run)
        await world.llm.drain()
    assert (again.output, world.sends, sorted(world.done)) == (first.output, sends, ["one", "two"])
    keys = [str(row["idempotency_key"]) for row in await outside.runs()]
    await outside.close()
    assert len(keys) == len(set(keys)) == sends + 2
    assert (keys[0] == f"{key}/clerk/1") == (spare >= len("/clerk/1"))
    assert {len(each) for each in keys if "~" in each} == {255}


async def test_in_a_run_without_a_key_agents_of_recorded_tools_keep_the_keys_that_they_are_given(
    world: World,
) -> None:
    """Two conversations want the same invoice read, under its own key: it is read once."""
    reader = Agent(PydanticAiLiteLLMModel(world.llm), name="reader")

    async def read(invoice: int) -> str:
        """Let somebody read an invoice."""
        key = {"workspace_id": "acme", "idempotency_key": f"invoice-{invoice}"}
        return str((await reader.run("Read.", metadata=key)).output)

    for prompt in ("Hello.", "Good day."):
        world.ollama.script(Reply.tool_call("read", {"invoice": 7}))
        await world.agent(read).run(prompt, metadata={"workspace_id": "acme"})
    assert [key for key in await world.keys() if key != "None"] == ["invoice-7/reader/1"]
    assert world.sends == 5


async def test_what_a_tool_asks_by_itself_twice_under_one_key_is_asked_once(world: World) -> None:
    model = PydanticAiLiteLLMModel(world.llm)
    settings = LLMModelSettings(llm_workspace_id="acme", llm_idempotency_key="letter-1")

    async def read(text: str) -> str:
        """Read a letter, and again."""
        for _ in range(2):
            answer = await model_request(
                model, [ModelRequest.user_text_prompt(text)], model_settings=settings
            )
            world.done.append(answer.text)
        return "read"

    world.ollama.script(Reply.tool_call("read", {"text": "Dear all"}), Reply.text("A letter."))
    await world.agent(read).run("Read.", metadata=RUN)
    assert (world.done, world.sends) == (["A letter.", "A letter."], 3)


async def test_tools_that_are_recorded_already_are_refused_at_once(world: World) -> None:
    tools: FunctionToolset[Any] = FunctionToolset([])
    recorded = RecordedToolset(tools, world.llm)
    for within in (recorded, recorded.prefixed("a"), CombinedToolset([tools, recorded.filtered(bool)])):
        with pytest.raises(UserError, match="recorded already"):
            RecordedToolset(within, world.llm)
    RecordedToolset(CombinedToolset([tools, tools.prefixed("b")]), world.llm)


async def test_two_runs_within_one_tool_call_are_refused_in_clear_words(world: World) -> None:
    """PydanticAI does not tell them apart; agents of two names, or keys of their own, do."""
    summarizer = world.agent(name="summarizer")

    async def summarize(ctx: RunContext[Any]) -> str:
        """Sum up twice."""
        one = await summarizer.run("one", metadata=ctx.metadata)
        two = await summarizer.run("two", metadata=ctx.metadata)
        return str(one.output + two.output)

    world.ollama.script(Reply.tool_call("summarize", {}))
    with pytest.raises(LLMKeyConflict, match=r"differs first at \$\.messages\[0\]\.content\[0\]\.text"):
        await world.agent(summarize).run("x", metadata=RUN)

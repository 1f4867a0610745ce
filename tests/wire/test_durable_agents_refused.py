"""Agents that are repeated under one key: what is refused, asked for again, or left to a person."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ApprovalRequired
from pydantic_ai.messages import (
    ToolReturn,
)
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults

from app.bootstrap import build_llm_service
from app.llm.errors import (
    LLMInvalidRequest,
    LLMKeyConflict,
    LLMOutcomeUnknown,
)
from app.llm.pydanticai import LLMModelSettings
from app.llm.settings import load_settings
from app.llm.testing import Reply
from tests.wire.durable import RUN, World, same_providers, world_on


@pytest.fixture
async def world(db_url: str) -> AsyncIterator[World]:
    async with world_on(db_url) as opened:
        yield opened


async def test_what_cannot_be_recorded_is_refused_before_the_tool_or_after_it(world: World) -> None:
    def pay(order: int) -> Any:
        """Pay an order."""
        world.done.append(order)
        return object()

    world.ollama.script(Reply.tool_call("pay", {"order": 1}))
    with pytest.raises(LLMInvalidRequest, match=r"what pay returned cannot be recorded as JSON: .*object"):
        await world.agent(pay).run("Pay.", metadata=RUN)
    await world.llm.drain()
    (row,) = [row for row in await world.outside.runs() if row["provider"] == "tool"]
    assert (row["status"], row["idem_slot"]) == ("STARTED", row["idempotency_key"])

    def refund(order: Annotated[Any, AfterValidator(lambda _: object())]) -> Any:
        """Refund an order."""
        world.done.append(order)

    world.ollama.script(Reply.tool_call("refund", {"order": 1}))
    with pytest.raises(LLMInvalidRequest, match="the arguments of refund cannot be recorded as JSON"):
        await world.agent(refund).run("Refund.", metadata={**RUN, "idempotency_key": "k2"})
    assert world.done == [1]


RETURNS_NOTHING_READABLE = {
    "no JSON": object(),
    "half a surrogate": "\ud800",
    "within": {"receipt": ["\udfff"]},
    "tool return": ToolReturn("ok", content="\ud800"),
}


@pytest.mark.parametrize("returned", RETURNS_NOTHING_READABLE.values(), ids=RETURNS_NOTHING_READABLE.keys())
async def test_a_tool_whose_result_cannot_be_recorded_is_not_run_again_unasked(
    world: World, db_url: str, returned: Any
) -> None:
    def pay(order: int) -> Any:
        """Pay an order."""
        world.done.append(order)
        return returned

    world.ollama.script(Reply.tool_call("pay", {"order": 1}))
    settings = load_settings(**{**same_providers(world), "database_url": db_url, "on_abandoned": "refuse"})
    async with build_llm_service(settings) as world.llm:
        with pytest.raises(LLMInvalidRequest, match=r"what pay returned cannot be .*recorded"):
            await world.agent(pay).run("Pay.", metadata=RUN)
        await world.llm.drain()
        for _ in range(2):
            with pytest.raises(LLMOutcomeUnknown):
                await world.agent(pay).run("Pay.", metadata=RUN)
    assert (world.sends, world.done) == (1, [1])


async def test_a_tool_that_is_cancelled_by_the_failure_of_a_sibling_is_not_run_again_unasked(
    world: World, db_url: str
) -> None:
    began = asyncio.Event()

    async def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        if order == 1:
            began.set()
            await asyncio.Event().wait()
        await began.wait()
        raise ConnectionError("the till is away")

    world.ollama.script(Reply.tool_call("pay", {"order": 1}, more=[("pay", {"order": 2})]))
    settings = load_settings(**{**same_providers(world), "database_url": db_url, "on_abandoned": "refuse"})
    async with build_llm_service(settings) as world.llm:
        with pytest.raises(ConnectionError):
            await world.agent(pay).run("Pay.", metadata=RUN)
        await world.llm.drain()
        with pytest.raises((LLMOutcomeUnknown, ConnectionError)):
            await world.agent(pay).run("Pay.", metadata=RUN)
    assert world.done.count(1) == 1


async def test_a_tool_that_waits_for_an_approval_runs_once_it_has_it(world: World) -> None:
    def pay(ctx: RunContext[Any], order: int) -> str:
        """Pay an order."""
        if not ctx.tool_call_approved:
            raise ApprovalRequired
        world.done.append(order)
        return "ok"

    def agent() -> Agent[Any, Any]:
        return world.agent(pay, output_type=[str, DeferredToolRequests])

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    asked = await agent().run("Pay.", metadata=RUN)
    assert isinstance(asked.output, DeferredToolRequests)
    (row,) = [row for row in await world.outside.runs() if row["provider"] == "tool"]
    assert (row["error_code"], row["idem_slot"]) == ("cancelled", None)
    (wanted,) = asked.output.approvals
    approval = DeferredToolResults(approvals={wanted.tool_call_id: True})
    for _ in range(2):
        done = await agent().run(
            message_history=asked.all_messages(),
            deferred_tool_results=approval,
            metadata={**RUN, "idempotency_key": "k2"},
        )
        assert done.output == "Paid."
    assert (world.sends, world.done) == (2, [1])


async def test_other_arguments_under_a_call_are_a_conflict_that_shows_both(world: World) -> None:
    """The step lost its answer and was asked again; the model says something else, and the tool has run already."""

    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    await world.agent(pay).run("Pay.", metadata=RUN)
    (step,) = await world.outside.runs(idempotency_key="k/clerk/1")
    await world.outside.update(step["id"], idem_slot=None)
    world.ollama.script(Reply.tool_call("pay", {"order": 2}))
    async with build_llm_service(load_settings(**same_providers(world))) as later:
        world.llm = later
        with pytest.raises(LLMKeyConflict) as caught:
            await world.agent(pay).run("Pay.", metadata=RUN)
    assert world.done == [1]
    assert caught.value.facts["path"] == "$.arguments.order"
    assert 'pay({"order": 1}) and not pay({"order": 2})' in caught.value.message


async def test_a_dated_instruction_is_refused_with_its_place(world: World) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    await world.agent(pay, instructions="Today is Saturday.").run("Pay.", metadata=RUN)
    with pytest.raises(LLMKeyConflict) as caught:
        await world.agent(pay, instructions="Today is Sunday.").run("Pay.", metadata=RUN)
    assert caught.value.facts["path"] == "$.messages[0].content[0].text"
    assert "$.messages[0].content[0].text" in str(caught.value)
    assert "must not hold a clock" in str(caught.value)
    assert (world.sends, world.done) == (2, [1])


async def test_a_forced_run_runs_its_tools_again_and_replaces_what_is_kept(world: World) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "R-1"

    forced = LLMModelSettings(llm_force_new_execution=True)
    world.ollama.script(*[Reply.tool_call("pay", {"order": 1}), Reply.text("Paid.")] * 2)
    await world.agent(pay).run("Pay.", metadata=RUN)
    await world.agent(pay).run("Pay.", metadata=RUN, model_settings=forced)
    again = await world.agent(pay).run("Pay.", metadata=RUN)
    assert again.output == "Paid."
    assert (world.sends, world.done) == (4, [1, 1])


async def test_a_forced_run_whose_model_wants_something_else_is_refused_before_the_tool(world: World) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "R-1"

    forced = LLMModelSettings(llm_force_new_execution=True)
    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    await world.agent(pay).run("Pay.", metadata=RUN)
    world.ollama.script(Reply.tool_call("pay", {"order": 2}))
    with pytest.raises(LLMKeyConflict, match=r"pay\(.*1.*\) and not pay\(.*2.*\)"):
        await world.agent(pay).run("Pay.", metadata=RUN, model_settings=forced)
    assert world.done == [1]

"""Agents that are repeated under one key: what is kept of their tools, and given back."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import date
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, TypeAdapter
from pydantic_ai import Agent, FunctionToolset
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import (
    BinaryContent,
    ToolReturn,
)

from app.llm.pydanticai import PydanticAiLiteLLMModel, RecordedToolset
from app.llm.testing import Reply
from tests.wire.durable import MODELS, RECEIPT, RUN, Receipt, World, calls, results, world_on


@pytest.fixture
async def world(db_url: str) -> AsyncIterator[World]:
    async with world_on(db_url) as opened:
        yield opened


RETURNS = {
    "text": "paid",
    "nothing": None,
    "number": 0.1,
    "model": RECEIPT,
    "models": [RECEIPT, RECEIPT],
    "decimal": Decimal("12.50"),
    "bytes": b"\xff\x00",
    "set": frozenset({1}),
    "looks like ours": {"kind": "tool-return", "return_value": 1},
    "tool return": ToolReturn(RECEIPT, content="It is paid.", metadata={"receipt": RECEIPT}),
}


@pytest.mark.parametrize("returned", RETURNS.values(), ids=RETURNS.keys())
async def test_a_repeated_run_sends_nothing_runs_no_tool_and_says_the_same(
    world: World, returned: Any
) -> None:
    """The promise is the next request: were it another one, its key would be refused."""

    def pay(order: int) -> Any:
        """Pay an order."""
        world.done.append(order)
        return returned

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    first = await world.agent(pay).run("Pay.", metadata=RUN)
    again = await world.agent(pay).run("Pay.", metadata=RUN)
    assert (first.output, again.output) == ("Paid.", "Paid.")
    assert (world.sends, world.done) == (2, [1])
    assert again.usage.total_tokens == 0
    assert [part.content for part in results(first)] == [part.content for part in results(again)]
    assert [part.metadata for part in results(first)] == [part.metadata for part in results(again)]
    (call,) = calls(again)
    assert await world.keys() == ["k/clerk/1", f"k/clerk/1/tool/{call.tool_call_id}", "k/clerk/2"]


async def test_a_tool_return_keeps_its_parts_apart(world: World) -> None:
    def pay() -> ToolReturn:
        """Pay."""
        return ToolReturn({"paid": True}, content="Look.", metadata={"day": date(2026, 11, 21)})

    world.ollama.script(Reply.tool_call("pay", {}), Reply.text("Paid."))
    result = await world.agent(pay).run("Pay.", metadata=RUN)
    (told,) = results(result)
    assert (told.content, told.metadata) == ({"paid": True}, {"day": "2026-11-21"})
    assert [turn["content"] for turn in world.ollama.requests[-1].body["messages"]][-2:] == [
        '{"paid":true}',
        "Look.",
    ]


async def test_files_come_back_as_files() -> None:
    from app.llm.pydanticai import recorded

    picture = BinaryContent(data=b"\x89PNG", media_type="image/png")
    for value in (picture, ["a", picture], ToolReturn("ok", content=[picture])):
        how = "tool_return" if isinstance(value, ToolReturn) else "value"
        kept = recorded._written(value, "it")
        back = recorded._told({how: TypeAdapter(Any).validate_json(TypeAdapter(Any).dump_json(kept))})
        assert recorded._written(back, "it") == kept
        assert "BinaryImage" in repr(back)


async def test_a_picture_that_a_tool_returned_is_shown_once_and_replayed(world: World) -> None:
    picture = BinaryContent(data=b"\x89PNG\r\n\x1a\n", media_type="image/png")

    def scan() -> Any:
        """Scan the invoice."""
        world.done.append("scan")
        return ["page 1", picture]

    world.gemini.script(Reply.tool_call("scan", {}), Reply.text("It is paid."))
    model = PydanticAiLiteLLMModel(world.llm, model=MODELS["gemini"])
    first = await world.agent(scan, model=model).run("Look.", metadata=RUN)
    again = await world.agent(scan, model=model).run("Look.", metadata=RUN)
    assert first.output == again.output == "It is paid."
    assert (world.sends, world.done) == (2, ["scan"])
    shown = str(world.gemini.requests[-1].body)
    assert re.search(rf"inline_?[dD]ata.*{re.escape(picture.base64)}", shown), "as a picture, not as JSON"


@pytest.mark.parametrize("provider", ["ollama", "gemini"])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
async def test_calls_are_named_alike_by_every_provider_whole_and_streamed(
    world: World,
    provider: str,
    streams: bool,  # noqa: FBT001
) -> None:
    """Two calls at once, each recorded under its own key; the repetition is whole, whatever the first run was."""

    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return f"R-{order}"

    stub = world.ollama if provider == "ollama" else world.gemini
    stub.script(Reply.tool_call("pay", {"order": 1}, more=[("pay", {"order": 2})]), Reply.text("Paid."))
    agent = world.agent(pay, model=PydanticAiLiteLLMModel(world.llm, model=MODELS[provider]))
    if streams:
        async with agent.run_stream("Pay.", metadata=RUN) as stream:
            assert await stream.get_output() == "Paid."
    else:
        assert (await agent.run("Pay.", metadata=RUN)).output == "Paid."
    again = await agent.run("Pay.", metadata=RUN)
    async with agent.run_stream("Pay.", metadata=RUN) as stream:
        assert await stream.get_output() == again.output == "Paid."
    assert (stub.sends, sorted(world.done)) == (2, [1, 2])
    assert [call.tool_call_id[-2:] for call in calls(again)] == ["_0", "_1"]


SAID: list[Callable[[], Exception]] = [
    lambda: ModelRetry("Try another."),
    lambda: ToolFailed("No such order."),
]


@pytest.mark.parametrize("said", SAID, ids=["retry", "failed"])
async def test_what_a_tool_tells_the_model_by_raising_is_a_result_too(
    world: World, said: Callable[[], Exception]
) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        if order == 1:
            raise said()
        return "ok"

    replies = Reply.tool_call("pay", {"order": 1}), Reply.tool_call("pay", {"order": 2}), Reply.text("Paid.")
    world.ollama.script(*replies)
    first = await world.agent(pay).run("Pay.", metadata=RUN)
    again = await world.agent(pay).run("Pay.", metadata=RUN)
    assert first.output == again.output == "Paid."
    assert (world.sends, world.done) == (3, [1, 2])


async def test_invalid_data_within_a_tool_is_told_to_the_model_once(world: World) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        Receipt.model_validate({"order": order})
        return "never"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("It has no amount."))
    first = await world.agent(pay).run("Pay.", metadata=RUN)
    again = await world.agent(pay).run("Pay.", metadata=RUN)
    assert first.output == again.output == "It has no amount."
    assert (world.sends, world.done) == (2, [1])
    assert "amount: Field required" in str(world.ollama.requests[-1].body["messages"][-1]["content"])


async def test_a_tool_that_fails_is_run_again(world: World) -> None:
    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        if len(world.done) == 1:
            raise ConnectionError("the till is away")
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    with pytest.raises(ConnectionError, match="the till is away"):
        await world.agent(pay).run("Pay.", metadata=RUN)
    assert (await world.agent(pay).run("Pay.", metadata=RUN)).output == "Paid."
    assert (world.sends, world.done) == (2, [1, 1])


class Orders(BaseModel):
    """A set within a model."""

    numbers: set[int]


ORDERS: list[Callable[[list[int]], Any]] = [
    set,
    lambda numbers: {"old": (1, [frozenset(numbers)])},
    lambda numbers: [Orders(numbers=set(numbers))],
]


@pytest.mark.parametrize("read", ORDERS, ids=["set", "nested", "model"])
async def test_sets_among_the_arguments_are_the_same_in_each_process(
    world: World, read: Callable[[list[int]], Any]
) -> None:
    """Hashes of texts differ from process to process, and with them the order of a set; of 0 and 8 it is that of insertion."""
    numbers = [0, 8]

    def pay(orders: Annotated[Any, AfterValidator(lambda _: read(numbers))]) -> str:
        """Pay orders."""
        world.done.append(orders)
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"orders": [0, 8]}), Reply.text("Paid."))
    await world.agent(pay).run("Pay.", metadata=RUN)
    numbers.reverse()
    assert list(set(numbers)) == numbers
    assert (await world.agent(pay).run("Pay.", metadata=RUN)).output == "Paid."
    assert (world.sends, len(world.done)) == (2, 1)


class Pile(BaseModel):
    """Orders, one after another."""

    orders: Iterable[int]


async def test_arguments_that_can_be_read_only_once_are_read_by_the_tool(world: World) -> None:
    def pay(orders: Iterable[int], piles: list[Pile]) -> str:
        """Pay orders."""
        world.done.append([*orders, *(order for pile in piles for order in pile.orders)])
        return "ok"

    wanted = {"orders": [1, 2], "piles": [{"orders": [3]}, {"orders": [4]}]}
    world.ollama.script(Reply.tool_call("pay", wanted), Reply.text("Paid."))
    for _ in range(2):
        assert (await world.agent(pay).run("Pay.", metadata=RUN)).output == "Paid."
    assert (world.sends, world.done) == (2, [[1, 2, 3, 4]])
    (row,) = [row for row in await world.outside.runs() if row["provider"] == "tool"]
    kept = await world.llm._repo.asked("acme", row["id"])
    assert getattr(kept, "arguments", None) == wanted


async def test_a_tool_that_takes_longer_than_its_timeout_has_a_result(world: World) -> None:
    """PydanticAI tells the model so by `ModelRetry`, and a repetition tells it the same without the wait."""

    async def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        await asyncio.Event().wait()
        return "never"

    tools: FunctionToolset[Any] = FunctionToolset([pay], timeout=0.01)
    model = PydanticAiLiteLLMModel(world.llm)
    clerk = Agent(model, name="clerk", toolsets=[RecordedToolset(tools, world.llm)])
    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("The till is away."))
    for _ in range(2):
        assert (await clerk.run("Pay.", metadata=RUN)).output == "The till is away."
    assert (world.sends, world.done) == (2, [1])

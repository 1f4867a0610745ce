"""Agents that are repeated under one key: what is kept of their tools, and whose keys never meet."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, TypeAdapter
from pydantic_ai import Agent, FunctionToolset, RunContext
from pydantic_ai.exceptions import ApprovalRequired, ModelRetry, ToolFailed, UserError
from pydantic_ai.messages import (
    BinaryContent,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults
from pydantic_ai.toolsets import CombinedToolset

from app.bootstrap import build_llm_service
from app.llm.errors import (
    LLMContractError,
    LLMInvalidRequest,
    LLMKeyConflict,
    LLMKeyInProgress,
    LLMOutcomeUnknown,
)
from app.llm.pydanticai import LLMModelSettings, NestedRuns, PydanticAiLiteLLMModel, RecordedToolset
from app.llm.service import LLMService
from app.llm.settings import load_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMCallContext
from tests.support.ledger import Outside

RUN = {"workspace_id": "acme", "idempotency_key": "k"}
MODELS = {"ollama": "ollama:llama3.2", "gemini": "gemini:gemini-2.5-flash"}


@dataclass
class World:
    """A service, its providers, and what the tools did."""

    llm: LLMService
    ollama: StubOllama
    gemini: StubGemini
    outside: Outside
    done: list[Any] = field(default_factory=list)

    @property
    def sends(self) -> int:
        return self.ollama.sends + self.gemini.sends

    def agent(self, *tools: Callable[..., Any], name: str = "clerk", **how: Any) -> Agent[Any, Any]:
        """Return an agent whose tools are recorded."""
        model = how.pop("model", None) or PydanticAiLiteLLMModel(self.llm)
        recorded = RecordedToolset(FunctionToolset(list(tools)), self.llm)
        return Agent(model, name=name, toolsets=[recorded], **how)

    async def keys(self) -> list[str]:
        """The keys of all runs, in order of creation."""
        await self.llm.drain()
        return [str(row["idempotency_key"]) for row in await self.outside.runs()]


@pytest.fixture
def providers() -> Iterator[tuple[StubOllama, StubGemini]]:
    with StubOllama() as ollama, StubGemini() as gemini:
        yield ollama, gemini


@pytest.fixture
async def world(providers: tuple[StubOllama, StubGemini], db_url: str) -> AsyncIterator[World]:
    ollama, gemini = providers
    settings = load_settings(
        ollama_api_base=ollama.base_url,
        gemini_api_base=gemini.base_url,
        gemini_api_key="stub-key",
        database_url=db_url,
    )
    outside = Outside(db_url)
    async with build_llm_service(settings) as llm:
        yield World(llm=llm, ollama=ollama, gemini=gemini, outside=outside)
    await outside.close()


def results(result: Any) -> list[ToolReturnPart]:
    """The results of tools as the model is told of them."""
    turns = (message.parts for message in result.all_messages() if isinstance(message, ModelRequest))
    return [part for parts in turns for part in parts if isinstance(part, ToolReturnPart)]


def calls(result: Any) -> list[ToolCallPart]:
    turns = (message.parts for message in result.all_messages() if isinstance(message, ModelResponse))
    return [part for parts in turns for part in parts if isinstance(part, ToolCallPart)]


class Receipt(BaseModel):
    """What a till gives."""

    order: int
    day: date
    amount: Decimal


RECEIPT = Receipt(order=1, day=date(2026, 11, 21), amount=Decimal("12.50"))
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
    settings = load_settings(**{**_same(world), "database_url": db_url, "on_abandoned": "refuse"})
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
    settings = load_settings(**{**_same(world), "database_url": db_url, "on_abandoned": "refuse"})
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
    async with build_llm_service(load_settings(**_same(world))) as later:
        world.llm = later
        with pytest.raises(LLMKeyConflict) as caught:
            await world.agent(pay).run("Pay.", metadata=RUN)
    assert world.done == [1]
    assert caught.value.facts["path"] == "$.arguments.order"
    assert 'pay({"order": 1}) and not pay({"order": 2})' in caught.value.message


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


def _same(world: World) -> dict[str, Any]:
    url = world.outside.engine.url.render_as_string(hide_password=False)
    return {"ollama_api_base": world.ollama.base_url, "database_url": url, "profile_balanced": "ollama"}


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


# -- where the key comes from


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


@pytest.mark.parametrize("prompts", [("x", "x"), ("x", "y")], ids=["alike", "not alike"])
async def test_two_runs_of_one_agent_under_one_key_never_get_each_others_answers(
    world: World, prompts: tuple[str, str]
) -> None:
    """At once one of them is refused in clear words, or has the very answer of the other."""

    def pay(order: int) -> str:
        """Pay an order."""
        world.done.append(order)
        return "ok"

    world.ollama.script(Reply.tool_call("pay", {"order": 1}), Reply.text("Paid."))
    agent = world.agent(pay)
    both = await asyncio.gather(
        *(agent.run(prompt, metadata=RUN) for prompt in prompts), return_exceptions=True
    )
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
        both.extend(await asyncio.gather(*runs, return_exceptions=True))
        return "both"

    world.ollama.script(Reply.tool_call("summarize", {}))
    async with build_llm_service(load_settings(**{**_same(world), "database_url": db_url})) as world.llm:
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
    async with build_llm_service(load_settings(**{**_same(world), "database_url": db_url})) as world.llm:
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

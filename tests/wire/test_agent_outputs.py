"""Every mode of an agent's output, at both providers: what leaves, and what comes back as an object."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, TextOutput, ToolOutput

from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.testing import Reply
from tests.wire.agents import ACME, PARIS, City, World, declared, held_to, instructed, world_on

BOTH = ("ollama", "gemini")


class Country(BaseModel):
    """A country."""

    name: str


class Left(NamedTuple):
    """What tells the model what to answer."""

    held_to: str | None
    tools: list[str]
    schema_told: bool


class Mode(NamedTuple):
    """An output type, what leaves for it and the answer, by provider, and what the agent makes of it."""

    output_type: Any
    left: dict[str, Left]
    replies: dict[str, Reply]
    output: Any


def locate(name: str, country: str) -> str:
    """Tell where a city is."""
    return f"{name} in {country}"


def shout(text: str) -> str:
    return text.upper()


def either(left: Left, reply: Reply) -> dict[str, Any]:
    return {"left": dict.fromkeys(BOTH, left), "replies": dict.fromkeys(BOTH, reply)}


CITY, FRANCE = City(**PARIS), Country(name="France")
BY_TOOL, BY_JSON = Reply.tool_call("final_result", PARIS), Reply.json(PARIS)
CHOSEN = Reply.json({"result": {"kind": "Country", "data": {"name": "France"}}})
CHOSEN_BY_TOOL = Reply.tool_call("final_result_Country", {"name": "France"})
FENCED = Reply.text(f"Here you are:\n```json\n{json.dumps(PARIS)}\n```")
TWO_TOOLS = ["final_result_City", "final_result_Country"]
FREE, ONE_TOOL = Left(None, [], schema_told=False), Left(None, ["final_result"], schema_told=False)
TOLD_AND_HELD, HELD, PROMPTED = (
    Left("schema", [], schema_told=True),
    Left("schema", [], schema_told=False),
    Left("json", [], schema_told=True),
)
OPEN = {"ollama": TOLD_AND_HELD, "gemini": ONE_TOOL}
NATIVE = {"ollama": TOLD_AND_HELD, "gemini": HELD}

MODES = {
    "auto": Mode(City, OPEN, {"ollama": BY_JSON, "gemini": BY_TOOL}, CITY),
    "tool": Mode(ToolOutput(City), **either(ONE_TOOL, BY_TOOL), output=CITY),
    "tool, renamed": Mode(
        ToolOutput(City, name="place"),
        **either(Left(None, ["place"], schema_told=False), Reply.tool_call("place", PARIS)),
        output=CITY,
    ),
    "native": Mode(NativeOutput(City), NATIVE, dict.fromkeys(BOTH, BY_JSON), CITY),
    "prompted": Mode(PromptedOutput(City), **either(PROMPTED, BY_JSON), output=CITY),
    "prompted, fenced": Mode(PromptedOutput(City), **either(PROMPTED, FENCED), output=CITY),
    "prompted, own words": Mode(
        PromptedOutput(City, template="As JSON: {schema}"), **either(PROMPTED, BY_JSON), output=CITY
    ),
    "prompted, untold": Mode(
        PromptedOutput(City, template=False),
        **either(Left("json", [], schema_told=False), BY_JSON),
        output=CITY,
    ),
    "text": Mode(str, **either(FREE, Reply.text("Paris.")), output="Paris."),
    "text through a function": Mode(TextOutput(shout), **either(FREE, Reply.text("Paris.")), output="PARIS."),
    "union": Mode(
        [City, Country],
        {"ollama": TOLD_AND_HELD, "gemini": Left(None, TWO_TOOLS, schema_told=False)},
        {"ollama": CHOSEN, "gemini": CHOSEN_BY_TOOL},
        FRANCE,
    ),
    "union of tools": Mode(
        [ToolOutput(City, name="city"), ToolOutput(Country, name="country")],
        **either(
            Left(None, ["city", "country"], schema_told=False), Reply.tool_call("country", {"name": "France"})
        ),
        output=FRANCE,
    ),
    "native union": Mode(NativeOutput([City, Country]), NATIVE, dict.fromkeys(BOTH, CHOSEN), FRANCE),
    "prompted union": Mode(PromptedOutput([City, Country]), **either(PROMPTED, CHOSEN), output=FRANCE),
    "function": Mode(locate, OPEN, {"ollama": BY_JSON, "gemini": BY_TOOL}, "Paris in France"),
    "function by tool": Mode(ToolOutput(locate), **either(ONE_TOOL, BY_TOOL), output="Paris in France"),
    "no object": Mode(
        list[int],
        OPEN,
        {
            "ollama": Reply.json({"response": [1, 2]}),
            "gemini": Reply.tool_call("final_result", {"response": [1, 2]}),
        },
        [1, 2],
    ),
    "object or text, as object": Mode([City, str], **either(ONE_TOOL, BY_TOOL), output=CITY),
    "object or text, as text": Mode([City, str], **either(ONE_TOOL, Reply.text("Paris.")), output="Paris."),
    "object or text through a function": Mode(
        [City, TextOutput(shout)], **either(ONE_TOOL, Reply.text("Paris.")), output="PARIS."
    ),
}


@pytest.fixture
async def world(sqlite_url: str) -> AsyncIterator[World]:
    async with world_on(sqlite_url) as world:
        yield world


def left(provider: str, body: Any) -> Left:
    told = '"properties"' in instructed(provider, body)
    return Left(held_to(provider, body), declared(provider, body), told)


async def test_each_mode_of_output_leaves_in_its_providers_way_and_comes_back_typed(world: World) -> None:
    for name, mode in MODES.items():
        for provider in BOTH:
            stub = world.stub(provider)
            stub.script(mode.replies[provider])
            agent: Agent[None, Any] = Agent(
                world.model(provider, cache="bypass"), output_type=mode.output_type
            )
            result = await agent.run("Where is the Louvre?", **ACME)
            assert result.output == mode.output, (name, provider)
            assert left(provider, world.asked(stub)[-1]) == mode.left[provider], (name, provider)
            assert len(result.all_messages()) <= 3, (name, provider, "at the first try")


async def test_an_output_is_forced_only_where_no_text_would_do(world: World) -> None:
    world.gemini.script(BY_TOOL, BY_TOOL)
    for output_type, how in ((City, "ANY"), ([City, str], "AUTO")):
        agent: Agent[None, Any] = Agent(world.model("gemini"), output_type=output_type)
        await agent.run("Where is the Louvre?", **ACME)
        assert world.asked(world.gemini)[-1]["toolConfig"]["functionCallingConfig"]["mode"] == how


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize("wrap", [PromptedOutput, NativeOutput])
async def test_beside_tools_the_schema_is_in_the_instructions_alone(
    world: World, provider: str, wrap: Any
) -> None:
    """A format would keep the model from calling them."""
    stub = world.stub(provider)
    stub.script(Reply.tool_call("population", {"of": "Paris"}), BY_JSON)
    agent: Agent[None, City] = Agent(world.model(provider), output_type=wrap(City))

    @agent.tool_plain
    def population(of: str) -> int:
        """How many live there."""
        return len(of)

    assert (await agent.run("Where is the Louvre?", **ACME)).output == CITY
    for body in world.asked(stub):
        assert left(provider, body) == Left(None, ["population"], schema_told=True)


@pytest.mark.parametrize("provider", BOTH)
async def test_an_output_that_does_not_validate_is_asked_for_again_in_its_own_mode(
    world: World, provider: str
) -> None:
    stub = world.stub(provider)
    stub.script(Reply.json({"name": "Paris"}), BY_JSON)
    agent: Agent[None, City] = Agent(world.model(provider), output_type=PromptedOutput(City))
    assert (await agent.run("Where is the Louvre?", **ACME)).output == CITY
    first, second = world.asked(stub)
    assert left(provider, first) == left(provider, second) == PROMPTED
    assert "Field required" in json.dumps(second)


@pytest.mark.parametrize("mode", ["auto", "union", "function", "native union", "prompted, fenced"])
async def test_the_same_agent_works_when_the_other_lane_answers(world: World, mode: str) -> None:
    output_type, expected, replies, output = MODES[mode]
    world.ollama.script(Reply.status(503))
    world.gemini.script(replies["gemini"])
    agent: Agent[None, Any] = Agent(PydanticAiLiteLLMModel(world.llm), output_type=output_type)
    assert (await agent.run("Where is the Louvre?", **ACME)).output == output
    asked = {provider: world.asked(world.stub(provider)) for provider in BOTH}
    assert {provider: [left(provider, body) for body in asked[provider]] for provider in BOTH} == {
        provider: [expected[provider]] for provider in BOTH
    }


@pytest.mark.parametrize("mode", ["auto", "native", "prompted"])
async def test_invalid_output_of_one_lane_falls_back_to_the_other(world: World, mode: str) -> None:
    output_type, expected, replies, output = MODES[mode]
    world.ollama.script(Reply.json({"name": "Paris"}))
    world.gemini.script(replies["gemini"])
    model = PydanticAiLiteLLMModel(world.llm, fallback_on_invalid_output=True)
    agent: Agent[None, City] = Agent(model, output_type=output_type)
    assert (await agent.run("Where is the Louvre?", **ACME)).output == output
    assert world.sends == (1, 1)
    assert left("gemini", world.asked(world.gemini)[0]) == expected["gemini"]


@pytest.mark.parametrize("provider", BOTH)
@pytest.mark.parametrize("mode", ["auto", "native", "prompted", "union", "object or text, as object"])
async def test_each_mode_streams(world: World, provider: str, mode: str) -> None:
    output_type, _, replies, output = MODES[mode]
    world.stub(provider).script(replies[provider])
    agent: Agent[None, Any] = Agent(world.model(provider), output_type=output_type)
    async with agent.run_stream("Where is the Louvre?", **ACME) as result:
        assert await result.get_output() == output

"""A PydanticAI agent with structured output: on our adapter, and on a model that is a function."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bench.cases.ours import service
from bench.measure import Call
from bench.stub import CITY
from bench.world import World, prompt

if TYPE_CHECKING:
    from pydantic_ai import Agent


class City(BaseModel):
    """A city."""

    name: str
    country: str


@asynccontextmanager
async def on_ours(world: World) -> AsyncIterator[Call]:
    """Yield one run of the agent through our adapter, with a key, recorded on SQLite."""
    from app.llm.pydanticai import PydanticAiLiteLLMModel  # noqa: PLC0415  # PydanticAI takes a second to load

    async with service(world, database_url=world.file("agent")) as llm:
        agent = _agent(PydanticAiLiteLLMModel(llm, profile="fast"))

        async def call(number: int) -> None:
            key = {"idempotency_key": f"agent-{number}", "stage": "bench"}
            _check((await agent.run(prompt(number), metadata=key)).output)

        yield call


@asynccontextmanager
async def on_function_model(world: World) -> AsyncIterator[Call]:  # noqa: ARG001  # it asks nobody
    """Yield the same run without any network: what PydanticAI costs by itself."""
    from pydantic_ai.messages import ModelResponse, TextPart  # noqa: PLC0415
    from pydantic_ai.models.function import FunctionModel  # noqa: PLC0415
    from pydantic_ai.profiles import ModelProfile  # noqa: PLC0415

    said = City.model_validate(CITY).model_dump_json()

    def answer(_messages: Any, _info: Any) -> ModelResponse:
        return ModelResponse(parts=[TextPart(content=said)])

    native = ModelProfile(supports_json_schema_output=True, default_structured_output_mode="native")
    agent = _agent(FunctionModel(answer, profile=native))  # as our adapter asks Ollama

    async def call(number: int) -> None:
        _check((await agent.run(prompt(number), metadata={"stage": "bench"})).output)

    yield call


def _agent(model: Any) -> "Agent[None, City]":
    from pydantic_ai import Agent  # noqa: PLC0415

    return Agent(model, output_type=City, name="cities", instructions="Name the city.")


def _check(output: City) -> None:
    if output.model_dump() != CITY:
        raise RuntimeError(f"the agent returned {output!r}")

"""The world of durable agents: a service on a database of either kind, both providers, and what the tools did."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, FunctionToolset
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel, RecordedToolset
from app.llm.service import LLMService
from app.llm.settings import isolated_settings
from app.llm.testing import StubGemini, StubOllama
from tests.support.ledger import Outside

RUN = {"workspace_id": "acme", "idempotency_key": "k"}
MODELS = {"ollama": "ollama:llama3.2", "gemini": "gemini:gemini-2.5-flash"}


class Receipt(BaseModel):
    """What a till gives."""

    order: int
    day: date
    amount: Decimal


RECEIPT = Receipt(order=1, day=date(2026, 11, 21), amount=Decimal("12.50"))


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


@asynccontextmanager
async def world_on(db_url: str) -> AsyncIterator[World]:
    """Yield a service on stubs of both providers."""
    outside = Outside(db_url)
    with StubOllama() as ollama, StubGemini() as gemini:
        settings = isolated_settings(
            ollama_api_base=ollama.base_url,
            gemini_api_base=gemini.base_url,
            gemini_api_key="stub-key",
            database_url=db_url,
        )
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


def same_providers(world: World) -> dict[str, Any]:
    """Return the settings of another service on the stub of Ollama and the same database."""
    url = world.outside.engine.url.render_as_string(hide_password=False)
    return {"ollama_api_base": world.ollama.base_url, "database_url": url, "profile_balanced": "ollama"}

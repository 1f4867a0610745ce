"""The whole stack below an agent: the service with its ledger, LiteLLM, and a stub of each provider."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.service import LLMService
from app.llm.settings import isolated_settings
from app.llm.testing import StubGemini, StubOllama

PARIS = {"name": "Paris", "country": "France"}
MODELS = {"ollama": "ollama:llama3.2", "gemini": "gemini:gemini-2.5-flash"}
ACME: dict[str, Any] = {"metadata": {"workspace_id": "acme"}}


class City(BaseModel):
    """A city."""

    name: str
    country: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A service and its two providers."""

    llm: LLMService
    ollama: StubOllama
    gemini: StubGemini

    @property
    def sends(self) -> tuple[int, int]:
        return self.ollama.sends, self.gemini.sends

    def stub(self, provider: str) -> StubOllama | StubGemini:
        return self.ollama if provider == "ollama" else self.gemini

    def asked(self, stub: StubOllama | StubGemini) -> list[Any]:
        """The bodies of its model calls, in order."""
        return [received.body for received in stub.requests if received.ordinal]

    def model(self, provider: str, **given: Any) -> PydanticAiLiteLLMModel:
        """Return a model that only this provider serves."""
        return PydanticAiLiteLLMModel(self.llm, model=MODELS[provider], **given)


@asynccontextmanager
async def world_on(database_url: str, **given: Any) -> AsyncIterator[World]:
    """Yield a service on stubs of both providers."""
    able = {"llama3.2": ("completion", "tools", "thinking")}
    with (
        StubOllama(models=("llama3.2", "qwen3-vl"), capabilities=able) as ollama,
        StubGemini() as gemini,
    ):
        settings = isolated_settings(
            ollama_api_base=ollama.base_url,
            gemini_api_base=gemini.base_url,
            gemini_api_key="stub-key",
            database_url=database_url,
            attempts_per_candidate=1,
            cache_enabled=True,
            **given,
        )
        async with build_llm_service(settings) as llm:
            yield World(llm=llm, ollama=ollama, gemini=gemini)


def declared(provider: str, body: Any) -> list[str]:
    """Return the names of the tools that left, in order."""
    tools = body.get("tools") or []
    if provider == "ollama":
        return [tool["function"]["name"] for tool in tools]
    return [one["name"] for tool in tools for one in tool["function_declarations"]]


def held_to(provider: str, body: Any) -> str | None:
    """Return what the text of an answer is held to: `schema`, `json` or nothing."""
    if provider == "ollama":
        wanted = body.get("format")
        return "schema" if isinstance(wanted, dict) else wanted
    config = body.get("generationConfig", {})
    if "response_json_schema" in config:
        return "schema"
    return "json" if config.get("response_mime_type") == "application/json" else None


def instructed(provider: str, body: Any) -> str:
    """Return the system message that left."""
    if provider == "gemini":
        return "".join(part["text"] for part in body.get("system_instruction", {}).get("parts", ()))
    return "".join(message["content"] for message in body["messages"] if message["role"] == "system")

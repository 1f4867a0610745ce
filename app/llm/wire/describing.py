"""Asks Ollama what it has and what that can do, within one time limit; nothing of it is a call, and nothing is paid."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.llm.candidates import Candidate, ModelFacts
from app.llm.errors import LLMTimeout, LLMUnavailable
from app.llm.providers import ollama, ollama_says
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider
from app.llm.wire.exchange import GOOD, BrokenOff, Exchange, Unreachable, UnusableReply

if TYPE_CHECKING:
    from app.llm.wire.http import OneRequestHTTP

MAX_BYTES = 4 * 2**20
"""Of one answer; /api/show quotes licences and templates."""


class OllamaDescriber:
    """The `Describer` of production."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._lines: dict[LLMProvider, OneRequestHTTP] = {}

    def asks_about(self, candidate: Candidate) -> bool:
        """Return whether it is a model of Ollama's, on a host that may be asked."""
        reachable = candidate.local or not self._settings.local_only
        return candidate.provider is LLMProvider.OLLAMA and candidate.enabled and reachable

    async def describe(self, candidates: Sequence[Candidate]) -> Mapping[str, ModelFacts]:
        """Return what Ollama says of its models; as in `Describer.describe`."""
        line = self._lines.get(LLMProvider.OLLAMA)
        if line is None:  # whoever comes meanwhile takes the first one, too
            line = self._lines.setdefault(LLMProvider.OLLAMA, await asyncio.to_thread(self._opened))
        limit_s = self._settings.learn_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._described(line, candidates)
        except TimeoutError:
            raise LLMTimeout(
                f"ollama did not describe its models within {limit_s:g} s (LLM_LEARN_TIMEOUT_S)"
            ) from None
        except (Unreachable, BrokenOff, UnusableReply, ValueError) as error:
            raise LLMUnavailable(
                f"ollama did not describe its models: {type(error).__name__}: {error}"
            ) from None

    async def close(self) -> None:
        """Close the connections; idempotent."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.close()

    async def _described(
        self, line: "OneRequestHTTP", candidates: Sequence[Candidate]
    ) -> Mapping[str, ModelFacts]:
        tags = await self._asked(line, ollama_says.TAGS)
        there = [each for each in candidates if ollama_says.has_model(tags, each.model)]
        return {each.name: await self._facts(line, tags, each.model) for each in there}

    async def _facts(self, line: "OneRequestHTTP", tags: Any, model: str) -> ModelFacts:
        said = ollama_says.facts_of(await self._asked(line, ollama_says.SHOW, {"model": model}))
        return said.model_copy(update={"weights": ollama_says.weights_of(tags, model)})

    async def _asked(self, line: "OneRequestHTTP", path: str, body: Mapping[str, str] | None = None) -> Any:
        exchange = Exchange(max_bytes=MAX_BYTES, on_send=lambda: None)
        url, headers = ollama.api_base(self._settings) + path, ollama_says.headers(self._settings)
        if body is None:
            await line.fetch(url, headers, exchange)
        else:
            await line.send(url, headers, json.dumps(body).encode(), exchange)
        if exchange.status not in GOOD:
            raise UnusableReply(f"{path} was answered with status {exchange.status}")
        return json.loads(exchange.body)

    def _opened(self) -> "OneRequestHTTP":
        from app.llm.wire.lanes import line_to  # noqa: PLC0415  # loads aiohttp and httpx

        return line_to(self._settings, LLMProvider.OLLAMA)

"""Services of the bootstrap on stubs over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from app.bootstrap import build_llm_service
from app.llm.service import LLMService
from app.llm.testing import StubGemini, StubOllama
from tests.support.ledger import settings_for
from tests.support.service import Faulty


@dataclass
class Stubs:
    """One of each provider."""

    ollama: StubOllama
    gemini: StubGemini

    def of(self, name: str) -> StubOllama | StubGemini:
        """Return the one that serves a candidate."""
        return self.ollama if name.startswith("ollama:") else self.gemini


@asynccontextmanager
async def wired(db_url: str, stubs: Stubs, **settings: Any) -> AsyncIterator[LLMService]:
    """Yield a service whose candidates `ollama:first` and `gemini:second` are the stubs."""
    bases = {"ollama_api_base": stubs.ollama.base_url, "gemini_api_base": stubs.gemini.base_url}
    async with build_llm_service(settings_for(db_url, **bases, **settings)) as llm:
        yield llm


def cut_from_its_database(llm: LLMService) -> None:
    """Let runs end in the spool from now on."""
    repo: Any = llm._repo
    repo._executor = Faulty(repo._executor)
    repo._executor.away_for.add("finish")

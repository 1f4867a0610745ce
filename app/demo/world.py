"""What the demo runs on: a service, the providers behind it, and a database of its own that is read as it is."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.bootstrap import build_llm_service
from app.core.heap import settle_heap
from app.llm import LLMService, load_settings
from app.llm.settings import isolated_settings
from app.llm.testing import StubGemini, StubOllama

STUB_KEY = "stub-key"
Rows = list[dict[str, Any]]

_RUNS = """
SELECT id, substr(id, -6) AS run, stage, status, provider, model, route, input_tokens AS "in", output_tokens AS "out",
       saved_input_tokens + saved_output_tokens AS saved, round(latency_ms, 1) AS ms,
       CASE WHEN source_run_id IS NULL THEN 'live' ELSE 'cache' END AS served_from,
       (SELECT count(*) FROM llm_attempts WHERE run_id = llm_runs.id) AS sends
FROM llm_runs WHERE (:stage IS NULL OR stage = :stage) AND (:run_id IS NULL OR id = :run_id) ORDER BY id
"""
_ATTEMPTS = """
SELECT ordinal, provider, model, status, error_code,
       round((julianday(finished_at) - julianday(started_at)) * 86400000, 1) AS ms
FROM llm_attempts WHERE run_id = :run_id ORDER BY ordinal
"""
_SUMS = """
SELECT count(*) AS runs, sum(status = 'SUCCEEDED') AS succeeded, sum(source_run_id IS NOT NULL) AS hits,
       sum(replayed_count) AS replays, (SELECT count(*) FROM llm_attempts) AS attempts,
       (SELECT count(*) FROM llm_attempts WHERE error_code = 'unavailable' AND NOT possibly_paid) AS "of them refused",
       sum(input_tokens + output_tokens) AS tokens, sum(saved_input_tokens + saved_output_tokens) AS "tokens saved"
FROM llm_runs
"""


@dataclass(slots=True, kw_only=True)
class World:
    """The service and its surroundings."""

    llm: LLMService
    file: Path
    stubs: tuple[StubOllama | StubGemini, ...] = ()

    @property
    def can_fail(self) -> bool:
        """Whether the primary can be taken down."""
        return bool(self.stubs)

    @property
    def counted(self) -> str:
        """Say where `sends` was read."""
        return "counted by the stubs" if self.stubs else "recorded in llm_attempts"

    def sends(self) -> int:
        """Return how many model calls reached the providers: counted there, or from the ledger for real ones."""
        if self.stubs:
            return sum(stub.sends for stub in self.stubs)
        return int(self._read("SELECT count(*) AS n FROM llm_attempts")[0]["n"])

    def take_down(self) -> None:
        """Refuse connections at the primary."""
        self.stubs[0].down()

    def bring_up(self) -> None:
        """Listen again, on the same port."""
        self.stubs[0].up()

    async def runs(self, *, stage: str | None = None, run_id: str | None = None) -> Rows:
        """Return runs, oldest first, with the route decoded."""
        await self.llm.drain()
        rows = await asyncio.to_thread(self._read, _RUNS, stage=stage, run_id=run_id)
        return [{**row, "route": json.loads(row["route"])} for row in rows]

    async def attempts(self, run_id: str) -> Rows:
        """Return the sends of a run."""
        return await asyncio.to_thread(self._read, _ATTEMPTS, run_id=run_id)

    async def sums(self) -> dict[str, Any]:
        """Return the sums over the ledger, and the providers' own count of sends."""
        await self.llm.drain()
        (sums,) = await asyncio.to_thread(self._read, _SUMS)
        return {**sums, "arrived at providers": self.sends()} if self.stubs else sums

    def _read(self, sql: str, **values: Any) -> Rows:
        with closing(sqlite3.connect(self.file)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]


@contextmanager
def _own_database() -> Iterator[tuple[Path, dict[str, Any]]]:
    with TemporaryDirectory(prefix="signalbox-demo-") as directory:
        file = Path(directory) / "demo.db"
        yield file, {"database_url": f"sqlite+aiosqlite:///{file}", "cache_enabled": True}


@asynccontextmanager
async def stub_world() -> AsyncIterator[World]:
    """Yield a world of stub providers on loopback; the environment's settings are not read."""
    with (
        StubOllama(
            models=("llama3.2", "gemma3"), capabilities={"gemma3": ("completion", "vision")}
        ) as ollama,
        StubGemini(api_key=STUB_KEY) as gemini,
        _own_database() as (file, own),
    ):
        settings = isolated_settings(
            ollama_api_base=ollama.base_url,
            gemini_api_base=gemini.base_url,
            gemini_api_key=STUB_KEY,
            profile_balanced="ollama:gemma3,ollama,gemini",
            **own,
        )
        async with build_llm_service(settings) as llm:
            await llm.warm_up()
            settle_heap()
            yield World(llm=llm, file=file, stubs=(ollama, gemini))


@asynccontextmanager
async def live_world(chosen: Mapping[str, object]) -> AsyncIterator[World]:
    """Yield a world of the environment's providers, with `chosen` settings and a database of its own."""
    with _own_database() as (file, own):
        async with build_llm_service(load_settings(**own, **chosen)) as llm:
            await llm.warm_up()
            settle_heap()
            yield World(llm=llm, file=file)

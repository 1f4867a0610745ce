"""Builders and looks from outside: runs to claim, answers to settle them with, and the rows as others see them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import zstandard
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.ids import new_id
from app.db.engine import build_engine
from app.llm.candidates import Candidate, RouteDecision
from app.llm.errors import LLMCancelled, LLMTimeout
from app.llm.fingerprint import flight_slot, prompt_sha256, request_sha256
from app.llm.messages import Message, TextPart
from app.llm.persistence.models import LLMAttempt, LLMPayload, LLMRun
from app.llm.ports import Failure, NewRun, Success
from app.llm.providers import Catalog
from app.llm.router import LLMRouter
from app.llm.settings import LLMSettings, isolated_settings
from app.llm.types import Attempt, FinishReason, LLMProvider, LLMRequest, LLMResponse, ServedFrom, TokenUsage

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "ollama:first", "gemini:second"
GEMINI_KEY = "test-key-0123456789"
SETTINGS: dict[str, Any] = {
    "profile_fast": FIRST,
    "profile_balanced": f"{FIRST},{SECOND}",
    "profile_advanced": f"{SECOND},{FIRST}",
    "gemini_api_key": GEMINI_KEY,
    "default_workspace": "w1",
    "learn_timeout_s": 0,
}
"""Two candidates; the first one is local, and stubs meet nothing but calls."""


def settings_for(url: str, **values: Any) -> LLMSettings:
    """Return test settings, without a look at the environment; `values` beat `SETTINGS`."""
    return isolated_settings(**{**SETTINGS, "database_url": url, **values})


def request(text: str = "What is a signal box?", **fields: Any) -> LLMRequest:
    return LLMRequest(messages=(Message.user(text),), **fields)


def route_of(asked: LLMRequest) -> RouteDecision:
    settings = isolated_settings(**SETTINGS)
    return LLMRouter.from_settings(settings).route(asked, caps=Catalog.from_settings(settings))


def new_run(
    asked: LLMRequest | None = None,
    *,
    workspace: str = "w1",
    flight: bool = False,
    cache: bool = False,
    lease_s: float = 60.0,
    **fields: Any,
) -> NewRun:
    """Return a run as the service would hand it to the ledger; `key` is the request's."""
    asked = asked or request()
    route, prompt = route_of(asked), prompt_sha256(asked)
    identities = tuple(candidate.identity for candidate in route.kept)
    return NewRun(
        run_id=new_id(),
        workspace_id=workspace,
        request=asked,
        profile=route.profile,
        route=route,
        prompt_sha256=prompt,
        request_sha256=request_sha256(asked, prompt=prompt),
        lease_s=lease_s,
        idempotency_key=asked.idempotency_key,
        flight_slot=flight_slot(workspace, prompt, identities[0]) if flight else None,
        cache_mode=asked.cache,
        cache_candidates=identities[:1] if cache else (),
        force=asked.force_new_execution,
        **fields,
    )


def again(run: NewRun, **changes: Any) -> NewRun:
    """Return the same call under another run id."""
    return replace(run, **{"run_id": new_id(), **changes})


def attempt(ordinal: int = 1, *, candidate: Candidate | None = None, **fields: Any) -> Attempt:
    candidate = candidate or route_of(request()).kept[0]
    now = datetime.now(UTC)
    facts: dict[str, Any] = {
        "ordinal": ordinal,
        "provider": candidate.provider,
        "model": candidate.model,
        "candidate_sha256": candidate.identity,
        "status": "SUCCEEDED",
        "started_at": now,
        "finished_at": now + timedelta(milliseconds=5),
        "latency_ms": 5.0,
        "http_status": 200,
        "usage": TokenUsage(input_tokens=3, output_tokens=5),
        "cost_usd": 0.0,
    }
    return Attempt(**{**facts, **fields})


def response(
    run: NewRun, text: str = "A box.", *, finish: FinishReason = FinishReason.STOP, **fields: Any
) -> LLMResponse:
    usage = TokenUsage(input_tokens=3, output_tokens=5)
    facts: dict[str, Any] = {
        "parts": (TextPart(text=text),),
        "finish_reason": finish,
        "usage": usage,
        "original_usage": usage,
        "provider": LLMProvider.OLLAMA,
        "model": "first",
        "run_id": run.run_id,
        "served_from": ServedFrom.LIVE,
        "route": tuple(run.route.summary()),
        "latency_ms": 12.0,
        "cost_usd": 0.0,
    }
    return LLMResponse(**{**facts, **fields})


def success(
    run: NewRun, text: str = "A box.", *, candidate: Candidate | None = None, sends: int = 1, **fields: Any
) -> Success:
    """Return an answer; the sends before the last one timed out."""
    candidate = candidate or run.route.kept[0]
    failed = [
        attempt(n, candidate=candidate, status="FAILED", error_code="timeout", possibly_paid=True)
        for n in range(1, sends)
    ]
    return Success(
        response=response(run, text, **fields),
        candidate_sha256=candidate.identity,
        attempts=[*failed, attempt(sends, candidate=candidate)],
        queue_wait_ms=1.0,
    )


def failure(*, sends: int = 1, possibly_paid: bool = True) -> Failure:
    return Failure(
        error=LLMTimeout("no answer in time", possibly_paid=possibly_paid),
        attempts=[
            attempt(n, status="FAILED", error_code="timeout", possibly_paid=possibly_paid)
            for n in range(1, sends + 1)
        ],
        queue_wait_ms=1.0,
        latency_ms=9.0,
    )


def cancellation() -> Failure:
    return Failure(error=LLMCancelled("gone"), attempts=(), queue_wait_ms=0.0, latency_ms=1.0)


class Outside:
    """Another connection to the ledger's database: it sees what is committed, and moves times by SQL."""

    def __init__(self, url: str) -> None:
        self.engine: AsyncEngine = build_engine(url, timeout_s=5)
        self._reader = self.engine
        if url.startswith("sqlite"):  # where only one may write
            self._reader = build_engine(url, timeout_s=5, read_only=True)

    async def close(self) -> None:
        await self.engine.dispose()
        await self._reader.dispose()

    async def rows(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        async with self._reader.connect() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]

    async def runs(self, **where: Any) -> list[dict[str, Any]]:
        """Return rows of llm_runs in order of creation."""
        statement = sa.select(LLMRun.__table__).order_by(sa.text("created_at, execution, id"))
        return await self.rows(statement.filter_by(**where))

    async def run(self, run_id: str) -> dict[str, Any]:
        return (await self.runs(id=run_id))[0]

    async def attempts(self, run_id: str) -> list[dict[str, Any]]:
        table = LLMAttempt.__table__
        return await self.rows(sa.select(table).where(table.c.run_id == run_id).order_by(table.c.ordinal))

    async def payloads(self) -> list[dict[str, Any]]:
        return await self.rows(sa.select(LLMPayload.__table__))

    async def texts(self) -> dict[str, bytes]:
        """Return the stored texts by address, unpacked; nothing is encrypted."""
        return {row["sha256"]: unpacked(row) for row in await self.payloads()}

    async def update(self, run_id: str, **values: Any) -> None:
        async with self.engine.begin() as connection:
            table = LLMRun.__table__
            await connection.execute(sa.update(table).where(table.c.id == run_id).values(**values))

    async def end_lease(self, run_id: str) -> None:
        """Let a run's lease be over since a minute."""
        await self.update(run_id, lease_until=datetime.now(UTC) - timedelta(minutes=1))

    async def end_leases(self) -> None:
        """Let every lease be over."""
        async with self.engine.begin() as connection:
            past = datetime.now(UTC) - timedelta(minutes=1)
            await connection.execute(sa.update(LLMRun.__table__).values(lease_until=past))

    async def expire(self, run_id: str) -> None:
        """Let a key's answer have expired a minute ago."""
        await self.update(run_id, expires_at=datetime.now(UTC) - timedelta(minutes=1))

    async def age(self, run_id: str, seconds: float) -> None:
        """Let a run have finished `seconds` ago."""
        await self.update(run_id, finished_at=datetime.now(UTC) - timedelta(seconds=seconds))


def unpacked(payload: Mapping[str, Any]) -> bytes:
    """Return a payload's bytes as anybody can read them: without compression; with encryption, if they are encrypted."""
    data: bytes = payload["bytes"]
    return zstandard.decompress(data) if payload["codec"] == 1 else data


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Return the names of the columns that differ."""
    return {name for name in before if before[name] != after[name]}

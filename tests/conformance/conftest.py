"""Every implementation of the ledger's port, each on its databases."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.bootstrap import connect
from app.core.clock import SystemClock
from app.db.engine import build_engine
from app.llm.persistence.autonomous import AutonomousRunRepo
from app.llm.persistence.memory import MemoryRunRepo
from app.llm.persistence.repo import SqlAlchemyLLMRunRepo
from app.llm.persistence.spool.files import default_directory
from app.llm.persistence.spool.pending import Spool
from app.llm.settings import StorePayloads
from app.llm.telemetry import Telemetry
from tests.support.ledger import Outside, settings_for
from tests.support.service import rules_of


class Ledger:
    """One binding on one database; every owner is a process of its own, as far as the ledger can tell."""

    def __init__(self, url: str, binding: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.binding = binding
        self.outside = Outside(url)
        self._stack = stack
        self._sessions: list[AsyncSession] = []
        self._repos: list[Any] = []

    def repo(self, owner: str = "one", **values: Any) -> Any:
        """Return a repo of `owner` under these settings."""
        settings = settings_for(self.url, ledger_timeout_s=5, **values)
        rules, telemetry = rules_of(settings, owner), Telemetry()
        keep = settings.store_payloads is StorePayloads.FULL
        if self.binding == "joined":
            engine = build_engine(self.url, timeout_s=5)
            self._stack.push_async_callback(engine.dispose)
            session = AsyncSession(engine)
            self._stack.push_async_callback(session.close)
            self._sessions.append(session)
            made: Any = SqlAlchemyLLMRunRepo(
                session, rules, keep_payloads=keep, telemetry=telemetry, timeout_s=5
            )
        else:
            made = AutonomousRunRepo(
                connect(self.url, timeout_s=5),
                rules,
                Spool(default_directory(self.url), self.url),
                keep_payloads=keep,
                telemetry=telemetry,
                clock=SystemClock(),
                finish_budget_s=1,
            )
            self._stack.push_async_callback(made.close)
        self._repos.append(made)
        return made

    async def seen(self) -> Outside:
        """Let everything become visible to others, and return their view."""
        for repo in self._repos:
            await repo.drain()
        for session in self._sessions:
            await session.commit()
        return self.outside


@pytest.fixture(params=["autonomous", "joined"])
def binding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def ledger(db_url: str, binding: str) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        made = Ledger(db_url, binding, stack)
        stack.push_async_callback(made.outside.close)
        yield made


@pytest.fixture
async def autonomous(db_url: str) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        made = Ledger(db_url, "autonomous", stack)
        stack.push_async_callback(made.outside.close)
        yield made


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.pg)])
def flights_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "memory":
        return None
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "pg_url"))


@pytest.fixture
async def flights(flights_url: str | None) -> AsyncIterator[Any]:
    """A repo that knows flights and the cache, with a database or without one."""
    if flights_url is None:
        yield MemoryRunRepo(clock=SystemClock(), cache_ttl_s=3600)
        return
    async with AsyncExitStack() as stack:
        made = Ledger(flights_url, "autonomous", stack)
        stack.push_async_callback(made.outside.close)
        yield made.repo(cache_enabled=True)

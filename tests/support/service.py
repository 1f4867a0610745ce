"""Services to test: one call builds them, through the bootstrap or around a faulty executor."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.bootstrap import build_llm_service, connect, payload_codec
from app.core.clock import SystemClock
from app.core.ids import new_id
from app.llm.candidates import Candidate
from app.llm.errors import LLMLedgerUnavailable, LLMRateLimited, LLMTimeout, LLMUnavailable
from app.llm.messages import TextPart
from app.llm.persistence.autonomous import AutonomousRunRepo
from app.llm.persistence.executor import Executor, Result, Step, Steps, unrolled
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.repo import SqlAlchemyLLMRunRepo
from app.llm.persistence.spool.files import default_directory
from app.llm.persistence.spool.pending import Spool
from app.llm.ports import ChatClient, Clock, Listener, ProviderReply
from app.llm.providers import Catalog
from app.llm.service import LLMService, Wiring
from app.llm.settings import LLMSettings, OnAbandoned, StorePayloads
from app.llm.telemetry import Telemetry
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import FinishReason, LLMRequest, TokenUsage
from tests.support.ledger import settings_for
from tests.support.loops import HomeLoop


@asynccontextmanager
async def service(
    db_url: str, client: ChatClient | None = None, **settings: Any
) -> AsyncIterator[LLMService]:
    """Yield a service as the bootstrap wires it, over a scripted client."""
    async with build_llm_service(settings_for(db_url, **settings), client=client or ScriptedClient()) as llm:
        yield llm


class Faulty:
    """The executor's seam with faults: `away` refuses everything, hooks look at each transition by its name."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.away = False
        self.away_for: set[str] = set()
        """Names of transitions (`claim`, `finish`, `note_send` ...) that do not reach the database."""
        self.lost_acknowledgements: set[str] = set()
        """Names of transitions that are committed and then reported as failed, once each."""
        self.gates: dict[str, asyncio.Event] = {}
        """What transitions of a name wait for before they reach the database."""
        self.seen: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.between: Callable[[str], None] = lambda _: None
        """Called inside the transaction, after each of its steps, on the loop."""
        self.after: Callable[[str], None] = lambda _: None

    async def transaction(self, steps: Callable[[], Steps[Any]]) -> Any:
        first = steps()
        name = first.gi_code.co_name
        first.close()
        self.seen.append(name)
        self.before(name)
        if name in self.gates:
            await self.gates[name].wait()
        if self.away or name in self.away_for:
            raise LLMLedgerUnavailable("the database is away")
        home = HomeLoop()
        outcome = await self.inner.transaction(lambda: self._watched(name, steps(), home))
        self.after(name)
        if name in self.lost_acknowledgements:
            self.lost_acknowledgements.discard(name)
            raise LLMLedgerUnavailable("the connection broke after the commit")
        return outcome

    def _watched(self, name: str, steps: Steps[Any], home: HomeLoop) -> Steps[Any]:
        steps = unrolled(steps)
        step = next(steps)
        try:
            while True:
                result = yield step
                home.call(lambda: self.between(name))
                step = steps.send(result)
        except StopIteration as end:
            return end.value

    async def read(self, step: Step) -> Result:
        self.seen.append("read")
        self.before("read")
        if self.away or "read" in self.away_for:
            raise LLMLedgerUnavailable("the database is away")
        return await self.inner.read(step)

    async def close(self) -> None:
        await self.inner.close()


class QuickClock(SystemClock):
    """The real clock whose waits are skipped: noted, and added to the time."""

    __slots__ = ("slept",)

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic_s(self) -> float:
        return super().monotonic_s() + sum(self.slept)

    async def sleep_s(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@dataclass
class Rig:
    """A service with its inner parts at hand."""

    llm: LLMService
    repo: AutonomousRunRepo
    executor: Any
    ledger: Faulty
    client: Any
    spool: Path

    def checked_out(self) -> int:
        """Return how many transactions were begun and have not ended."""
        outstanding: int = self.executor.outstanding
        return outstanding


@asynccontextmanager
async def rig(
    db_url: str,
    client: Any = None,
    *,
    clock: Clock | None = None,
    owner: str | None = None,
    opened: bool = True,
    **values: Any,
) -> AsyncIterator[Rig]:
    """Yield a service whose executor can be made to fail; its ledger is still to be opened if not `opened`."""
    settings = settings_for(db_url, **values)
    executor = connect(db_url, timeout_s=settings.ledger_timeout_s)
    faulty, client, clock = Faulty(executor), client or ScriptedClient(), clock or QuickClock()
    telemetry = Telemetry()
    keep = settings.store_payloads is StorePayloads.FULL
    rules = rules_of(settings, owner or f"test:{os.getpid()}:{new_id()[-12:]}")
    spool = settings.spool_dir or default_directory(db_url)
    repo = AutonomousRunRepo(
        faulty,
        rules,
        Spool(spool, db_url),
        keep_payloads=keep,
        telemetry=telemetry,
        clock=clock,
        finish_budget_s=settings.finish_budget_s,
    )
    if opened:
        await repo.open()

    def join(session: Any) -> SqlAlchemyLLMRunRepo:
        return SqlAlchemyLLMRunRepo(
            session, rules, keep_payloads=keep, telemetry=telemetry, timeout_s=settings.ledger_timeout_s
        )

    llm = LLMService(
        Wiring(
            settings=settings,
            client=client,
            repo=repo,
            catalog=Catalog.from_settings(settings),
            clock=clock,
            new_id=new_id,
            telemetry=telemetry,
            join=join,
        )
    )
    try:
        yield Rig(llm=llm, repo=repo, executor=executor, ledger=faulty, client=client, spool=spool)
    finally:
        for gate in faulty.gates.values():
            gate.set()
        await llm.close()


def rules_of(settings: LLMSettings, owner: str) -> ClaimRules:
    return ClaimRules(
        owner=owner,
        cache_ttl_s=settings.cache_ttl_s,
        key_ttl_s=settings.idempotency_ttl_s,
        refuse_abandoned=settings.on_abandoned is OnAbandoned.REFUSE,
        codec=payload_codec(settings),
        memory_bytes=settings.memory_cache_bytes,
    )


@dataclass
class Watched:
    """A client that runs a coroutine while it is asked: what the world looks like during a send."""

    look: Callable[[LLMRequest, Candidate], Any]
    script: list[Any] = field(default_factory=list)
    sends: int = 0

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,  # noqa: ARG002
        workspace_id: str,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002  # the port's signature
        on_send: Callable[[float], None],
        listener: Listener | None = None,  # noqa: ARG002
    ) -> ProviderReply:
        on_send(0.0)
        self.sends += 1
        await self.look(request, candidate)
        outcome = self.script.pop(0) if self.script else text_reply(f"answer {self.sends}")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing is open."""


def refused() -> LLMUnavailable:
    """A connection that was refused: not paid; again at once."""
    return LLMUnavailable("refused", provider="ollama", retry_after_s=0.0)


def limited() -> LLMRateLimited:
    """A 429; again at once."""
    return LLMRateLimited("slow down", provider="ollama", http_status=429, retry_after_s=0.0)


def timed_out() -> LLMTimeout:
    """A send that may have been paid."""
    return LLMTimeout("no answer", provider="ollama", retry_after_s=0.0, possibly_paid=True)


def cut_off() -> ProviderReply:
    """An answer that ends too early to be a hit."""
    return ProviderReply(
        parts=(TextPart(text="half"),),
        finish_reason=FinishReason.LENGTH,
        usage=TokenUsage(input_tokens=3, output_tokens=5),
    )

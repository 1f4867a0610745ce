"""Every fault of `faults.py`, over a real socket and through the ledger: what the caller, the rows and the stubs say."""

import asyncio
import itertools
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from app.core.ids import new_id
from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMProviderError
from app.llm.limits import Limits
from app.llm.ports import Clock
from app.llm.service import LLMService
from app.llm.settings import FALLBACK_CODES
from app.llm.testing import Reply, StubAnthropic, StubGemini, StubOllama, StubOpenAI
from app.llm.testing.server import StubServer
from app.llm.types import LLMConstraints, LLMProfile, LLMResponse
from tests.crash.faults import (
    BOTH,
    FAULTS,
    FINE,
    FURTHER,
    GEMINI,
    HEALTHY_REPLY,
    OLLAMA,
    POLICIES,
    Cell,
    Company,
    Falls,
    Fault,
    How,
    Outcome,
    Paid,
    Sent,
)
from tests.support.ledger import GEMINI_KEY, Outside, request, settings_for
from tests.support.service import QuickClock, Rig, rig
from tools import fault_table

pytestmark = pytest.mark.crash

NOWHERE = "signalbox.invalid"
MAX_FIRST_BACKOFF_S = 0.5
SLACK_S = 5.0
"""Seconds that a loaded machine may add to a deadline; without one, what hangs here hangs for longer."""
FIRST_OF_PROFILE = {OLLAMA: LLMProfile.BALANCED, GEMINI: LLMProfile.ADVANCED}
MODELS = {OLLAMA: "first", GEMINI: "second", "openai": "third", "anthropic": "fourth", "groq": "fifth"}
NAMES = {provider: f"{provider}:{model}" for provider, model in MODELS.items()}
NOT_A_PROVIDERS_DOING = {"LLMQueueFull", "LLMInvalidOutput"}
"""Our own queue, where nothing was sent and no socket can cause it; and good answers that a caller's check refuses."""
ATTEMPT_COLUMNS = ("provider", "status", "error_code", "http_status", "possibly_paid", "retry_after_s")
ON_POSTGRESQL = {
    "connection refused", "reset before the headers", "429, wait in seconds", "400 bad request", "500",
    "HTML with 200", "negative usage",
}  # fmt: skip
CELLS = [pytest.param(fault, cell, id=f"{fault.title}, {cell}") for fault in FAULTS for cell in fault.cells()]


class Settings(NamedTuple):
    """What tells one service of the matrix from another."""

    policy: str
    attempt_timeout_s: float
    fallback_on: tuple[str, ...] = ()
    unresolved: str | None = None
    defective: bool = False

    @classmethod
    def of(cls, fault: Fault, cell: Cell) -> "Settings":
        return cls(
            policy=cell.policy,
            attempt_timeout_s=fault.attempt_timeout_s,
            fallback_on=FALLBACK_CODES if cell.company is Company.ALLOWED else (),
            unresolved=cell.provider if fault.how is How.NO_NAME else None,
            defective=fault.how is How.DEFECT,
        )


class World:
    """A stub for each provider, one database, and a service for each combination of settings, built when first asked for."""

    def __init__(self, db_url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.outside = Outside(db_url)
        self.stubs: dict[str, StubServer] = {
            OLLAMA: stack.enter_context(StubOllama(models=("first",))),
            GEMINI: stack.enter_context(StubGemini(models=("second",), api_key=GEMINI_KEY)),
            "openai": stack.enter_context(StubOpenAI(models=("third",), api_key=GEMINI_KEY)),
            "anthropic": stack.enter_context(StubAnthropic(models=("fourth",), api_key=GEMINI_KEY)),
            "groq": stack.enter_context(StubOpenAI(models=("fifth",), api_key=GEMINI_KEY)),
        }
        self._db_url, self._folder, self._stack = db_url, folder, stack
        self._services: dict[Settings, Rig] = {}
        stack.push_async_callback(self.outside.close)

    async def service(self, wanted: Settings, clock: Clock) -> LLMService:
        """Return a service of its own clock and circuit breaker: no cell hears of the failures of another."""
        if wanted not in self._services:
            self._services[wanted] = await self._built(wanted)
        return LLMService(replace(self._services[wanted].llm._wiring, clock=clock))

    async def _built(self, wanted: Settings) -> Rig:
        bases = {name: stub.base_url for name, stub in self.stubs.items()}
        if wanted.unresolved:
            bases[wanted.unresolved] = f"http://{NOWHERE}{'/v1beta' if wanted.unresolved == GEMINI else ''}"
        values: dict[str, Any] = {
            "retry_possibly_paid": wanted.policy,
            "attempt_timeout_s": wanted.attempt_timeout_s,
            "fallback_on": wanted.fallback_on,
            **{f"{provider}_api_base": base for provider, base in bases.items()},
            **{f"{provider}_api_key": GEMINI_KEY for provider in FURTHER},
            "spool_dir": self._folder,
            "finish_budget_s": 5,
        }
        settings = settings_for(self._db_url, **values)
        warm = _defective_library if wanted.defective else None
        client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), warm=warm)
        await client.warm_up()
        return await self._stack.enter_async_context(rig(self._db_url, client, **values))


def _defective_library() -> Any:
    """A LiteLLM that fails before it sends, and dresses that up as a lost connection, as it does."""

    async def acompletion(**_: Any) -> None:
        lost = ConnectionError("APIConnectionError")
        lost.__context__ = ImportError("No module named 'mcp'")
        raise lost

    return SimpleNamespace(model_cost={}, register_model=lambda _: None, acompletion=acompletion)


@pytest.fixture(scope="module")
def _only_our_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """As the fixture of each test does it, for services that outlive one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("LLM_", "GEMINI_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(
    _only_our_settings: None, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    shutil.copy(sqlite_template, folder / "ledger.db")
    async with AsyncExitStack() as stack:
        yield World(f"sqlite+aiosqlite:///{folder / 'ledger.db'}", folder, stack)


@asynccontextmanager
async def as_said(fault: Fault, cell: Cell, stubs: dict[str, StubServer]) -> AsyncIterator[None]:
    """Let the first candidate's stub show the fault, and the second one's be healthy or sick."""
    faulty, second = stubs[cell.provider], stubs[cell.other]
    second.always(Reply.status(401) if cell.company is Company.SICK else HEALTHY_REPLY)
    faulty.always(fault.replies.get(cell.provider))
    gate = faulty.hold() if fault.how is How.HELD else None
    try:
        if fault.how is How.DOWN:
            await asyncio.to_thread(faulty.down)  # meanwhile the client sees its idle connections end
        yield
    finally:
        if fault.how is How.DOWN:
            faulty.up()
        if gate is not None:
            gate.release()


@contextmanager
def without(name: str) -> Iterator[None]:
    """Let the system not know the host `name`."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == name:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


async def called(llm: LLMService, fault: Fault, cell: Cell) -> LLMResponse | LLMProviderError:
    """Return how the run ends for its caller, well before a suite would hang."""
    alone = cell.company is Company.ALONE
    asked = request(
        f"{fault.name}, {cell}",
        model=NAMES[cell.provider] if alone or cell.further else None,
        profile=FIRST_OF_PROFILE.get(cell.provider, LLMProfile.FAST),
        constraints=LLMConstraints(allow_fallback=None if alone or not cell.further else True),
        timeout_s=fault.call_timeout_s,
        idempotency_key=new_id(),
        max_output_tokens=50,
    )
    try:
        async with asyncio.timeout(30):
            return await llm.chat(asked)
    except LLMProviderError as error:
        return error


async def run_of(fault: Fault, cell: Cell, world: World) -> Outcome:
    """Run one cell, hold it to what is true of every run, and return what it left."""
    clock, stubs = QuickClock(), (world.stubs[cell.provider], world.stubs[cell.other])
    llm = await world.service(Settings.of(fault, cell), clock)
    seen, hung_up = [len(stub.requests) for stub in stubs], stubs[0].abandoned
    async with as_said(fault, cell, world.stubs):
        began_s = time.monotonic()
        with without(NOWHERE):
            ended = await called(llm, fault, cell)
        took_s = time.monotonic() - began_s
    faulty, second = (stub.requests[start:] for stub, start in zip(stubs, seen, strict=True))
    row = await world.outside.run(str(ended.run_id))
    sent = await world.outside.attempts(row["id"])

    assert all(each.ordinal for each in (*faulty, *second)), "nothing but model calls arrives"
    assert {each.in_flight_at_arrival for each in (*faulty, *second)} <= {1}, "the sends never overlap"
    assert all(one["finished_at"] <= next_one["started_at"] for one, next_one in itertools.pairwise(sent))
    longest_s = min(fault.attempt_timeout_s, fault.call_timeout_s)
    assert took_s < min(fault.call_timeout_s, len(sent) * longest_s) + SLACK_S, "the deadline is kept"
    assert all(each.latency_ms < (longest_s + SLACK_S) * 1000 for each in ended.attempts)
    assert row["sends_noted"] == max(1, len(sent)), "each send was noted before it"
    assert sum(clock.slept) < fault.call_timeout_s, "the waits fit into the deadline"
    assert all(0 <= wait_s <= (fault.wait_s or MAX_FIRST_BACKOFF_S) for wait_s in clock.slept)
    assert [each.ordinal for each in ended.attempts] == [each["ordinal"] for each in sent]
    _told_as_recorded(fault, ended, row)
    if fault.hangs:  # the client hung up, rather than leave a call behind that nobody waits for
        await asyncio.to_thread(stubs[0].wait_for_abandoned, hung_up + len(faulty))
    return Outcome(
        error=type(ended) if isinstance(ended, LLMProviderError) else None,
        status=row["status"],
        error_code=row["error_code"],
        possibly_paid=row["possibly_paid"],
        tokens=row["total_tokens"],
        attempts=tuple(Sent(*(each[name] for name in ATTEMPT_COLUMNS)) for each in sent),
        arrived=(len(faulty), len(second)),
        waits_s=tuple(None if fault.wait_s is None else wait_s for wait_s in clock.slept),
    )


def _told_as_recorded(fault: Fault, ended: LLMResponse | LLMProviderError, row: dict[str, Any]) -> None:
    """Hold what the caller got against the row."""
    if isinstance(ended, LLMResponse):
        assert (ended.text, row["idem_slot"]) == (FINE, row["idempotency_key"])
        assert ended.usage.total_tokens == row["total_tokens"]
        return
    assert row["idem_slot"] is None, "a failure frees its key"
    assert ended.possibly_paid is row["possibly_paid"]
    if fault.kind is not None and ended.code == fault.kind.code:
        assert re.search(fault.says, ended.message)
        assert fault.wait_s is None or ended.retry_after_s == fault.wait_s


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("fault", "cell"), CELLS)
async def test_a_fault_leaves_what_its_row_says(fault: Fault, cell: Cell, world: World):
    assert await run_of(fault, cell, world) == fault.expected(cell)


@pytest.mark.pg
@pytest.mark.parametrize("policy", POLICIES)
async def test_the_rows_are_the_same_on_postgresql(policy: str, pg_url: str, tmp_path: Path):
    async with AsyncExitStack() as stack:
        world = World(pg_url, tmp_path, stack)
        for fault in FAULTS:
            if fault.name not in ON_POSTGRESQL:
                continue
            for company in (Company.ALONE, Company.HEALTHY):
                cell = Cell(OLLAMA, policy, company)
                assert await run_of(fault, cell, world) == fault.expected(cell), f"{fault.title}, {cell}"


def test_every_error_that_a_provider_can_cause_is_in_the_matrix():
    classes = {each.__name__ for each in LLMProviderError.__subclasses__()}
    assert {fault.kind.error.__name__ for fault in FAULTS if fault.kind} == classes - NOT_A_PROVIDERS_DOING


def test_every_kind_of_cell_is_in_the_matrix():
    """A row without cells, or a rule that no row uses, would test nothing."""
    cells = [(fault, cell) for fault in FAULTS for cell in fault.cells()]
    assert {cell.company for _, cell in cells} == set(Company)
    assert {fault.falls for fault, _ in cells} == set(Falls)
    assert {fault.paid for fault, _ in cells} == set(Paid)
    assert {fault.how for fault, _ in cells} == set(How)
    assert {(cell.provider, cell.policy) for _, cell in cells} == {
        *itertools.product(BOTH, POLICIES),
        *itertools.product(FURTHER, ("always", "fallback_only")),
    }
    assert len({fault.title for fault in FAULTS}) == len(FAULTS)


def test_the_committed_table_is_current():
    text = fault_table.PAGE.read_text(encoding="utf-8")
    assert fault_table.renewed(text) == text, "run `python -m tools.fault_table`"


def test_a_stale_table_is_named_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "FAULTS.md"
    page.write_text(f"# Title\n{fault_table.BEGIN}\nold\n{fault_table.END}\nthe rest\n")
    monkeypatch.setattr(fault_table, "PAGE", page)

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fault_table", *args])
        return fault_table.main()

    assert run("--check") == 1
    assert "FAULTS.md: stale" in capsys.readouterr().err
    assert "old" in page.read_text()
    assert (run(), run("--check")) == (0, 0)
    assert page.read_text().startswith(f"# Title\n{fault_table.BEGIN}\n| Fault |")
    assert page.read_text().endswith(f"|\n{fault_table.END}\nthe rest\n")


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="faults:begin"):
        fault_table.renewed("# Title\n")

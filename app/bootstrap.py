"""The only place that picks adapters: settings in, a running service out, everything closed at the end.

Adapters are imported where they are built, so that importing this module loads neither a driver nor LiteLLM.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.trace import TracerProvider

from app.core.clock import SystemClock
from app.core.ids import new_id
from app.core.logging import console_line, json_line
from app.llm.breaker import Breaker
from app.llm.cassettes.held import in_force
from app.llm.endpoints import payload_keys
from app.llm.errors import LLMLedgerUnavailable, LLMSettingsError
from app.llm.gauges import watch
from app.llm.knowledge import Knowledge
from app.llm.limits import Limits
from app.llm.metric_names import SPOOLED
from app.llm.pacing import quotas_of
from app.llm.ports import ChatClient, Describer, LLMRunRepo
from app.llm.pricing import preload
from app.llm.providers import Catalog, known
from app.llm.rates import Rates
from app.llm.redaction import Redactor
from app.llm.service import LLMService
from app.llm.settings import LLMMode, LLMSettings, LogFormat, OnAbandoned, StorePayloads, load_settings
from app.llm.story import Wiring
from app.llm.telemetry import EVENT_READY, Metrics, Telemetry
from app.llm.tracing import Server, Tracing

if TYPE_CHECKING:
    from app.llm.persistence.codec import Codec
    from app.llm.persistence.executor import Executor
    from app.llm.persistence.ledger import ClaimRules
    from app.llm.persistence.spool.pending import Spool

CLOCK = SystemClock()


@asynccontextmanager
async def build_llm_service(
    settings: LLMSettings | None = None,
    *,
    client: ChatClient | None = None,
    metrics: Metrics | None = None,
    tracer_provider: TracerProvider | None = None,
    redact: Iterable[Callable[[str], str]] = (),
) -> AsyncIterator[LLMService]:
    """Yield a service on its own connections; drain and close it at the end.

    A process that serves many calls should also call `app.core.heap.settle_heap()` once it is warm: full collections of
    garbage stop the event loop for some 200 ms otherwise. It changes the whole process, so nothing here does it.

    Args:
        settings: None reads `LLM_` variables and `.env`, once.
        client: Another way to the providers, for tests.
        metrics: Where counters and histograms go; `app.llm.metrics.PrometheusMetrics`, for instance.
        tracer_provider: Whose spans show the calls; None is OpenTelemetry's global one, if the program sets one.
        redact: Further redaction rules, each from text to text.

    Raises:
        LLMSettingsError: A setting is wrong.
        LLMLedgerError: The database is away, or its tables do not fit.
    """
    settings = in_force(settings or load_settings())
    redactor = Redactor(secrets=settings.secrets(), more=redact)
    telemetry = Telemetry(
        metrics=metrics,
        redactor=redactor,
        log_content=settings.log_content,
        render=console_line if settings.log_format is LogFormat.CONSOLE else json_line,
        tracing=Tracing(
            tracer_provider,
            redact=redactor if settings.trace_content else None,
            servers={} if settings.mode is LLMMode.REPLAY else _servers(settings),
        ),
    )
    limits, breaker = Limits.from_settings(settings), Breaker.from_settings(settings, CLOCK)
    catalog = Catalog.from_settings(
        settings, without_key=_without_key(settings) if client is None else frozenset()
    )
    await _load_prices(catalog)
    async with AsyncExitStack() as stack:
        knowledge = _knowledge(
            catalog, settings, telemetry, asks=client is None and settings.mode is LLMMode.LIVE
        )
        stack.push_async_callback(knowledge.close)
        repo, join, executor = await _ledger(settings, telemetry, stack)
        rates = _rates(settings, telemetry, executor, stack)
        watch(telemetry, limits, rates, breaker, stack)
        service = LLMService(
            Wiring(
                settings=settings,
                client=client or _client_of_mode(settings, catalog, limits, telemetry),
                repo=repo,
                catalog=catalog,
                knowledge=knowledge,
                clock=CLOCK,
                new_id=new_id,
                telemetry=telemetry,
                rates=rates,
                breaker=breaker,
                join=join,
            )
        )
        stack.push_async_callback(service.close)
        _tell_ready(settings, catalog, telemetry)
        yield service


def _servers(settings: LLMSettings) -> dict[str, Server]:
    """Return where each provider listens, for spans."""
    parts = {provider: urlsplit(facts.api_base(settings)) for provider, facts in known().items()}
    return {
        provider: Server(base.hostname, base.port or (443 if base.scheme == "https" else 80))
        for provider, base in parts.items()
        if base.hostname
    }


def _knowledge(catalog: Catalog, settings: LLMSettings, telemetry: Telemetry, *, asks: bool) -> Knowledge:
    describer = _describer(settings) if asks and settings.learn_timeout_s else None
    return Knowledge(catalog, settings, clock=CLOCK, telemetry=telemetry, describer=describer)


async def _load_prices(catalog: Catalog) -> None:
    """Look up what each candidate costs, in a thread, so that no call waits for it; local ones cost nothing."""
    if priced := [candidate for candidate in catalog.all if candidate.usable and not candidate.local]:
        await asyncio.to_thread(preload, priced)


def _tell_ready(settings: LLMSettings, catalog: Catalog, telemetry: Telemetry) -> None:
    telemetry.event(
        EVENT_READY,
        candidates=", ".join(
            candidate.name for candidate in catalog.all if candidate.usable and candidate.enabled
        ),
        database=database_name(settings) if settings.persist_runs else "none",
        mode=settings.mode.value,
        lane=settings.litellm_lane.value,
        cache="on" if settings.cache_enabled else "off",
        payloads=_payloads(settings),
    )


def _payloads(settings: LLMSettings) -> str:
    """Return how the texts of requests and answers are kept, in a word for the log."""
    if not settings.persist_runs:
        return "none"
    if settings.store_payloads is StorePayloads.HASH:
        return "hash"
    return "plain" if settings.payload_key is None else "encrypted"


def database_name(settings: LLMSettings) -> str:
    """Return the database URL without password and query.

    Raises:
        LLMSettingsError: It is not a URL.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415  # SQLAlchemy is loaded only where a ledger is
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        return (
            make_url(settings.database_url.get_secret_value())
            .set(query={})
            .render_as_string(hide_password=True)
        )
    except (ArgumentError, ValueError):
        raise LLMSettingsError(
            "LLM_DATABASE_URL=********: not a database URL; sqlite+aiosqlite:///signalbox.db would be one",
            variable="LLM_DATABASE_URL",
        ) from None


async def open_executor(settings: LLMSettings) -> "Executor":
    """Return the ledger's own connections, with tables that fit; the caller closes it.

    Raises:
        LLMSettingsError: The database URL is wrong.
        LLMLedgerError: The database is away, or its tables do not fit.
    """
    from app.llm.persistence.schema import check_schema, is_file  # noqa: PLC0415

    timeout_s = settings.ledger_timeout_s
    auto = settings.auto_migrate if settings.auto_migrate is not None else is_file(checked_url(settings))
    executor = connect(checked_url(settings), timeout_s=timeout_s)
    await check_schema(checked_url(settings), migrate=auto, timeout_s=timeout_s)
    return executor


def connect(url: str, *, timeout_s: float) -> "Executor":
    """Return connections to a ledger's database, whatever tables it has; they open when they are needed.

    Raises:
        LLMLedgerUnavailable: The system refuses the file.
    """
    from app.llm.persistence.schema import is_file  # noqa: PLC0415

    if not is_file(url):
        from app.llm.persistence.executors.postgres import PostgresExecutor  # noqa: PLC0415

        return PostgresExecutor(url, timeout_s=timeout_s)
    from app.llm.persistence.executors.sqlite import SqliteExecutor  # noqa: PLC0415

    try:
        return SqliteExecutor(url, timeout_s=timeout_s)
    except OSError as error:
        raise LLMLedgerUnavailable(
            f"cannot open {error.filename} ({error.strerror}): LLM_DATABASE_URL names the ledger's database"
        ) from None


def checked_url(settings: LLMSettings) -> str:
    """Return the ledger's URL.

    Raises:
        LLMSettingsError: It names no database that a ledger can live in.
    """
    name = database_name(settings)
    url = settings.database_url.get_secret_value()
    driver = url.partition(":")[0]
    if driver not in {"sqlite+aiosqlite", "postgresql+asyncpg"}:
        raise LLMSettingsError(
            f"LLM_DATABASE_URL={name}: write sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/NAME",
            variable="LLM_DATABASE_URL",
        )
    if driver.startswith("sqlite") and (url.endswith(("://", ":///")) or ":memory:" in url):
        raise LLMSettingsError(
            f"LLM_DATABASE_URL={name}: a ledger in memory could not be seen by a second connection; name a file, or "
            "set LLM_PERSIST_RUNS=false",
            variable="LLM_DATABASE_URL",
        )
    return url


def payload_codec(settings: LLMSettings) -> "Codec":
    """Return how payloads are kept: as they are, or encrypted with LLM_PAYLOAD_KEY.

    Raises:
        LLMSettingsError: A key is set, and what it needs is not installed.
    """
    from app.llm.persistence.codec import PLAIN  # noqa: PLC0415

    keys = payload_keys(settings.payload_key)
    if not keys:
        return PLAIN
    try:
        from app.llm.persistence.cipher import Cipher  # noqa: PLC0415  # its library is optional
    except ImportError:
        missing = LLMSettingsError(
            "LLM_PAYLOAD_KEY=********: encryption needs the extra `crypto`: pip install 'signalbox[crypto]'",
            variable="LLM_PAYLOAD_KEY",
        )
    else:
        return Cipher(keys)
    raise missing


async def _ledger(
    settings: LLMSettings, telemetry: Telemetry, stack: AsyncExitStack
) -> tuple[LLMRunRepo, Callable[[Any], LLMRunRepo] | None, "Executor | None"]:
    if not settings.persist_runs:
        from app.llm.persistence.memory import MAX_ANSWERS, MemoryRunRepo  # noqa: PLC0415

        kept = MAX_ANSWERS if settings.cache_enabled else 0
        return MemoryRunRepo(clock=CLOCK, cache_ttl_s=settings.cache_ttl_s, max_answers=kept), None, None
    from app.llm.persistence.autonomous import AutonomousRunRepo  # noqa: PLC0415
    from app.llm.persistence.repo import SqlAlchemyLLMRunRepo  # noqa: PLC0415

    rules = _rules(settings)
    executor = await open_executor(settings)
    stack.push_async_callback(executor.close)
    keep = settings.store_payloads is StorePayloads.FULL
    repo = AutonomousRunRepo(
        executor,
        rules,
        _spool(settings),
        keep_payloads=keep,
        telemetry=telemetry,
        clock=CLOCK,
        finish_budget_s=settings.finish_budget_s,
    )
    await repo.open()
    stack.push_async_callback(repo.close)
    stack.callback(telemetry.watch(SPOOLED, lambda: [({}, repo.spooled)]))

    def join(session: Any) -> LLMRunRepo:
        return SqlAlchemyLLMRunRepo(
            session, rules, keep_payloads=keep, telemetry=telemetry, timeout_s=settings.ledger_timeout_s
        )

    return repo, join, executor


def _rates(
    settings: LLMSettings, telemetry: Telemetry, executor: "Executor | None", stack: AsyncExitStack
) -> Rates:
    """Return rates that are counted in the ledger's database, or by each process for itself."""
    if executor is None or not settings.shared_rates:
        return Rates.from_settings(settings, CLOCK)
    from app.llm.persistence.rates import SharedMeter  # noqa: PLC0415

    meter = SharedMeter(executor, quotas_of(settings, known()), telemetry=telemetry)
    stack.push_async_callback(meter.close)
    return Rates.from_settings(settings, CLOCK, meter=meter)


def _spool(settings: LLMSettings) -> "Spool":
    """Return the spool; here, because a frame that waits for the database must not know its password."""
    from app.llm.persistence.spool.files import default_directory  # noqa: PLC0415
    from app.llm.persistence.spool.pending import Spool  # noqa: PLC0415

    url = checked_url(settings)
    return Spool(settings.spool_dir or default_directory(url), url)


def _rules(settings: LLMSettings) -> "ClaimRules":
    from app.llm.persistence.ledger import ClaimRules  # noqa: PLC0415

    return ClaimRules(
        owner=f"{socket.gethostname()}:{os.getpid()}:{new_id()[-12:]}",
        cache_ttl_s=settings.cache_ttl_s,
        key_ttl_s=settings.idempotency_ttl_s,
        refuse_abandoned=settings.on_abandoned is OnAbandoned.REFUSE,
        codec=payload_codec(settings),
        memory_bytes=settings.memory_cache_bytes,
    )


def _describer(settings: LLMSettings) -> Describer:
    from app.llm.wire.describing import OllamaDescriber  # noqa: PLC0415

    return OllamaDescriber(settings)


def _without_key(settings: LLMSettings) -> frozenset[str]:
    """Return the providers that were passed over, for want of a key, when what is replayed was recorded."""
    if settings.mode is not LLMMode.REPLAY:
        return frozenset()
    from app.llm.cassettes.held import playing  # noqa: PLC0415  # tests only

    return playing(settings).without_key


def _client_of_mode(
    settings: LLMSettings, catalog: Catalog, limits: Limits, telemetry: Telemetry
) -> ChatClient:
    """Return the way to the providers, to a cassette, or to both."""
    if settings.mode is LLMMode.LIVE:
        return _client(settings, limits, telemetry)
    from app.llm.cassettes.clients import CassetteClient, RecordingClient  # noqa: PLC0415  # tests only
    from app.llm.cassettes.held import playing, recording  # noqa: PLC0415

    if settings.mode is LLMMode.REPLAY:
        return CassetteClient(playing(settings), telemetry.redact)
    live = _client(settings, limits, telemetry)
    return RecordingClient(live, recording(settings), telemetry.redact, catalog.passed_over)


def _client(settings: LLMSettings, limits: Limits, telemetry: Telemetry) -> ChatClient:
    from app.llm.client_litellm import LiteLLMClient  # noqa: PLC0415

    return LiteLLMClient(
        settings=settings,
        limits=limits,
        redact=telemetry.redact,
        unfit=telemetry.lane_unfit,
    )

"""The metrics as Prometheus reads them, of a service whose providers fail, wait and answer."""

import asyncio
import threading
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from app.bootstrap import build_llm_service
from app.llm.errors import LLMProviderError
from app.llm.metric_names import METRICS, Kind
from app.llm.metrics import OTHER, PrometheusMetrics
from app.llm.telemetry import Telemetry
from app.llm.testing import Reply, StubOllama
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import TokenUsage
from tests.support.ledger import request, settings_for
from tests.support.scrapes import Page, read, scraped, total
from tests.support.service import refused, rig

WORKSPACE = "a-tenant-of-ours"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


async def test_calls_are_counted_as_prometheus_wants_it(registry: CollectorRegistry, sqlite_url: str):
    client = ScriptedClient([refused()])
    settings = settings_for(sqlite_url, cache_enabled=True, default_workspace=WORKSPACE)
    async with build_llm_service(settings, client=client, metrics=PrometheusMetrics(registry)) as llm:
        for _ in range(2):
            await llm.chat(request(idempotency_key="k1"))
        await llm.chat(request())
        page = scraped(registry)
    assert total(page, "llm_calls_total", status="SUCCEEDED", profile="balanced") == 3
    for source in ("live", "replay", "cache"):
        assert total(page, "llm_served_total", served_from=source) == 1
    assert total(page, "llm_attempts_total", status="FAILED", error_code="unavailable") == 1
    assert total(page, "llm_retries_total", provider="ollama", model="first") == 1
    assert total(page, "llm_tokens_total", kind="output") == 5
    assert total(page, "llm_cost_usd_total", provider="ollama") == 0
    assert total(page, "llm_call_duration_seconds_count") == 3
    assert total(page, "llm_call_duration_seconds_bucket", le="60.0") == 3
    assert 0 < total(page, "llm_call_duration_seconds_sum") < 60
    assert total(page, "llm_in_flight") == 0
    assert WORKSPACE not in str(page)


async def test_what_nobody_knows_the_price_of_is_counted_apart(registry: CollectorRegistry, sqlite_url: str):
    settings = settings_for(sqlite_url, profile_balanced="gemini:no-such-model")
    async with build_llm_service(
        settings, client=ScriptedClient(), metrics=PrometheusMetrics(registry)
    ) as llm:
        await llm.chat(request())
    page = scraped(registry)
    assert total(page, "llm_cost_unknown_total", provider="gemini", model="no-such-model") == 1
    assert "llm_cost_usd_total" not in page


async def test_queues_and_circuits_are_read_at_the_scrape_while_the_service_is_open(
    registry: CollectorRegistry, sqlite_url: str
):
    with StubOllama() as ollama:
        settings = settings_for(
            sqlite_url,
            ollama_api_base=ollama.base_url,
            profile_balanced="ollama",
            ollama_concurrency_limit=1,
            attempts_per_candidate=3,
        )
        async with build_llm_service(settings, metrics=PrometheusMetrics(registry)) as llm:
            await llm.warm_up()
            gate = ollama.hold()
            calls = [asyncio.create_task(llm.chat(request(f"{n}"))) for n in range(3)]
            await asyncio.to_thread(ollama.wait_for_sends, 1)
            async with asyncio.timeout(10):
                while total(page := scraped(registry), "llm_queue_depth", provider="ollama") < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            assert total(page, "llm_in_flight") == 3
            gate.release()
            await asyncio.gather(*calls)
            ollama.always(Reply.status(503))
            with pytest.raises(LLMProviderError):
                await llm.chat(request("Other"))
            page = scraped(registry)
            assert total(page, "llm_queue_depth") == 0
            assert total(page, "llm_breaker_open", provider="ollama", model="llama3.2") == 1
    assert {"llm_queue_depth", "llm_breaker_open"} & scraped(registry).keys() == set()


async def test_who_waits_for_a_turn_is_in_the_queue_too(registry: CollectorRegistry, sqlite_url: str):
    settings = settings_for(sqlite_url, profile_balanced="ollama", ollama_requests_per_minute=10)
    async with build_llm_service(
        settings, client=ScriptedClient(), metrics=PrometheusMetrics(registry)
    ) as llm:
        calls = [asyncio.create_task(llm.chat(request(f"{n}"))) for n in range(3)]
        async with asyncio.timeout(10):
            while total(scraped(registry), "llm_queue_depth", provider="ollama") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert total(scraped(registry), "llm_queue_depth") == 0


async def test_slots_are_fewer_after_a_provider_had_too_much_to_do(
    registry: CollectorRegistry, sqlite_url: str
):
    with StubOllama() as ollama:
        settings = settings_for(
            sqlite_url,
            ollama_api_base=ollama.base_url,
            profile_balanced="ollama",
            ollama_concurrency_limit=8,
            concurrency_min=1,
            attempts_per_candidate=1,
        )
        ollama.script(Reply.status(503))
        async with build_llm_service(settings, metrics=PrometheusMetrics(registry)) as llm:
            assert "llm_slots" not in scraped(registry)
            with pytest.raises(LLMProviderError):
                await llm.chat(request())
            assert total(scraped(registry), "llm_slots", provider="ollama") == 4


async def test_what_providers_keep_of_prompts_is_counted_beside_the_input(
    registry: CollectorRegistry, sqlite_url: str
):
    usage = TokenUsage(input_tokens=100, output_tokens=5, cached_input_tokens=60, cache_write_tokens=30)
    client = ScriptedClient([replace(text_reply("yes"), usage=usage)])
    async with build_llm_service(
        settings_for(sqlite_url), client=client, metrics=PrometheusMetrics(registry)
    ) as llm:
        await llm.chat(request())
    page = scraped(registry)
    assert total(page, "llm_tokens_total", kind="input") == 100
    assert total(page, "llm_prompt_cache_tokens_total", kind="read") == 60
    assert total(page, "llm_prompt_cache_tokens_total", kind="written") == 30


async def test_a_spooled_answer_is_seen(registry: CollectorRegistry, sqlite_url: str, tmp_path: Path):
    metrics = PrometheusMetrics(registry)
    async with rig(sqlite_url, spool_dir=tmp_path / "spool") as its:
        unwatch = Telemetry(metrics=metrics).watch("llm_spooled_answers", lambda: [({}, its.repo.spooled)])
        its.ledger.away_for = {"finish"}
        await its.llm.chat(request())
        assert total(scraped(registry), "llm_spooled_answers") == 1
        its.ledger.away_for = set()
        unwatch()


async def test_two_services_may_share_one_object(registry: CollectorRegistry, sqlite_url: str):
    metrics = PrometheusMetrics(registry)
    settings = settings_for(sqlite_url)
    async with (
        build_llm_service(settings, client=ScriptedClient(), metrics=metrics) as one,
        build_llm_service(settings, client=ScriptedClient(), metrics=metrics) as two,
    ):
        await one.chat(request("one"))
        await two.chat(request("two"))
        page = scraped(registry)
    assert total(page, "llm_calls_total") == 2
    assert len(page["llm_spooled_answers"]) == 1
    with pytest.raises(ValueError, match="llm_"):
        PrometheusMetrics(registry)


def test_models_that_callers_pin_end_in_one_series(registry: CollectorRegistry):
    metrics = PrometheusMetrics(registry, most_models=2)
    for number in range(50):
        metrics.add("llm_retries_total", 1, {"provider": "ollama", "model": f"m{number}"})
    metrics.add("llm_retries_total", 1, {"provider": "ollama", "model": "m0"})
    page = scraped(registry)
    assert {sample.labels["model"] for sample in page["llm_retries_total"]} == {"m0", "m1", OTHER}
    assert total(page, "llm_retries_total", model=OTHER) == 48
    assert total(page, "llm_retries_total", model="m0") == 2


def test_labels_are_few_and_none_names_a_tenant_or_a_run():
    labels = {label for metric in METRICS.values() for label in metric.labels}
    assert labels == {
        "provider",
        "model",
        "profile",
        "status",
        "served_from",
        "error_code",
        "kind",
        "per",
        "measure",
    }


def test_names_follow_prometheus_conventions():
    for name, metric in METRICS.items():
        assert name.endswith("_total") == (metric.kind is Kind.COUNTER), name
        assert name.endswith("_seconds") == (metric.kind is Kind.HISTOGRAM), name


def test_a_scrape_over_a_socket_while_values_change(registry: CollectorRegistry):
    """The server of `prometheus_client` reads in threads of its own."""
    metrics, over = PrometheusMetrics(registry), threading.Event()
    changing: dict[str, int] = {}

    def work() -> None:
        while not over.is_set():
            metrics.add("llm_calls_total", 1, {"provider": "ollama", "model": "m", "profile": "fast", "status": "SUCCEEDED"})  # fmt: skip
            changing[f"p{len(changing) % 50}"] = 1

    metrics.watch("llm_queue_depth", lambda: [({"provider": name}, 1) for name in changing.copy()])
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        seen = [total(_fetched(server.server_port), "llm_calls_total") for _ in range(20)]
    finally:
        over.set()
        worker.join()
        server.shutdown()
        server.server_close()
        thread.join()
    assert seen == sorted(seen)


def _fetched(port: int) -> Page:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        return read(response.read().decode())
    finally:
        connection.close()

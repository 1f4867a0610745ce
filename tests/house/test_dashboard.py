"""The dashboard and the scrape configuration fit what is exposed: each metric with each label that a query names."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from app.bootstrap import build_llm_service, open_executor
from app.cli.metrics import DEFAULT_PORT
from app.cli.scraping import Snapshot, samples_of
from app.llm.errors import LLMBudgetExceeded
from app.llm.metric_names import LEDGER_METRICS, METRICS, Kind
from app.llm.metrics import PrometheusMetrics
from app.llm.persistence.counted import counted
from app.llm.persistence.spool.files import SpoolFiles
from app.llm.settings import load_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import TokenUsage
from tests.support.ledger import ROOT, request
from tests.support.scrapes import Page, read

DASHBOARD = json.loads((ROOT / "ops/grafana.json").read_text())
METRIC = re.compile(r"\bllm_\w+")
SELECTOR = re.compile(r"(\bllm_\w+)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")
LEGEND = re.compile(r"\{\{(\w+)\}\}")
SUFFIXES = ("_bucket", "_sum", "_count")


def targets() -> Iterator[tuple[str, Any]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


def _base(name: str) -> str:
    known = METRICS.keys() | LEDGER_METRICS.keys()
    return next((name.removesuffix(end) for end in SUFFIXES if name.removesuffix(end) in known), name)


@pytest.fixture(scope="module")
def queries() -> list[tuple[str, str, str]]:
    return [(title, target["expr"], target["legendFormat"]) for title, target in targets()]


async def exercised(sqlite_url: str) -> Page:
    """Return what both pages show after calls that fall back, retry, replay, hit, and fail."""
    registry = CollectorRegistry()
    with StubOllama() as ollama, StubGemini(models=("gemini-2.5-flash", "no-such-price")) as gemini:
        settings = load_settings(
            ollama_api_base=ollama.base_url,
            gemini_api_base=gemini.base_url,
            gemini_api_key="stub-key",
            profile_balanced="ollama,gemini:no-such-price,gemini",
            database_url=sqlite_url,
            default_workspace="acme",
            cache_enabled=True,
            learn_timeout_s=0,
            budgets=[{"workspace": "small", "per": "day", "tokens": 2_000, "soft": 0.1}],
        )
        metrics = PrometheusMetrics(registry)
        kept = TokenUsage(input_tokens=9, output_tokens=2, cached_input_tokens=3, cache_write_tokens=4)
        client = ScriptedClient([replace(text_reply("kept"), usage=kept)])
        async with build_llm_service(settings, client=client, metrics=metrics) as llm:
            await llm.chat(request("kept"))
        async with build_llm_service(settings, metrics=metrics) as llm:
            ollama.script(Reply.rate_limited(0), Reply.rate_limited(0))
            gemini.script(Reply.text("Yes.", usage=(11, 7)))
            for _ in range(2):
                await llm.chat(request("one", idempotency_key="k"))
            await llm.chat(request("one"))
            ollama.down()
            await llm.chat(request("two", model="gemini:gemini-2.5-flash"))
            for number in range(3):
                await llm.chat(request(f"down {number}"))
            small = {"workspace_id": "small"}
            await llm.chat(request("under a budget", metadata=small))
            with pytest.raises(LLMBudgetExceeded):
                await llm.chat(request("beyond it", metadata=small, max_output_tokens=2_000))
            text = generate_latest(registry).decode()
        executor = await open_executor(settings)
        ledger = CollectorRegistry()
        files = SpoolFiles(Path.cwd(), sqlite_url)
        ledger.register(Snapshot(samples_of(await counted(executor), files.lines())))
        await executor.close()
    return read(text) | read(generate_latest(ledger).decode())


async def test_each_query_finds_its_metrics_with_its_labels(
    sqlite_url: str, queries: list[tuple[str, str, str]]
):
    page = await exercised(sqlite_url)
    assert len(queries) > 20
    for title, query, legend in queries:
        named = METRIC.findall(query)
        assert named, f"{title}: {query}"
        assert [name for name in named if name not in page] == [], f"{title}: {query}"
        grouped = {label for found in GROUPING.findall(query) for label in re.split(r"\s*,\s*", found)}
        for name, matchers in SELECTOR.findall(query):
            labels = {label for sample in page[name] for label in sample.labels}
            assert {*MATCHER.findall(matchers), *grouped} <= labels, f"{title}: {query}"
        assert set(LEGEND.findall(legend)) <= grouped, f"{title}: {legend}"


def test_counters_are_read_as_rates_histograms_by_their_buckets_and_gauges_as_they_are(
    queries: list[tuple[str, str, str]],
):
    for title, query, _ in queries:
        for name in METRIC.findall(query):
            metric = (METRICS | LEDGER_METRICS)[_base(name)]
            before = query.partition(name)[0]
            is_rate = before.endswith(("rate(", "increase("))
            if metric.kind is Kind.HISTOGRAM:
                assert (is_rate, name.endswith("_bucket"), "sum by (le" in before) == (True, True, True), (
                    title
                )
            elif metric.kind is Kind.COUNTER:
                assert is_rate or "unknown" in title, title
            else:
                assert not is_rate, title


def test_every_metric_has_a_panel(queries: list[tuple[str, str, str]]):
    shown = {_base(name) for _, query, _ in queries for name in METRIC.findall(query)}
    assert METRICS.keys() | LEDGER_METRICS.keys() == shown


def test_panels_have_ids_of_their_own_do_not_overlap_and_take_the_chosen_data_source():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        taken = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not taken & cells
        cells |= taken
        assert place["x"] + place["w"] <= 24
    assert {target["datasource"]["uid"] for _, target in targets()} == {"${datasource}"}


def test_variables_are_defined_and_read_what_is_there():
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    used = {name for _, target in targets() for name in re.findall(r"\$\{?(\w+)", target["expr"])}
    assert used <= variables.keys() | {"__rate_interval"}
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["provider"]["definition"])
    assert asked is not None
    assert asked[2] in METRICS[asked[1]].labels


def test_the_scrape_configuration_asks_the_port_of_the_command():
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((ROOT / "ops/prometheus.yml").read_text())["scrape_configs"]
    }
    assert jobs["signalbox-ledger"]["static_configs"] == [{"targets": [f"localhost:{DEFAULT_PORT}"]}]

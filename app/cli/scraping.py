"""The server of `signalbox metrics`: one page, made of the ledger at each request."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from app.bootstrap import checked_url, database_name
from app.cli import ledger
from app.cli.faults import UsageFault
from app.llm import metric_names as names
from app.llm.errors import LLMLedgerError
from app.llm.metrics import MOST_MODELS, OTHER
from app.llm.persistence.counted import Counted, counted
from app.llm.persistence.executor import Executor
from app.llm.persistence.rollup import ReportLine
from app.llm.persistence.spool.files import REFUSED, SPOOL, UNPLACED, SpoolFiles, default_directory
from app.llm.persistence.usage import Measures
from app.llm.settings import load_settings

PATH = "/metrics"
_STATES = {SPOOL: "waiting", UNPLACED: "unplaced", REFUSED: "refused"}

Values = tuple[str, ...]
Samples = Mapping[str, Sequence[tuple[Values, float]]]
"""By the metric's name, values of its labels with the figure."""


async def serve(host: str, port: int, listening: Callable[[str, str], None]) -> None:
    """Serve until cancelled; `listening` is told the URL and the database once it can be asked.

    Raises:
        UsageFault: The address cannot be listened on.
        LLMError: The settings are wrong, or the ledger cannot be opened.
    """
    settings = load_settings()
    url = checked_url(settings)
    files = SpoolFiles(settings.spool_dir or default_directory(url), url)
    async with ledger.current() as executor:
        app = web.Application()
        app.router.add_get(PATH, _Page(executor, files).get)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise UsageFault(f"cannot listen on {host}:{port}: {error.strerror}") from None
            bound = runner.addresses[0]
            shown = f"[{host}]" if ":" in host else host
            listening(f"http://{shown}:{bound[1]}{PATH}", database_name(settings))
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


class _Page:
    """What is served; one look at the ledger at a time."""

    def __init__(self, executor: Executor, files: SpoolFiles) -> None:
        self._executor = executor
        self._files = files
        self._one_at_a_time = asyncio.Lock()

    async def get(self, request: web.Request) -> web.Response:
        """Return the page, or why there is none."""
        try:
            async with self._one_at_a_time:
                found = await counted(self._executor)
            lines = await asyncio.to_thread(self._files.lines)
        except (LLMLedgerError, OSError) as error:
            return web.Response(status=503, text=f"{error}\n")
        registry = CollectorRegistry()
        registry.register(Snapshot(samples_of(found, lines)))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})


class Snapshot:
    """One look at the ledger, as Prometheus collects it."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Family]:
        """Yield every metric of `LEDGER_METRICS`."""
        for name, metric in names.LEDGER_METRICS.items():
            kind = CounterMetricFamily if metric.kind is names.Kind.COUNTER else GaugeMetricFamily
            family = kind(name, metric.meaning, labels=metric.labels)
            for values, figure in self._samples[name]:
                family.add_metric(values, figure)
            yield family


def samples_of(found: Counted, lines: Mapping[str, int]) -> Samples:
    """Return the figures of each metric of `LEDGER_METRICS`; models beyond `MOST_MODELS`, by runs, are one."""
    who = list(_bounded(found.lines))
    sums: dict[str, list[tuple[Values, float]]] = {name: [] for name in names.LEDGER_METRICS}
    for named, measures in who:
        counts = measures.counts
        ended = {
            "FAILED": counts["failed"],
            "CANCELLED": counts["cancelled"],
            "ABANDONED": counts["abandoned"],
        }
        ended["SUCCEEDED"] = counts["runs"] - sum(ended.values())
        sums[names.LEDGER_RUNS] += [((*named, status), count) for status, count in ended.items()]
        sums[names.LEDGER_TOKENS] += [
            ((*named, kind), counts[f"{kind}_tokens"]) for kind in ("input", "output")
        ]
        for name, figure in (
            (names.LEDGER_HITS, counts["hits"]),
            (names.LEDGER_REPLAYS, counts["replays"]),
            (names.LEDGER_COST_USD, float(measures.cost_usd)),
            (names.LEDGER_COST_UNKNOWN, counts["unknown_cost"]),
            (names.LEDGER_SAVED_USD, float(measures.saved_cost_usd)),
        ):
            sums[name].append((named, figure))
    sums[names.LEDGER_LIVE] = [(("held",), found.held), (("over",), found.over)]
    sums[names.LEDGER_SPOOL] = [((_STATES[suffix],), count) for suffix, count in lines.items()]
    return sums


def _bounded(lines: Iterable[ReportLine]) -> Iterator[tuple[Values, Measures]]:
    by_runs = sorted(lines, key=lambda line: -line.measures.counts["runs"])
    for line in by_runs[:MOST_MODELS]:
        yield (line.keys["provider"], line.keys["model"]), line.measures
    if rest := by_runs[MOST_MODELS:]:
        total = Measures()
        for line in rest:
            total.add(line.measures)
        yield (OTHER, OTHER), total

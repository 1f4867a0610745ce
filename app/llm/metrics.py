"""The metrics for Prometheus, in a registry of the host application's; needs the extra `metrics`."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from app.llm.metric_names import METRICS, QUEUE_WAIT_S, Kind
from app.llm.telemetry import Readings

MOST_MODELS = 100
"""Models that have series of their own: callers may pin any, and each costs Prometheus memory for ever."""
OTHER = "other"
"""Stands for all further models."""

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
WAIT_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0)

Series = Counter | Gauge | Histogram
_Values = tuple[str, ...]


class PrometheusMetrics:
    """Counters, histograms and gauges in a registry, which the host application exposes as it does its own.

    One object may serve several services; a registry takes one object.

    Example:
        async with build_llm_service(metrics=PrometheusMetrics()) as llm: ...
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, most_models: int = MOST_MODELS) -> None:
        """Register every metric of `METRICS`.

        Args:
            registry: Where they are collected; by default that which `prometheus_client` exposes by itself.
            most_models: Models with series of their own; all later ones share the label `other`.

        Raises:
            ValueError: The registry has metrics of these names.
        """
        self._models: set[str] = set()
        self._most_models = most_models
        self._lock = threading.Lock()
        self._parents = {
            name: _registered(name, registry)
            for name, metric in METRICS.items()
            if metric.kind is not Kind.WATCHED
        }
        self._children: dict[tuple[str, _Values], Series] = {}
        self._readers: defaultdict[str, list[Callable[[], Readings]]] = defaultdict(list)
        registry.register(self)

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter or a gauge."""
        series = self._series(name, labels)
        assert not isinstance(series, Histogram)  # noqa: S101  # as METRICS says
        series.inc(value)

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Record one value of a distribution."""
        series = self._series(name, labels)
        assert isinstance(series, Histogram)  # noqa: S101  # as METRICS says
        series.observe(value)

    def watch(self, name: str, read: Callable[[], Readings]) -> Callable[[], None]:
        """Read a gauge at each scrape, in the scrape's thread; values of the same labels are added up."""
        self._readers[name].append(read)
        return lambda: self._readers[name].remove(read)

    def describe(self) -> Iterator[Metric]:
        """Yield the watched gauges without values, for the registry's check of names."""
        for name, metric in METRICS.items():
            if metric.kind is Kind.WATCHED:
                yield GaugeMetricFamily(name, metric.meaning, labels=metric.labels)

    def collect(self) -> Iterator[Metric]:
        """Yield the watched gauges as they are now."""
        for family in self.describe():
            assert isinstance(family, GaugeMetricFamily)  # noqa: S101  # a line above
            sums: defaultdict[_Values, float] = defaultdict(float)
            for read in tuple(self._readers[family.name]):
                for labels, value in read():
                    sums[self._values(family.name, labels)] += value
            for values, value in sums.items():
                family.add_metric(values, value)
            yield family

    def _series(self, name: str, labels: Mapping[str, str]) -> Series:
        values = self._values(name, labels)
        found = self._children.get((name, values))
        if found is None:
            parent = self._parents[name]
            found = self._children[name, values] = parent.labels(*values) if values else parent
        return found

    def _values(self, name: str, labels: Mapping[str, str]) -> _Values:
        return tuple(
            self._model(labels.get(label, "")) if label == "model" else labels.get(label, "")
            for label in METRICS[name].labels
        )

    def _model(self, model: str) -> str:
        if not model or model in self._models:
            return model
        with self._lock:
            if len(self._models) >= self._most_models:
                return OTHER
            self._models.add(model)
        return model


def _registered(name: str, registry: CollectorRegistry) -> Series:
    metric = METRICS[name]
    if metric.kind is Kind.HISTOGRAM:
        buckets = WAIT_BUCKETS_S if name == QUEUE_WAIT_S else BUCKETS_S
        return Histogram(name, metric.meaning, metric.labels, buckets=buckets, registry=registry)
    kind = Counter if metric.kind is Kind.COUNTER else Gauge
    return kind(name, metric.meaning, metric.labels, registry=registry)

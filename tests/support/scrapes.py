"""What Prometheus would read: samples by name, each with its labels."""

from collections import defaultdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Page = dict[str, list[Sample]]


def read(text: str) -> Page:
    """Return the samples of a page."""
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append(sample)
    return dict(found)


def scraped(registry: CollectorRegistry) -> Page:
    return read(generate_latest(registry).decode())


def total(page: Page, name: str, **labels: str) -> float:
    """Return the sum over the samples with these labels."""
    return sum(sample.value for sample in page.get(name, []) if labels.items() <= sample.labels.items())

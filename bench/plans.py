"""What each mode measures. A quick run is exactly what its targets need, so that no target can lack its figure."""

from collections.abc import Iterable, Mapping

from bench.cases import CASES
from bench.figures import key_of
from bench.probes import PROBES
from bench.runner import Plan
from bench.targets import TARGETS, Target

_BENCH_PROBES = (
    *("route", "fingerprint", "imports", "fresh_process", "streams", "stages", "stages_postgres"),
    *("prune", "prune_postgres"),
    "steps",
)
_REPORTS = ("report_million", "report_million_postgres")
_FULL_PROBES = (*_BENCH_PROBES, "growth", "growth_postgres", "prune_million", "soak", *_REPORTS)
_PACES: Mapping[str, tuple[int, float]] = {"quick": (1, 0.7), "bench": (2, 1.8), "full": (3, 2.0)}
"""Rounds, and seconds of one round of one cell: what fits into 90 seconds, into 8 minutes, and without a limit."""


def targets_of(mode: str) -> tuple[Target, ...]:
    """Return the targets that a mode judges: all but soak and growth, or all."""
    return tuple(target for target in TARGETS if mode == "full" or not target.full)


def plan_of(mode: str) -> Plan:
    """Return what a mode measures."""
    rounds, seconds = _PACES[mode]
    if mode == "quick":
        needs = {need for target in targets_of(mode) for need in target.figure.needs}
        cells = [cell for cell in _every_cell() if key_of(*cell) in needs]
        return Plan(cells, [name for name in PROBES if name in needs], rounds, seconds)
    probes = _BENCH_PROBES if mode == "bench" else _FULL_PROBES
    return Plan(list(_every_cell()), probes, rounds, seconds)


def _every_cell() -> Iterable[tuple[str, int]]:
    """Return the cells of a round: case after case at one number in flight, then at the next."""
    counts = sorted({count for case in CASES.values() for count in case.in_flight})
    return [(name, count) for count in counts for name, case in CASES.items() if count in case.in_flight]

"""Arithmetic on figures that are not measured yet: `cpu("ours", 1) / cpu("theirs", 1)` knows what it needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Key = str
"""`case@in_flight` of a cell, or the name of a probe."""
Rounds = Mapping[Key, Sequence[Mapping[str, Any]]]
"""What each key gave, round by round; a probe has one round. A failed round holds `fault` instead of figures."""


class NotMeasured(Exception):
    """A figure that is needed is not there; the text says why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value to come, and the cells and probes that it is made of."""

    needs: frozenset[Key]
    of: Callable[[Rounds], float]

    def __truediv__(self, other: "Figure") -> "Figure":
        """Return the quotient."""
        return Figure(self.needs | other.needs, lambda rounds: self.of(rounds) / other.of(rounds))

    def __add__(self, other: "Figure") -> "Figure":
        """Return the sum."""
        return Figure(self.needs | other.needs, lambda rounds: self.of(rounds) + other.of(rounds))

    def __mul__(self, factor: float) -> "Figure":
        """Return the multiple, for another unit."""
        return Figure(self.needs, lambda rounds: self.of(rounds) * factor)


def cpu(case: str, in_flight: int) -> Figure:
    """Return the client's milliseconds of CPU per call, best round."""
    return _chosen(case, in_flight, lambda cell: cell["cpu_ms"], min)


def rate(case: str, in_flight: int) -> Figure:
    """Return calls per second, best round."""
    return _chosen(case, in_flight, lambda cell: cell["calls_per_s"], max)


def stall(case: str, in_flight: int) -> Figure:
    """Return the longest that the loop stood still, in milliseconds, of all rounds."""
    return _chosen(case, in_flight, lambda cell: cell["stall_ms"], max)


def spread(case: str, in_flight: int) -> Figure:
    """Return p99 over p50, worst round."""
    return _chosen(case, in_flight, lambda cell: cell["p99_ms"] / cell["p50_ms"], max)


def probed(name: str, figure: str) -> Figure:
    """Return one figure of a probe."""

    def of(rounds: Rounds) -> float:
        try:
            return float(sound(rounds, name)[0][figure])
        except KeyError:
            raise NotMeasured(f"{name} has no {figure}: an earlier bench ran it") from None

    return Figure(frozenset({name}), of)


def key_of(case: str, in_flight: int) -> Key:
    """Return the name of a cell."""
    return f"{case}@{in_flight}"


def sound(rounds: Rounds, key: Key) -> Sequence[Mapping[str, Any]]:
    """Return the rounds of a cell or probe.

    Raises:
        NotMeasured: There are none, or one of them failed: a mean over what worked would hide it.
    """
    found = rounds.get(key, ())
    if not found:
        raise NotMeasured(f"{key} was not measured")
    for each in found:
        if fault := each.get("fault"):
            raise NotMeasured(f"{key}: {str(fault).splitlines()[-1]}")
        if "cpu_ms" in each and each["errors"]:
            raise NotMeasured(f"{key}: {each['errors']} of {each['calls']} calls failed: {each['error']}")
    return found


def _chosen(
    case: str,
    in_flight: int,
    value: Callable[[Mapping[str, Any]], float],
    choose: Callable[[list[float]], float],
) -> Figure:
    key = key_of(case, in_flight)
    return Figure(frozenset({key}), lambda rounds: choose([value(each) for each in sound(rounds, key)]))

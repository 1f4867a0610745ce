"""How long the long suites last: short in every run of the tests, in full when SIGNALBOX_ROUNDS says how often."""

import os

_SAID = os.environ.get("SIGNALBOX_ROUNDS")
ROUNDS = max(1, int(_SAID or 1))
IN_FULL = bool(_SAID)


def times(rounds: int, *, in_short: int | None = None) -> int:
    """Return a number of rounds, multiplied; `in_short` of them where nobody asked for the long suites."""
    return rounds * ROUNDS if _SAID or in_short is None else in_short


def in_full(count: int, *, in_short: int) -> int:
    """Return a number for a test that is repeated for each round as it is (all of tests/crash are)."""
    return count if _SAID else in_short

"""How long the long suites last: SIGNALBOX_ROUNDS multiplies their rounds, 1 is what every run can afford."""

import os

ROUNDS = max(1, int(os.environ.get("SIGNALBOX_ROUNDS") or 1))


def times(rounds: int) -> int:
    """Return a number of rounds, multiplied."""
    return rounds * ROUNDS

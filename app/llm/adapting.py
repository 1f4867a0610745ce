"""How many sends a provider is given at once: more as long as it answers, half as many once it is overloaded. Pure.

Additive increase, multiplicative decrease. Source: D.-M. Chiu and R. Jain, "Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance in Computer Networks", 1989.
"""

from app.llm.errors import LLMProviderError, LLMTimeout

OVERLOADED = (429, 503)
"""HTTP statuses that say: too much."""


class Width:
    """A number of sends between two bounds; it begins at the upper one."""

    __slots__ = ("_least", "_most", "_width", "era")

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self._width = float(most)
        self.era = 0
        """How often it was halved: a send says something about the width that it began under."""

    @property
    def now(self) -> int:
        """Sends at once."""
        return int(self._width)

    def answered(self) -> None:
        """Widen, after an answer to one of as many sends as there may be: by one for all of them."""
        self._width = min(self._width + 1 / self._width, float(self._most))

    def overloaded(self, era: int) -> None:
        """Halve, once for all sends that began under the same width."""
        if era == self.era:
            self._width = max(self._width / 2, float(self._least))
            self.era += 1


def strain(outcome: object, *, had_s: float, patience_s: float) -> bool | None:
    """Return whether a provider had too much to do, as far as a send's outcome says so.

    Args:
        outcome: The error, or anything else for an answer.
        had_s: Seconds that the send had.
        patience_s: Seconds that it must have had for its timeout to be the provider's.

    Returns:
        False for an answer; None where nothing is said.
    """
    if not isinstance(outcome, LLMProviderError):
        return False
    status = outcome.facts.get("http_status")
    if status in OVERLOADED:
        return True
    is_late = isinstance(outcome, LLMTimeout) and (status is not None or had_s >= patience_s)
    return True if is_late else None

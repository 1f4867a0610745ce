"""A circuit breaker per candidate, so that a dead provider costs three sends a window instead of three a call.

Closed: everybody may send. Open: nobody may, for `open_s` seconds. Then one probe may; its outcome closes or opens
again. Only infrastructure errors count: a provider that refuses a request is alive. Source: M. Nygard, "Release It!".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.llm.errors import LLMError, LLMTimeout, LLMUnavailable
from app.llm.ports import Clock

THRESHOLD = 3
OPEN_S = 30.0


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    opened_at_s: float | None = None
    probing: bool = False


class Breaker:
    """The circuits of one process, by `provider:model`."""

    def __init__(self, clock: Clock, *, threshold: int = THRESHOLD, open_s: float = OPEN_S) -> None:
        self._clock = clock
        self._threshold = threshold
        self._open_s = open_s
        self._circuits: dict[str, _Circuit] = {}

    def health(self) -> Mapping[str, bool]:
        """Return a snapshot: False for every candidate whose circuit is open now."""
        return MappingProxyType({name: False for name in self._circuits if self.closed_in_s(name) > 0})

    def closed_in_s(self, name: str) -> float:
        """Return the seconds until a probe may be sent; 0 while the circuit is closed."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.opened_at_s is None:
            return 0.0
        return max(0.0, circuit.opened_at_s + self._open_s - self._clock.monotonic_s())

    def admits(self, name: str) -> bool:
        """Return whether a send may happen now; while half-open, one caller gets True and must report how it went."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.opened_at_s is None:
            return True
        if self.closed_in_s(name) > 0 or circuit.probing:
            return False
        circuit.probing = True
        return True

    def report(self, name: str, error: LLMError | None) -> None:
        """Note how a send went: None for an answer."""
        if not isinstance(error, LLMUnavailable | LLMTimeout):
            self._circuits.pop(name, None)
            return
        circuit = self._circuits.setdefault(name, _Circuit())
        circuit.failures += 1
        if circuit.probing or circuit.failures >= self._threshold:
            circuit.opened_at_s, circuit.probing = self._clock.monotonic_s(), False

    def withdraw(self, name: str) -> None:
        """Note that an admitted send never happened, or was cancelled: another caller may probe."""
        if (circuit := self._circuits.get(name)) is not None:
            circuit.probing = False

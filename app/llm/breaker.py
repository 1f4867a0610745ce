"""A circuit breaker per candidate, so that a dead provider costs three sends a window instead of three a call.

Closed: everybody may send. Open: nobody may, for `open_s` seconds. Then one probe may; its outcome closes or opens
again. Only infrastructure errors count: a provider that refuses a request is alive. Source: M. Nygard, "Release It!".

A send asks when it begins, and only its permit can say how it went. Each opening and closing begins another era, and
what was sent in an earlier one says nothing about this one, however it ends. Sends under way are not taken back, so
a provider that dies under load gets three sends and those that had begun when the first of them failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from app.llm.candidates import Candidate
from app.llm.errors import LLMError, LLMInternal, LLMTimeout, LLMUnavailable
from app.llm.ports import Clock
from app.llm.settings import LLMSettings

THRESHOLD = 3
OPEN_S = 30.0
FAIR_SHARE = 0.5
"""Part of the time that the settings give to a send; a timeout after less of it is the caller's haste."""


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """One send that was admitted, and the era of its circuit then."""

    name: str
    era: int


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    """In a row, in this era."""
    era: int = 0
    opened_at_s: float | None = None
    probe: Permit | None = None

    def turn(self, opened_at_s: float | None) -> None:
        """Begin another era: open from then, or closed."""
        self.failures, self.opened_at_s, self.probe = 0, opened_at_s, None
        self.era += 1


class Breaker:
    """The circuits of one process, by `provider:model`."""

    def __init__(
        self, clock: Clock, *, threshold: int = THRESHOLD, open_s: float = OPEN_S, patience_s: float = 0.0
    ) -> None:
        """Take the rules; `patience_s` are the seconds that a send must have had for its timeout to count."""
        self._clock = clock
        self._threshold = threshold
        self._open_s = open_s
        self._patience_s = patience_s
        self._circuits: dict[str, _Circuit] = {}

    @classmethod
    def from_settings(cls, settings: LLMSettings, clock: Clock) -> Self:
        """Return a breaker as patient as the settings: callers may be hastier, at nobody else's expense."""
        given_s = min(settings.attempt_timeout_s, settings.default_timeout_s)
        return cls(clock, patience_s=FAIR_SHARE * given_s)

    def health(self) -> Mapping[str, bool]:
        """Return a snapshot: False for every candidate whose circuit is open now."""
        return MappingProxyType({name: False for name in self._circuits if self.closed_in_s(name) > 0})

    def states(self) -> Mapping[str, bool]:
        """Return a snapshot of the candidates that ever failed: True until one that was left alone works again."""
        return {name: circuit.opened_at_s is not None for name, circuit in self._circuits.copy().items()}

    def closed_in_s(self, name: str) -> float:
        """Return the seconds until a probe may be sent; 0 while the circuit is closed."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.opened_at_s is None:
            return 0.0
        return max(0.0, circuit.opened_at_s + self._open_s - self._clock.monotonic_s())

    def admits(self, name: str) -> bool:
        """Return whether a send could begin now; nothing is promised."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.opened_at_s is None:
            return True
        return circuit.probe is None and self.closed_in_s(name) <= 0

    def begin(self, name: str) -> Permit | None:
        """Return the permit of a send that begins now, to be reported or withdrawn; None where it must not."""
        if not self.admits(name):
            return None
        circuit = self._circuits.get(name)
        permit = Permit(name, circuit.era if circuit else 0)
        if circuit is not None and circuit.opened_at_s is not None:
            circuit.probe = permit
        return permit

    def report(self, permit: Permit, error: LLMError | None, *, had_s: float) -> None:
        """Note how a send went, which had `had_s` seconds for it: `error`, or None for an answer."""
        dead = self._is_dead(error, had_s)
        if dead is None:
            self.withdraw(permit)
        elif dead:
            self._failed(permit)
        else:
            self._answered(permit)

    def withdraw(self, permit: Permit) -> None:
        """Note that a send ended without saying anything of its provider: another one may probe in its place."""
        circuit = self._circuits.get(permit.name)
        if circuit is not None and circuit.probe is permit:
            circuit.probe = None

    def _is_dead(self, error: LLMError | None, had_s: float) -> bool | None:
        """Return what an outcome says of the provider; None where it says nothing."""
        if (
            isinstance(error, LLMTimeout) and "http_status" not in error.facts
        ):  # ours, not the provider's own word
            return True if had_s >= self._patience_s else None
        return None if isinstance(error, LLMInternal) else isinstance(error, LLMUnavailable | LLMTimeout)

    def _failed(self, permit: Permit) -> None:
        circuit = self._circuits.setdefault(permit.name, _Circuit())
        if permit.era != circuit.era:
            return
        circuit.failures += 1
        if circuit.probe is permit or circuit.failures >= self._threshold:
            circuit.turn(self._clock.monotonic_s())

    def _answered(self, permit: Permit) -> None:
        circuit = self._circuits.get(permit.name)
        if circuit is None or permit.era != circuit.era:
            return
        circuit.failures = 0
        if circuit.probe is permit:
            circuit.turn(None)


def left_alone(candidate: Candidate, for_s: float) -> LLMUnavailable:
    """Return the error of a send that did not happen because its circuit is open."""
    how_long = f"for {for_s:.0f} s more" if for_s > 0 else "but for one call that tries it now"
    error = LLMUnavailable(
        f"{candidate.name} failed several times in a row and is left alone {how_long}; nothing was sent: see that "
        "it works, then call again",
        provider=candidate.provider,
        model=candidate.model,
        retry_after_s=round(for_s, 3),
        skipped=True,
    )
    error.retryable = False
    return error

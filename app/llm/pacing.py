"""How fast a provider may be asked: requests and tokens a minute, each as one moving time. Pure but for the meter's clock.

The generic cell rate algorithm: what was taken moves the time at which all of it is paid off; the next one may go as
soon as that time is no further ahead than a burst allows. Source: ITU-T I.371, annex A.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from app.llm.candidates import Candidate
from app.llm.ports import Clock
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider

BURST = 10
"""A tenth of a minute's quota may go at once."""
MIN_WAIT_S = 0.001
"""A shorter wait is as long as this, so that rounding never makes it nothing."""
ROUNDING_S = 1e-9
_NEVER_S = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many a minute: a burst at once, the others evenly, and in no minute more.

    Tokens keep to that too where no call takes more of them than a burst; a larger one goes when the whole burst is
    there, and those after it wait the longer.
    """

    burst: int
    each_s: float
    """Seconds between two that are not of the burst."""

    @classmethod
    def per_minute(cls, count: int) -> Self:
        """Return the rate of `count` a minute."""
        burst = max(1, count // BURST)
        return cls(burst=burst, each_s=60.0 / (count - burst + 1))

    def cost_s(self, count: float) -> float:
        """Return how far `count` of them move the time."""
        return count * self.each_s

    def lead_s(self, count: float) -> float:
        """Return how far ahead that time may be for `count` of them to go now."""
        return (self.burst - min(count, self.burst)) * self.each_s


UNBOUND = Rate(burst=10**12, each_s=1e-12)
"""Of what nobody set a rate for: more than anybody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a provider may be asked in a minute."""

    requests: Rate = UNBOUND
    tokens: Rate = UNBOUND

    def wait_s(self, ahead: "Ahead", tokens: int) -> float:
        """Return the seconds until a send of so many tokens may go."""
        wait_s = max(ahead.requests_s - self.requests.lead_s(1), ahead.tokens_s - self.tokens.lead_s(tokens))
        return wait_s if wait_s > ROUNDING_S else 0.0

    def behind(self, ahead: "Ahead", requests: int, tokens: int) -> "Ahead":
        """Return what is ahead once so many more were taken, from now on."""
        return Ahead(
            max(ahead.requests_s, 0.0) + self.requests.cost_s(requests),
            max(ahead.tokens_s, 0.0) + self.tokens.cost_s(tokens),
        )


class Ahead(NamedTuple):
    """The seconds until all that was taken is paid off; negative where it has been for so long."""

    requests_s: float
    tokens_s: float


NEVER_ASKED = Ahead(_NEVER_S, _NEVER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an asking came to."""

    wait_s: float
    """Seconds after which asking again makes sense; 0: the place is taken."""
    at_s: float
    """When that was, by the meter's clock."""
    held_s: float = 0.0
    """Seconds for which the provider itself wants no call of this candidate, as others were told."""


class Meter(Protocol):
    """Counts what providers are asked, in one process or for several. Only `ask` may wait for anything."""

    async def ask(self, candidate: Candidate, tokens: int) -> Told:
        """Take a place for a send of about so many tokens, if there is one now.

        Raises:
            LLMLedgerError: Nobody can say; nothing may be sent.
        """
        ...

    def ahead(self, provider: LLMProvider) -> Ahead:
        """Return what is ahead of whoever asks now, as far as that is known without asking: at least so much."""
        ...

    def give_back(self, provider: LLMProvider, tokens: int, told: Told) -> None:
        """Give back a place that was not used, as far as time has not done so already."""
        ...

    def correct(self, provider: LLMProvider, tokens: int) -> None:
        """Count so many tokens more; fewer, where it is negative."""
        ...

    def hold(self, candidate: Candidate, for_s: float) -> None:
        """Tell others who count here too that the provider wants no call of this candidate for so long."""
        ...


def quotas_of(settings: LLMSettings, providers: Iterable[LLMProvider]) -> dict[LLMProvider, Quota]:
    """Return the quotas of those providers that have a rate."""
    quotas = {}
    for provider in providers:
        named = {kind: getattr(settings, f"{provider}_{kind}_per_minute") for kind in ("requests", "tokens")}
        rates = {kind: Rate.per_minute(count) for kind, count in named.items() if count is not None}
        if rates:
            quotas[provider] = Quota(**rates)
    return quotas


@dataclass(slots=True)
class _Paid:
    """When all that was taken is paid off, by the clock; in the past where nothing is owed."""

    requests_at_s: float = _NEVER_S
    tokens_at_s: float = _NEVER_S

    def ahead(self, now_s: float) -> Ahead:
        return Ahead(self.requests_at_s - now_s, self.tokens_at_s - now_s)


class LocalMeter:
    """The meter of one process, for all of its event loops and threads."""

    def __init__(self, quotas: Mapping[LLMProvider, Quota], clock: Clock) -> None:
        self._quotas = dict(quotas)
        self._clock = clock
        self._paid = {provider: _Paid() for provider in quotas}
        self._lock = threading.Lock()

    async def ask(self, candidate: Candidate, tokens: int) -> Told:
        """Take a place, if there is one now; waits for nothing."""
        quota, paid = self._quotas[candidate.provider], self._paid[candidate.provider]
        with self._lock:
            now_s = self._clock.monotonic_s()
            ahead = paid.ahead(now_s)
            if wait_s := quota.wait_s(ahead, tokens):
                return Told(wait_s=max(wait_s, MIN_WAIT_S), at_s=now_s)
            behind = quota.behind(ahead, 1, tokens)
            paid.requests_at_s, paid.tokens_at_s = now_s + behind.requests_s, now_s + behind.tokens_s
        return Told(wait_s=0.0, at_s=now_s)

    def ahead(self, provider: LLMProvider) -> Ahead:
        """Return what is ahead of whoever asks now."""
        return self._paid[provider].ahead(self._clock.monotonic_s())

    def give_back(self, provider: LLMProvider, tokens: int, told: Told) -> None:
        """Give back what is still owed of a place."""
        quota, paid = self._quotas[provider], self._paid[provider]
        with self._lock:
            gone_s = self._clock.monotonic_s() - told.at_s
            paid.requests_at_s -= max(quota.requests.cost_s(1) - gone_s, 0.0)
            paid.tokens_at_s -= max(quota.tokens.cost_s(tokens) - gone_s, 0.0)

    def correct(self, provider: LLMProvider, tokens: int) -> None:
        """Count so many tokens more, or fewer."""
        with self._lock:
            self._paid[provider].tokens_at_s += self._quotas[provider].tokens.cost_s(tokens)

    def hold(self, candidate: Candidate, for_s: float) -> None:
        """Do nothing: nobody else counts here."""

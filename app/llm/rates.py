"""A turn for each send, so that calls wait here for what a provider would refuse: its rates, and what it asked for itself.

Who waits for a turn stands in a line, of one provider and one event loop, and holds nothing: neither a slot nor a
place in the quota. The first in line takes a place and keeps the line until its request is about to be written, so
that places which were taken do not gather behind a slot that is not free. Who leaves the line leaves nothing behind.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from app.llm.adapting import OVERLOADED
from app.llm.candidates import Candidate
from app.llm.errors import LLMOverRate, LLMProviderError, LLMQueueFull
from app.llm.pacing import LocalMeter, Meter, Quota, Told, quotas_of
from app.llm.ports import Clock, ProviderReply
from app.llm.providers import known
from app.llm.settings import LLMMode, LLMSettings
from app.llm.types import UNKNOWN_USAGE, LLMProvider

LONGEST_HOLD_S = 3600.0
"""Seconds for which a provider is left alone at most, whatever it asked for; then one call may find out."""
NAP_S = 1.0
"""Seconds after which the first in line asks again at the latest: answers may have taken less than was thought."""
_NEVER_S = float("-inf")


class Turn:
    """The right to send now. As a context it gives back what was taken, unless the send `leaves`."""

    __slots__ = ("_line", "_meter", "_provider", "_tokens", "_told")

    def __init__(
        self,
        meter: Meter | None = None,
        line: "_Line | None" = None,
        asking: "_Asking | None" = None,
        told: Told | None = None,
    ) -> None:
        self._meter = meter
        self._line = line
        self._told = told
        self._provider = asking.candidate.provider if asking else None
        self._tokens = asking.tokens if asking else 0

    def leaves(self) -> None:
        """Say that the request is about to be written: the next one in line may come."""
        line, self._line = self._line, None
        if line is not None:
            line.door.release()

    def used(self, tokens: int | None) -> None:
        """Say what the send took in the end; None where nobody knows, which leaves the estimate."""
        if self._meter is not None and self._provider is not None and tokens is not None:
            self._meter.correct(self._provider, tokens - self._tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is None:
            return
        if self._meter is not None and self._provider is not None and self._told is not None:
            self._meter.give_back(self._provider, self._tokens, self._told)
        self.leaves()


NO_WAIT = Turn()
"""Where no rate is set and nobody asked to be left alone."""


class Rates:
    """Who may send, and when: one object for a process."""

    def __init__(
        self,
        clock: Clock,
        *,
        quotas: Mapping[LLMProvider, Quota] | None = None,
        queue: int = 1000,
        meter: Meter | None = None,
    ) -> None:
        """Take the rules.

        Args:
            clock: Time, and waits.
            quotas: Of providers that have a rate.
            queue: Calls that may wait for one provider in one event loop.
            meter: Who counts; None: this process alone.
        """
        self._clock = clock
        self._quotas = dict(quotas or {})
        self._queue = queue
        self._meter = meter or LocalMeter(self._quotas, clock)
        self._held: dict[str, float] = {}
        """Until when each candidate that asked for it is left alone."""
        self._lines: dict[asyncio.AbstractEventLoop, dict[LLMProvider, _Line]] = {}

    @classmethod
    def from_settings(cls, settings: LLMSettings, clock: Clock, *, meter: Meter | None = None) -> Self:
        """Return the rates that the settings name; a cassette is nobody who has one."""
        providers = () if settings.mode is LLMMode.REPLAY else known()
        return cls(clock, quotas=quotas_of(settings, providers), queue=settings.queue_limit, meter=meter)

    def is_free(self, candidate: Candidate) -> bool:
        """Return whether everybody may ask it at any time."""
        return candidate.provider not in self._quotas and not (self._held and self.held_s(candidate))

    async def turn(self, candidate: Candidate, *, tokens: int, patience_s: float) -> Turn:
        """Wait until a send may leave, and take its place; the caller enters what is returned at once.

        Args:
            candidate: Who is to be asked.
            tokens: About what the send will take: prompt and answer.
            patience_s: Seconds that may be waited.

        Raises:
            LLMOverRate: That is not long enough: `retry_after_s` is. Told at once where it is known at once.
            LLMQueueFull: As many calls wait for this provider as may.
            LLMLedgerError: The database is away that several processes count in.
        """
        if self.is_free(candidate):
            return NO_WAIT
        asking = _Asking(candidate, tokens, self._clock.monotonic_s() + patience_s)
        line = self._line_of(candidate.provider)
        self._refuse_early(line, asking, patience_s)
        line.waiting += 1
        try:
            return await self._stand_in(line, asking)
        finally:
            line.waiting -= 1

    def heed(self, candidate: Candidate, outcome: object) -> float | None:
        """Leave a candidate alone if it asked for that (429 or 503 with Retry-After, now); return the seconds."""
        if not isinstance(outcome, LLMProviderError) or outcome.facts.get("http_status") not in OVERLOADED:
            return None
        for_s = min(outcome.retry_after_s or 0.0, LONGEST_HOLD_S)
        if not for_s or "served_from" in outcome.facts:  # that was asked for when it was recorded
            return None
        self._note_hold(candidate, for_s)
        if candidate.provider in self._quotas:
            self._meter.hold(candidate, for_s)
        return for_s

    def held_s(self, candidate: Candidate) -> float:
        """Return the seconds for which a candidate is left alone; nearly always 0."""
        until_s = self._held.get(candidate.name) if self._held else None
        if until_s is None:
            return 0.0
        left_s = until_s - self._clock.monotonic_s()
        if left_s <= 0:
            self._held.pop(candidate.name, None)
        return max(left_s, 0.0)

    def refuse_held(self, candidate: Candidate) -> None:
        """Stop a send with its slot in hand whose candidate asked to be left alone meanwhile.

        Raises:
            LLMOverRate: It did.
        """
        if self._held and (held_s := self.held_s(candidate)):
            raise _too_soon(candidate, held_s, held=True)

    def waiting(self) -> Mapping[LLMProvider, int]:
        """Return how many sends wait for their turn now, by provider; for any thread."""
        found: Counter[LLMProvider] = Counter()
        for lines in tuple(self._lines.values()):
            for provider, line in lines.copy().items():
                found[provider] += line.waiting
        return found

    def _note_hold(self, candidate: Candidate, for_s: float) -> None:
        until_s = self._clock.monotonic_s() + for_s
        self._held[candidate.name] = max(until_s, self._held.get(candidate.name, until_s))

    def _refuse_early(self, line: "_Line", asking: "_Asking", patience_s: float) -> None:
        provider, held_s = asking.candidate.provider, self.held_s(asking.candidate)
        soonest_s = self._soonest_s(line, asking, line.places, line.tokens)
        if max(held_s, soonest_s) > patience_s:
            raise _too_soon(asking.candidate, max(held_s, soonest_s), held=held_s > soonest_s)
        if (held_s or soonest_s or line.door.locked()) and line.waiting >= self._queue:
            raise LLMQueueFull(
                f"{self._queue} calls wait for their turn at {provider} already (LLM_QUEUE_LIMIT); nothing was sent",
                provider=provider,
            )

    def _soonest_s(self, line: "_Line", asking: "_Asking", requests: int, tokens: int) -> float:
        """Return the seconds until a call may go behind so many others, at the earliest."""
        provider = asking.candidate.provider
        if (quota := self._quotas.get(provider)) is None:
            return 0.0
        ahead = self._meter.ahead(provider)
        if requests:
            ahead = quota.behind(ahead, requests, tokens)
        opens_s = line.opens_at_s - self._clock.monotonic_s()
        return max(quota.wait_s(ahead, asking.tokens), opens_s)

    async def _stand_in(self, line: "_Line", asking: "_Asking") -> Turn:
        """Wait while the candidate is left alone, then in line; a hold that begins meanwhile is waited for outside."""
        while True:
            while held_s := self.held_s(asking.candidate):
                await self._wait(asking, held_s, held=True)
            if asking.candidate.provider not in self._quotas:
                return NO_WAIT
            if (turn := await self._first_in(line, asking)) is not None:
                return turn

    async def _first_in(self, line: "_Line", asking: "_Asking") -> Turn | None:
        """Return a turn with the line in hand; None where the candidate is left alone."""
        line.places += 1
        line.tokens += asking.tokens
        told = None
        try:
            await self._reach_door(line, asking)
            try:
                told = await self._place_for(line, asking)
            finally:
                line.opens_at_s = _NEVER_S
                if told is None:
                    line.door.release()
        finally:
            line.places -= 1
            line.tokens -= asking.tokens
        return None if told is None else Turn(self._meter, line, asking, told)

    async def _reach_door(self, line: "_Line", asking: "_Asking") -> None:
        if not line.door.locked():
            await line.door.acquire()  # at once
            return
        left_s = asking.until_s - self._clock.monotonic_s()
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                await line.door.acquire()
        except TimeoutError:
            soonest_s = self._soonest_s(line, asking, line.places - 1, line.tokens - asking.tokens)
            raise _too_soon(asking.candidate, soonest_s, held=False) from None

    async def _place_for(self, line: "_Line", asking: "_Asking") -> Told | None:
        while not self.held_s(asking.candidate):
            told = await self._meter.ask(asking.candidate, asking.tokens)
            if told.held_s:
                self._note_hold(asking.candidate, told.held_s)
            elif told.wait_s:
                line.opens_at_s = self._clock.monotonic_s() + told.wait_s
                await self._wait(asking, told.wait_s, held=False)
            else:
                return told
        return None

    async def _wait(self, asking: "_Asking", for_s: float, *, held: bool) -> None:
        if self._clock.monotonic_s() + for_s > asking.until_s:
            raise _too_soon(asking.candidate, for_s, held=held)
        await self._clock.sleep_s(for_s if held else min(for_s, NAP_S))

    def _line_of(self, provider: LLMProvider) -> "_Line":
        loop = asyncio.get_running_loop()
        lines = self._lines.get(loop)
        if lines is None:
            known_lines = list(self._lines.items())  # at once: the loop of another thread may come meanwhile
            self._lines = {each: lines for each, lines in known_lines if not each.is_closed()}
            lines = self._lines[loop] = {}
        return lines.setdefault(provider, _Line())


@dataclass(frozen=True, slots=True)
class _Asking:
    """A call on its way to its turn."""

    candidate: Candidate
    tokens: int
    until_s: float
    """Beyond which it does not wait, by the clock."""


class _Line:
    """Who waits for one provider in one event loop, first come, first served."""

    __slots__ = ("door", "opens_at_s", "places", "tokens", "waiting")

    def __init__(self) -> None:
        self.door = asyncio.Lock()
        self.waiting = 0
        """Calls without their turn, those included whose candidate is left alone."""
        self.places = 0
        """Those of them that stand at the door."""
        self.tokens = 0
        """What these will take."""
        self.opens_at_s = _NEVER_S
        """When the first of them was told to ask again, by the clock."""


def tokens_of(outcome: object) -> int | None:
    """Return what a send took, as far as it is known: nothing where the provider cannot have done the work."""
    if isinstance(outcome, ProviderReply):
        return outcome.usage.total_tokens
    if not isinstance(outcome, LLMProviderError):
        return None
    known_tokens: int | None = outcome.facts.get("usage", UNKNOWN_USAGE).total_tokens
    return 0 if known_tokens is None and not outcome.possibly_paid else known_tokens


def _too_soon(candidate: Candidate, for_s: float, *, held: bool) -> LLMOverRate:
    why = "asked to be left alone (Retry-After)"
    if not held:
        rates = (f"LLM_{candidate.provider.upper()}_{kind}_PER_MINUTE" for kind in ("REQUESTS", "TOKENS"))
        why = f"has been asked as often as may be ({', '.join(rates)})"
    return LLMOverRate(
        f"{candidate.name} {why}, for {for_s:.1f} s more, which this call could not wait; nothing was sent",
        provider=candidate.provider,
        model=candidate.model,
        retry_after_s=round(for_s, 3),
        skipped=True,
    )

"""Bounds the sends in flight, so that a burst of calls queues here instead of drowning a provider."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider


class Limits:
    """Slots per provider and over all providers; first come, first served.

    Each event loop has slots of its own: one process normally runs one loop.
    """

    def __init__(self, *, total: int, per_provider: Mapping[LLMProvider, int]) -> None:
        self._total = total
        self._per_provider = dict(per_provider)
        self._gates: dict[asyncio.AbstractEventLoop, _Gates] = {}

    @classmethod
    def from_settings(cls, settings: LLMSettings) -> Self:
        """Return the limits that the settings name."""
        return cls(
            total=settings.concurrency_limit,
            per_provider={
                LLMProvider.OLLAMA: settings.ollama_concurrency_limit,
                LLMProvider.GEMINI: settings.gemini_concurrency_limit,
            },
        )

    @asynccontextmanager
    async def slot(self, provider: LLMProvider) -> AsyncIterator[float]:
        """Hold a slot of `provider` and one of all; the value is how long that took, in milliseconds.

        The provider's slot comes first: whoever waits for a busy provider takes nothing from the others.
        """
        loop = asyncio.get_running_loop()
        gates = self._gates_of(loop)
        asked_at = loop.time()
        async with gates.of[provider], gates.total:
            gates.in_flight[provider] += 1
            try:
                yield (loop.time() - asked_at) * 1000
            finally:
                gates.in_flight[provider] -= 1

    def in_flight(self, provider: LLMProvider | None = None) -> int:
        """Return how many slots are held now: of one provider, or of all."""
        counts = [gates.in_flight for gates in tuple(self._gates.values())]
        return sum(each.total() if provider is None else each[provider] for each in counts)

    def _gates_of(self, loop: asyncio.AbstractEventLoop) -> "_Gates":
        if loop not in self._gates:
            self._gates = {each: gates for each, gates in self._gates.items() if not each.is_closed()}
            self._gates[loop] = _Gates(self._total, self._per_provider)
        return self._gates[loop]


class _Gates:
    """The semaphores of one event loop."""

    def __init__(self, total: int, per_provider: Mapping[LLMProvider, int]) -> None:
        self.total = asyncio.Semaphore(total)
        self.of = {provider: asyncio.Semaphore(slots) for provider, slots in per_provider.items()}
        self.in_flight: Counter[LLMProvider] = Counter()

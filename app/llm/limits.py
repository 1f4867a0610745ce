"""Bounds the sends in flight, so that a burst of calls queues here instead of drowning a provider."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Self

from app.llm.errors import LLMQueueFull
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider

MAX_NAMED = 5
"""Run ids that an error's text names at most; its facts hold all of the workspace."""


class Limits:
    """Slots per provider and over all providers; first come, first served; the queue is bounded too.

    Each event loop has slots of its own: one process normally runs one loop.
    """

    def __init__(self, *, total: int, per_provider: Mapping[LLMProvider, int], queue: int = 1000) -> None:
        self._total = total
        self._per_provider = dict(per_provider)
        self._queue = queue
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
            queue=settings.queue_limit,
        )

    def slot(self, provider: LLMProvider, run_id: str, workspace_id: str) -> "Slot":
        """Hold a slot of `provider` and one of all; the value is how long that took, in milliseconds.

        The provider's slot comes first: whoever waits for a busy provider takes nothing from the others.

        Raises:
            LLMQueueFull: As many calls wait for this provider as may; the error names the workspace's own runs
                that hold its slots, and counts those of others.
        """
        gates = self._gates_of(asyncio.get_running_loop())
        return Slot(gates, provider, _Holder(run_id, workspace_id), self._queue)

    def in_flight(self, provider: LLMProvider | None = None) -> int:
        """Return how many slots are held now: of one provider, or of all."""
        held = [gates.held for gates in tuple(self._gates.values())]
        return sum(len(runs) for each in held for name, runs in each.items() if provider in {None, name})

    def _gates_of(self, loop: asyncio.AbstractEventLoop) -> "_Gates":
        gates = self._gates.get(loop)
        if gates is None:
            self._gates = {each: gates for each, gates in self._gates.items() if not each.is_closed()}
            gates = self._gates[loop] = _Gates(self._total, self._per_provider)
        return gates


class _Holder(NamedTuple):
    """A run with a slot, or on its way to one."""

    run_id: str
    workspace_id: str


class _Gates:
    """The semaphores of one event loop, and who holds them."""

    def __init__(self, total: int, per_provider: Mapping[LLMProvider, int]) -> None:
        self.total = asyncio.Semaphore(total)
        self.of = {provider: asyncio.Semaphore(slots) for provider, slots in per_provider.items()}
        self.held: dict[LLMProvider, list[_Holder]] = {provider: [] for provider in per_provider}
        self.waiting: Counter[LLMProvider] = Counter()

    def join_queue(self, provider: LLMProvider, workspace_id: str, limit: int) -> None:
        if self.of[provider].locked() and self.waiting[provider] >= limit:
            raise self._full(provider, workspace_id, limit)
        self.waiting[provider] += 1

    def _full(self, provider: LLMProvider, workspace_id: str, limit: int) -> LLMQueueFull:
        """Return the refusal; a run id is a means to release the run, so each workspace is told its own only."""
        holders = self.held[provider]
        own = tuple(holder.run_id for holder in holders if holder.workspace_id == workspace_id)
        others = len(holders) - len(own)
        named = [*own[:MAX_NAMED], *([f"{others} of other workspaces"] if others else ())]
        return LLMQueueFull(
            f"{limit} calls wait for {provider} already (LLM_QUEUE_LIMIT); its slots are held by "
            f"{', '.join(named) or 'nobody yet'}; nothing was sent",
            provider=provider,
            run_ids=own,
            others=others,
        )


class Slot:
    """One slot: asked for when entered, given back when left. A class, since generators cost a tenth of a send."""

    __slots__ = ("_gates", "_holder", "_provider", "_queue")

    def __init__(self, gates: _Gates, provider: LLMProvider, holder: _Holder, queue: int) -> None:
        self._gates = gates
        self._provider = provider
        self._holder = holder
        self._queue = queue

    async def __aenter__(self) -> float:
        gates, provider = self._gates, self._provider
        asked_at = time.monotonic()
        gates.join_queue(provider, self._holder.workspace_id, self._queue)
        try:
            await gates.of[provider].acquire()
            try:
                await gates.total.acquire()
            except BaseException:
                gates.of[provider].release()
                raise
        finally:
            gates.waiting[provider] -= 1
        gates.held[provider].append(self._holder)
        return (time.monotonic() - asked_at) * 1000

    async def __aexit__(self, *_: object) -> None:
        gates, provider = self._gates, self._provider
        gates.held[provider].remove(self._holder)
        gates.total.release()
        gates.of[provider].release()

"""Bounds the sends in flight, so that a burst of calls queues here instead of drowning a provider."""

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple, Self

from app.llm.errors import LLMQueueFull
from app.llm.providers import known
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
                provider: getattr(settings, f"{provider}_concurrency_limit") for provider in known()
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
        return Slot(gates.of[provider], gates.total, _Holder(run_id, workspace_id), self._queue)

    def in_flight(self, provider: LLMProvider | None = None) -> int:
        """Return how many slots are held now: of one provider, or of all."""
        gates = [gate for each in tuple(self._gates.values()) for gate in each.of.values()]
        return sum(len(gate.held) for gate in gates if provider in {None, gate.provider})

    def waiting(self) -> Mapping[LLMProvider, int]:
        """Return how many sends wait for a slot now, by provider."""
        found = dict.fromkeys(self._per_provider, 0)
        for gates in tuple(self._gates.values()):
            for provider, gate in gates.of.items():
                found[provider] += gate.waiting
        return found

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
    """The slots of one event loop."""

    def __init__(self, total: int, per_provider: Mapping[LLMProvider, int]) -> None:
        self.total = asyncio.Semaphore(total)
        self.of = {provider: _Gate(provider, slots) for provider, slots in per_provider.items()}


class _Gate:
    """The slots of one provider in one event loop, who holds them, and how many wait."""

    __slots__ = ("held", "provider", "slots", "waiting")

    def __init__(self, provider: LLMProvider, slots: int) -> None:
        self.provider = provider
        self.slots = asyncio.Semaphore(slots)
        self.held: list[_Holder] = []
        self.waiting = 0

    def join_queue(self, workspace_id: str, limit: int) -> None:
        if self.slots.locked() and self.waiting >= limit:
            raise self._full(workspace_id, limit)
        self.waiting += 1

    def _full(self, workspace_id: str, limit: int) -> LLMQueueFull:
        """Return the refusal; a run id is a means to release the run, so each workspace is told its own only."""
        own = tuple(holder.run_id for holder in self.held if holder.workspace_id == workspace_id)
        others = len(self.held) - len(own)
        named = [*own[:MAX_NAMED], *([f"{others} of other workspaces"] if others else ())]
        return LLMQueueFull(
            f"{limit} calls wait for {self.provider} already (LLM_QUEUE_LIMIT); its slots are held by "
            f"{', '.join(named) or 'nobody yet'}; nothing was sent",
            provider=self.provider,
            run_ids=own,
            others=others,
        )


class Slot:
    """One slot: asked for when entered, given back when left. A class, since generators cost a tenth of a send."""

    __slots__ = ("_gate", "_holder", "_queue", "_total")

    def __init__(self, gate: _Gate, total: asyncio.Semaphore, holder: _Holder, queue: int) -> None:
        self._gate = gate
        self._total = total
        self._holder = holder
        self._queue = queue

    async def __aenter__(self) -> float:
        gate = self._gate
        asked_at = time.monotonic()
        gate.join_queue(self._holder.workspace_id, self._queue)
        try:
            await gate.slots.acquire()
            try:
                await self._total.acquire()
            except BaseException:
                gate.slots.release()
                raise
        finally:
            gate.waiting -= 1
        gate.held.append(self._holder)
        return (time.monotonic() - asked_at) * 1000

    async def __aexit__(self, *_: object) -> None:
        self._gate.held.remove(self._holder)
        self._total.release()
        self._gate.slots.release()

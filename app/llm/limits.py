"""Bounds the sends in flight, so that a burst of calls queues here instead of drowning a provider."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple, Self

from app.llm.adapting import Width
from app.llm.errors import LLMQueueFull
from app.llm.providers import known
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider

MAX_NAMED = 5
"""Run ids that an error's text names at most; its facts hold all of the workspace."""


class Limits:
    """Slots per provider and over all providers; first come, first served; the queue is bounded too.

    Each event loop has slots of its own: one process normally runs one loop. A provider that is overloaded has fewer
    of them for a while, but `least`; None leaves them as they are.
    """

    def __init__(
        self,
        *,
        total: int,
        per_provider: Mapping[LLMProvider, int],
        queue: int = 1000,
        least: int | None = None,
    ) -> None:
        self._total = total
        self._per_provider = dict(per_provider)
        self._queue = queue
        self._least = least
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
            least=settings.concurrency_min,
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

    def widths(self) -> Mapping[LLMProvider, int]:
        """Return how many slots each provider has now, once one was asked for."""
        found: Counter[LLMProvider] = Counter()
        for gates in tuple(self._gates.values()):
            for provider, gate in gates.of.items():
                found[provider] += gate.slots.size
        return found

    def _gates_of(self, loop: asyncio.AbstractEventLoop) -> "_Gates":
        gates = self._gates.get(loop)
        if gates is None:
            self._gates = {each: gates for each, gates in self._gates.items() if not each.is_closed()}
            gates = self._gates[loop] = _Gates(self._total, self._per_provider, self._least)
        return gates


class _Holder(NamedTuple):
    """A run with a slot, or on its way to one."""

    run_id: str
    workspace_id: str


class _Gates:
    """The slots of one event loop."""

    def __init__(self, total: int, per_provider: Mapping[LLMProvider, int], least: int | None) -> None:
        self.total = _Slots(total)
        self.of = {
            provider: _Gate(provider, Width(slots if least is None else least, slots))
            for provider, slots in per_provider.items()
        }


class _Slots:
    """A semaphore whose size may change; first come, first served."""

    __slots__ = ("_waiters", "size", "taken")

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def locked(self) -> bool:
        """Return whether whoever comes now has to wait."""
        return self.taken >= self.size or bool(self._waiters)

    async def acquire(self) -> None:
        """Take one, as soon as it is this caller's turn."""
        if not self.locked():
            self.taken += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it was given one meanwhile
                self.release()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Give one back."""
        self.taken -= 1
        self._hand_on()

    def resize(self, size: int) -> None:
        """Have so many from now on; those that are taken beyond that are not handed on."""
        self.size = size
        self._hand_on()

    def _hand_on(self) -> None:
        while self._waiters and self.taken < self.size:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.taken += 1
                waiter.set_result(None)


class _Gate:
    """The slots of one provider in one event loop, who holds them, and how many wait."""

    __slots__ = ("held", "provider", "slots", "waiting", "width")

    def __init__(self, provider: LLMProvider, width: Width) -> None:
        self.provider = provider
        self.width = width
        self.slots = _Slots(width.now)
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

    __slots__ = ("_era", "_full", "_gate", "_holder", "_queue", "_total", "waited_ms")

    def __init__(self, gate: _Gate, total: _Slots, holder: _Holder, queue: int) -> None:
        self._gate = gate
        self._total = total
        self._holder = holder
        self._queue = queue
        self._era: int | None = None
        self._full = False
        self.waited_ms = 0.0
        """How long it took to get."""

    def report(self, strained: bool | None) -> None:  # noqa: FBT001  # what there is to say
        """Say, once it was given back, whether the provider had too much to do; None where that is not known."""
        if self._era is None or strained is None or not (strained or self._full):
            return
        width = self._gate.width
        if strained:
            width.overloaded(self._era)
        else:
            width.answered()
        if width.now != self._gate.slots.size:
            self._gate.slots.resize(width.now)

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
        self._era = gate.width.era
        self.waited_ms = (time.monotonic() - asked_at) * 1000
        return self.waited_ms

    async def __aexit__(self, *_: object) -> None:
        self._full = self._gate.slots.taken >= self._gate.slots.size
        self._gate.held.remove(self._holder)
        self._total.release()
        self._gate.slots.release()

"""Time limits for blocks of code, many at once: `asyncio.timeout` without a timer for each.

Nearly every limit is taken off again long before it is reached. A timer that is set and cancelled for each costs a
twentieth of a whole call; one for all of them, set to the first that can be reached, costs nothing that can be seen.
"""

import asyncio
from types import TracebackType
from typing import Self


class Deadlines:
    """The time limits of one owner, in whatever event loops it is used; each loop has one timer for them."""

    def __init__(self) -> None:
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}

    def within(self, seconds: float) -> "Within":
        """Return what ends a `with` block by TimeoutError once it has taken so long; 0 and less: at its first wait.

        As with `asyncio.timeout`, the task is cancelled where it waits, and a cancellation from outside stays one.
        """
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            known = list(self._watches.items())  # at once: the loop of another thread may come meanwhile
            self._watches = {each: watch for each, watch in known if not each.is_closed()}
            watch = self._watches[loop] = _Watch(loop)
        return Within(watch, seconds)


class Within:
    """One block and its limit; entered once."""

    __slots__ = ("_cancelling", "_seconds", "_task", "_watch", "ends_at_s", "expired")

    def __init__(self, watch: "_Watch", seconds: float) -> None:
        self._watch = watch
        self._seconds = seconds
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.ends_at_s = 0.0
        """By the clock of the loop, from when it is entered."""
        self.expired = False
        """Whether the limit was reached while the block ran."""

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.ends_at_s = self._watch.loop.time() + self._seconds
        self._watch.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._watch.open.discard(self)
        if self.expired and self._task is not None:
            others = self._task.uncancel() > self._cancelling  # somebody else cancelled it as well
            if not others and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def move(self, ends_at_s: float) -> None:
        """End the block at another time, by the clock of its loop, unless its time is over already."""
        if not self.expired:
            self.ends_at_s = ends_at_s
            self._watch.add(self)

    def expire(self) -> None:
        """End the block: its time is over."""
        self.expired = True
        if self._task is not None:
            self._task.cancel()


class _Watch:
    """The limits of one event loop that are running, and the timer for the first of them, or for one taken off."""

    __slots__ = ("_timer", "loop", "open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.open: set[Within] = set()

    def add(self, block: Within) -> None:
        self.open.add(block)
        if self._timer is None or block.ends_at_s < self._timer.when():
            self._set(block.ends_at_s)

    def _set(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(when_s, self._look)

    def _look(self) -> None:
        """End what has had its time; set the timer for the first of the others."""
        self._timer = None
        now_s = self.loop.time()
        for block in [each for each in self.open if each.ends_at_s <= now_s]:
            self.open.discard(block)
            block.expire()
        if self.open:
            self._set(min(each.ends_at_s for each in self.open))

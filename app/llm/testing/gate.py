"""Hold requests back until a test lets them go, so that tests order events instead of sleeping."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Gate:
    """Requests that arrive while the gate is shut wait at it; release() opens it for good."""

    def __init__(self, on_release: Callable[["Gate"], None]) -> None:
        self._opened = asyncio.Event()
        self._on_release = on_release

    def release(self) -> None:
        """Let every waiting request go on. Safe from any thread and more than once."""
        self._on_release(self)

    def open_in_loop(self) -> None:
        """Open the gate; the server calls this in its own event loop."""
        self._opened.set()

    async def passed(self) -> None:
        """Return once the gate is open; the server awaits this."""
        await self._opened.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

"""The process clock behind one object, so that policies never read time themselves and tests can move it."""

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """The real clock: `monotonic_s` for spans, `now` for stamps, `sleep_s` for waits."""

    __slots__ = ()

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary start; never goes backwards."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return the wall clock as an aware UTC datetime."""
        return datetime.now(UTC)

    async def sleep_s(self, seconds: float) -> None:
        """Wait on the running loop."""
        await asyncio.sleep(seconds)

"""Hooks of a test that sit inside a transaction, which may run in another thread than the test."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable


class HomeLoop:
    """The loop that this object was made on; what is called through it runs there, and its caller waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def call(self, hook: Callable[[], object]) -> None:
        """Run a hook on the loop's thread, and raise here what it raises."""
        if threading.get_ident() == self._thread:
            hook()
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                hook()
            except BaseException as error:  # noqa: BLE001  # it belongs to the thread that waits
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result(timeout=30)

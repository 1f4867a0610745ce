"""A loopback port with an event loop in a thread of its own, because only real sockets fail like real sockets."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from aiohttp import web

from app.llm.testing.delivery import cut

_CONTROL_TIMEOUT_S = 10.0
_HOST = "127.0.0.1"

Handler = Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]]


class Listener:
    """Serve `handle` on a free port of 127.0.0.1; can vanish from the port and come back to it."""

    def __init__(self, handle: Handler, *, name: str) -> None:
        self._handle = handle
        self._name = name
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._site: web.SockSite | None = None
        self.address: str | None = None
        """`http://127.0.0.1:PORT` once started, also after close()."""

    def start(self) -> None:
        """Return once connections are accepted."""
        if self._thread is not None:
            raise RuntimeError("the stub is already started")
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name=self._name, daemon=True)
        self._thread.start()
        started.result(_CONTROL_TIMEOUT_S)

    def close(self) -> None:
        """Drop every connection, end the thread. Closing again does nothing."""
        if self._thread is None:
            return
        self.soon(self._stop.set)
        self._thread.join(_CONTROL_TIMEOUT_S)
        self._thread = None

    def down(self) -> None:
        """Reset every connection and refuse new ones; the port stays reserved."""
        self._control(self._vanish)

    def up(self) -> None:
        """Accept connections on the same port again."""
        self._control(self._appear)

    def soon(self, step: Callable[[], object]) -> None:
        """Run `step` in the event loop, or right here if none is running."""
        if (loop := self._loop) is None:
            step()
        else:
            loop.call_soon_threadsafe(step)

    def _control(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._loop is None:
            raise RuntimeError("the stub is not running")
        asyncio.run_coroutine_threadsafe(step(), self._loop).result(_CONTROL_TIMEOUT_S)

    def _run(self, started: "Future[None]") -> None:
        try:
            asyncio.run(self._live(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)  # start() raises it, in the thread that can act on it

    async def _live(self, started: "Future[None]") -> None:
        self._stop = asyncio.Event()
        # A client that hangs up cancels its call, as it does at the provider.
        self._web = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(self._web, shutdown_timeout=1.0)
        await self._runner.setup()
        self._socket = _bound(0)
        self.address = f"http://{_HOST}:{self._socket.getsockname()[1]}"
        await self._appear()
        self._loop = asyncio.get_running_loop()
        started.set_result(None)
        await self._stop.wait()
        self._loop = None
        await self._vanish()
        await self._runner.cleanup()
        self._socket.close()

    async def _appear(self) -> None:
        if self._site is None and self._socket is not None:
            self._site = web.SockSite(self._runner, self._socket)
            await self._site.start()

    async def _vanish(self) -> None:
        if self._site is not None and self._socket is not None:
            port = self._socket.getsockname()[1]
            await self._site.stop()
            self._site = None
            # A bound socket that does not listen refuses connections and keeps the port from others.
            self._socket = _bound(port)
        for connection in self._web.connections:
            cut(connection.transport, abrupt=True)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((_HOST, port))
    bound.settimeout(0)  # asyncio wants it so
    return bound

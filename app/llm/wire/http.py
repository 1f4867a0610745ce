"""The HTTP of every lane: one attempt sends at most one request, and all that comes back is seen, bounded and kept."""

import asyncio
import io
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import aiohttp

from app.llm.wire.exchange import GOOD, LINGER_S, BrokenOff, Exchange, Unreachable, UnusableReply

CONNECT_TIMEOUT_S = 10.0
LARGE_BYTES = 2**20
MAX_ERROR_BYTES = 65_536  # of an error's body; the rest of it is not read

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)  # the caller's deadline rules
_sending: ContextVar[Exchange] = ContextVar("llm_exchange_being_sent")


class OneRequestHTTP:
    """Posts over aiohttp, with one session per event loop; follows no redirect and repeats nothing."""

    def __init__(
        self, *, connections: int = 0, trust_env: bool = False, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Open at most `connections` at once in each event loop (0: no bound), with `trust_env` through its proxy."""
        self._connections = connections
        self._trust_env = trust_env
        self._ssl = ssl_context or True
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def send(self, url: str, headers: Mapping[str, str], body: bytes, exchange: Exchange) -> None:
        """Post `body`, once, and note in `exchange` what came back, whatever its status.

        Raises:
            Unreachable: See there; it stands in the exchange too.
            BrokenOff: As above.
            UnusableReply: As above; the answer is too large.
            RuntimeError: The exchange has had its request.
            LLMProviderError: As `Exchange.begin`.
        """
        async with self._posted(url, headers, body, exchange) as posted:
            exchange.body = await posted.whole()

    async def fetch(self, url: str, headers: Mapping[str, str], exchange: Exchange) -> None:
        """Get a document, once; all else as in `send`."""
        async with self._posted(url, headers, None, exchange) as fetched:
            exchange.body = await fetched.whole()

    def stream(self, url: str, headers: Mapping[str, str], body: bytes, exchange: Exchange) -> "Posted":
        """Post `body`, once, when it is entered, and give the answer in pieces; leaving closes what is not read."""
        return self._posted(url, headers, body, exchange)

    def _posted(
        self, url: str, headers: Mapping[str, str], body: bytes | None, exchange: Exchange
    ) -> "Posted":
        exchange.requests += 1
        if exchange.requests > 1:
            raise RuntimeError("a second request of the same attempt was refused")
        exchange.begin()
        method, data = ("GET", None) if body is None else ("POST", _payload(body))
        sent = self._session().request(method, url, headers=headers, data=data, allow_redirects=False)
        return Posted(sent, exchange)

    async def close(self) -> None:
        """Close the sessions of every event loop; idempotent."""
        here = asyncio.get_running_loop()
        sessions, self._sessions = self._sessions, {}
        for loop, session in sessions.items():
            if loop is here or loop.is_closed():
                await session.close()
            elif loop.is_running():  # one that stands still can close nothing
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=_NotingConnector(ssl=self._ssl, limit=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "signalbox"},
                timeout=_TIMEOUT,
                trust_env=self._trust_env,
            )
        return session


class Posted:
    """One request and its answer, as long as it is entered. Iterating over it reads a good body piece by piece."""

    __slots__ = ("_exchange", "_mark", "_post", "_response", "_size")

    def __init__(self, post: AbstractAsyncContextManager[aiohttp.ClientResponse], exchange: Exchange) -> None:
        self._post = post
        self._exchange = exchange
        self._size = 0

    async def __aenter__(self) -> Self:
        exchange = self._exchange
        self._mark = _sending.set(exchange)
        try:
            self._response = response = await self._post.__aenter__()
        except BaseException as error:
            _sending.reset(self._mark)
            self._note(error)
            raise
        exchange.status = response.status
        exchange.headers = response.headers
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _sending.reset(self._mark)
        if not self._response.content.at_eof():
            self._response.close()
        await self._post.__aexit__(kind, error, trace)
        self._note(error)

    async def whole(self) -> bytes:
        """Return the whole body; of one whose status is no good one, the start."""
        response, good = self._response, self._response.status in GOOD
        limit = self._exchange.max_bytes if good else MAX_ERROR_BYTES
        chunks: list[bytes] = []
        size = 0
        while not response.content.at_eof():
            chunks.append(await response.content.readany())
            size += len(chunks[-1])
            if size > limit:
                response.close()
                if good:
                    raise _too_large(limit)
                break
        return b"".join(chunks)[:limit]

    async def last(self) -> bytes:
        """Return what follows a complete answer: once the end is read, the next request can use the connection."""
        pieces: list[bytes] = []
        with suppress(BrokenOff, TimeoutError):  # nothing of the answer is lost
            async with asyncio.timeout(LINGER_S):
                async for piece in self:
                    pieces.append(piece)  # noqa: PERF401  # those that came before an error stay
        return b"".join(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece of the body.

        Raises:
            BrokenOff: The connection ended before the body did.
            UnusableReply: They are larger than the cap.
        """
        content, piece = self._response.content, b""
        while not piece:
            if content.at_eof():
                raise StopAsyncIteration
            try:
                piece = await content.readany()
            except (aiohttp.ClientError, OSError) as error:
                self._note(error)
        self._size += len(piece)
        if self._size > self._exchange.max_bytes:
            raise _too_large(self._exchange.max_bytes)
        return piece

    def _note(self, error: BaseException | None) -> None:
        """Write in the exchange why there is no answer, and raise what the connection's end means."""
        if isinstance(error, UnusableReply):
            self._exchange.failure = error
        elif isinstance(error, aiohttp.ClientError | OSError):
            self._exchange.failure = _broken(error, written=self._exchange.written)
            raise self._exchange.failure from error


class _NotingConnector(aiohttp.TCPConnector):
    """Notes in the exchange that its request has a connection; aiohttp's traces would say it at ten times the cost."""

    async def connect(self, *args: Any, **kwargs: Any) -> Any:  # aiohttp's own types
        connection = await super().connect(*args, **kwargs)
        _sending.get().written = True  # the next thing that aiohttp does
        return connection


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Return what aiohttp is to send: it wants a large body as a file, which it writes piece by piece."""
    return body if len(body) <= LARGE_BYTES else io.BytesIO(body)


def _broken(error: Exception, *, written: bool) -> BrokenOff | Unreachable:
    if written:
        return BrokenOff(type(error).__name__)
    return Unreachable(str(getattr(error, "os_error", error)))


def _too_large(limit: int) -> UnusableReply:
    return UnusableReply(f"the answer is larger than {limit:,} bytes")

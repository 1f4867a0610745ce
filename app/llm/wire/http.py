"""The HTTP of every lane: one attempt sends at most one request, and all that comes back is seen, bounded and kept."""

import asyncio
import io
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp

from app.llm.wire.exchange import GOOD, BrokenOff, Exchange, Unreachable, UnusableReply

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
        exchange.requests += 1
        if exchange.requests > 1:
            raise RuntimeError("a second request of the same attempt was refused")
        exchange.begin()
        mark = _sending.set(exchange)
        try:
            async with self._session().post(
                url, headers=headers, data=_payload(body), allow_redirects=False
            ) as response:
                exchange.status = response.status
                exchange.headers = response.headers
                exchange.body = await _body(response, exchange.max_bytes)
        except UnusableReply as error:
            exchange.failure = error
            raise
        except (aiohttp.ClientError, OSError) as error:
            exchange.failure = _broken(error, written=exchange.written)
            raise exchange.failure from error
        finally:
            _sending.reset(mark)

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


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    good = response.status in GOOD
    limit = max_bytes if good else MAX_ERROR_BYTES
    chunks: list[bytes] = []
    size = 0
    while not response.content.at_eof():
        chunks.append(await response.content.readany())
        size += len(chunks[-1])
        if size > limit:
            response.close()
            if good:
                raise UnusableReply(f"the answer is larger than {limit:,} bytes")
            break
    return b"".join(chunks)[:limit]

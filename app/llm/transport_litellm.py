"""The HTTP below LiteLLM: one attempt sends at most one request, and all that comes back is seen, bounded and kept.

LiteLLM hides status, headers and bytes of an answer, repeats a request whose connection closed before the headers,
and has no limit of size. So its HTTP client gets this transport: what happens is noted in the attempt's `Exchange`.
"""

import asyncio
import ssl
from types import SimpleNamespace

import aiohttp
import httpx

from app.llm.exchange_litellm import (
    GOOD,
    BrokenOff,
    Exchange,
    Unreachable,
    UnusableReply,
    current_exchange,
)

CONNECT_TIMEOUT_S = 10.0
MAX_ERROR_BYTES = 65_536  # of an error's body; the rest of it is not read

_LEFT_TO_AIOHTTP = {"host", "content-length", "accept-encoding", "connection", "transfer-encoding"}


class OneRequestTransport(httpx.AsyncBaseTransport):
    """Sends over aiohttp, with one session per event loop; follows no redirect and repeats nothing.

    A failure is always raised as `httpx.ReadError`, because that is one that LiteLLM does not answer with a second
    request; the real one is in the exchange.
    """

    def __init__(self, *, trust_env: bool, ssl_context: ssl.SSLContext | None = None) -> None:
        self._trust_env = trust_env
        self._ssl = ssl_context or True
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` within the current exchange."""
        exchange = current_exchange()
        exchange.requests += 1
        if exchange.requests > 1:
            raise httpx.ReadError("a second request of the same attempt was refused")
        exchange.on_send()
        try:
            await self._send(request, exchange)
            if exchange.status in GOOD:
                exchange.body = exchange.prepare(exchange.body)
        except UnusableReply as error:
            exchange.failure = error
        except (aiohttp.ClientError, OSError) as error:
            exchange.failure = (
                BrokenOff(type(error).__name__) if exchange.written else Unreachable(str(error))
            )
        if exchange.failure is not None:
            raise httpx.ReadError("the exchange says why")
        kind = {"content-type": exchange.headers.get("content-type", "application/json")}
        return httpx.Response(exchange.status or 0, headers=kind, content=exchange.body, request=request)

    async def aclose(self) -> None:
        """Close the sessions of every event loop; idempotent."""
        here = asyncio.get_running_loop()
        sessions, self._sessions = self._sessions, {}
        for loop, session in sessions.items():
            if loop is here or not loop.is_running():
                await session.close()
            else:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    async def _send(self, request: httpx.Request, exchange: Exchange) -> None:
        headers = {name: value for name, value in request.headers.items() if name not in _LEFT_TO_AIOHTTP}
        headers.setdefault("content-type", "application/json")  # LiteLLM names none to Ollama
        if not exchange.authorized:
            headers.pop("authorization", None)
        async with self._session().request(
            request.method,
            str(request.url),
            headers=headers,
            data=request.content,
            allow_redirects=False,
            trace_request_ctx=exchange,
        ) as response:
            exchange.status = response.status
            exchange.headers = {name.lower(): value for name, value in response.headers.items()}
            exchange.body = await _body(response, exchange.max_bytes)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            trace = aiohttp.TraceConfig()
            trace.on_request_headers_sent.append(_note_written)
            self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl, limit=0),  # the limits are kept above
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                trace_configs=[trace],
                trust_env=self._trust_env,
            )
        return self._sessions[loop]


async def _note_written(
    session: aiohttp.ClientSession,  # noqa: ARG001  # the signature of aiohttp's traces
    context: SimpleNamespace,
    parameters: aiohttp.TraceRequestHeadersSentParams,  # noqa: ARG001  # as above
) -> None:
    context.trace_request_ctx.written = True


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    good = response.status in GOOD
    limit = max_bytes if good else MAX_ERROR_BYTES
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            response.close()
            if good:
                raise UnusableReply(f"the answer is larger than {limit:,} bytes")
            break
    return bytes(body[:limit])

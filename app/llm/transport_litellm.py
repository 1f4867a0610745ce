"""The HTTP below LiteLLM: one attempt sends at most one request, and all that comes back is seen, bounded and kept.

LiteLLM hides status, headers and bytes of an answer, repeats a request whose connection closed before the headers,
leaves a task behind for each, and has no limit of size. So `OneRequestHTTP.post` takes the place of its HTTP client's
`post`; what happens is noted in the attempt's `Exchange`.
"""

import asyncio
import io
import json
import ssl
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

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
LARGE_BYTES = 2**20
MAX_ERROR_BYTES = 65_536  # of an error's body; the rest of it is not read


class OneRequestHTTP:
    """Posts over aiohttp, with one session per event loop; follows no redirect and repeats nothing."""

    def __init__(self, *, trust_env: bool, ssl_context: ssl.SSLContext | None = None) -> None:
        self._trust_env = trust_env
        self._ssl = ssl_context or True
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        data: str | None = None,
        json: Any = None,  # a name that LiteLLM gives
        **_unused: Any,  # timeout, stream, logging_obj ...
    ) -> httpx.Response:
        """Send one request within the current exchange and return its answer; called by LiteLLM.

        Raises:
            httpx.HTTPStatusError: The status is not a good one.
            Unreachable: See there, and the exchange.
            BrokenOff: As above.
            UnusableReply: As above.
            RuntimeError: The exchange has had its request.
        """
        exchange = current_exchange()
        exchange.requests += 1
        if exchange.requests > 1:
            raise RuntimeError("a second request of the same attempt was refused")
        body = data if data is not None else _dumped(json)
        exchange.on_send()
        try:
            await self._send(url, headers, body.encode(), exchange)
            if exchange.status in GOOD:
                exchange.body = exchange.prepare(exchange.body)
        except UnusableReply as error:
            exchange.failure = error
        except (aiohttp.ClientError, OSError) as error:
            exchange.failure = (
                BrokenOff(type(error).__name__)
                if exchange.written
                else Unreachable(str(getattr(error, "os_error", error)))
            )
        if exchange.failure is not None:
            raise exchange.failure
        body_read = exchange.body if exchange.status in GOOD else b""  # an error's body is read by us alone
        return httpx.Response(
            exchange.status or 0, content=body_read, request=httpx.Request("POST", url)
        ).raise_for_status()

    async def close(self) -> None:
        """Close the sessions of every event loop; idempotent."""
        here = asyncio.get_running_loop()
        sessions, self._sessions = self._sessions, {}
        for loop, session in sessions.items():
            if loop is here or loop.is_closed():
                await session.close()
            elif loop.is_running():  # one that stands still can close nothing
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes, exchange: Exchange) -> None:
        sent = {name.lower(): value for name, value in headers.items()} | {"content-type": "application/json"}
        if not exchange.authorized:
            sent.pop("authorization", None)
        async with self._session().post(
            url, headers=sent, data=_payload(body), allow_redirects=False, trace_request_ctx=exchange
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
                headers={"User-Agent": "signalbox"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                trace_configs=[trace],
                trust_env=self._trust_env,
            )
        return self._sessions[loop]


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Return what aiohttp is to send: it wants a large body as a file, which it writes piece by piece."""
    return body if len(body) <= LARGE_BYTES else io.BytesIO(body)


def _dumped(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)


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

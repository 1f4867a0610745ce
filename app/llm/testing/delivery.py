"""Put an answer on the socket, whole or deliberately broken, since clients fail on connections as often as on words."""

import asyncio
import socket
import struct
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from app.llm.testing.content import End, Fault, FaultKind, Wire
from app.llm.testing.gate import Gate

_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: close sends RST
_FILLER = b"x" * 65_536


async def deliver(
    request: web.BaseRequest,
    wire: Wire,
    fault: Fault | None,
    ended: Callable[[], None],
    sent: Callable[[], None] = lambda: None,
) -> web.StreamResponse:
    """Send `wire` and call `ended` before the client can notice the end (it may be called again later).

    `sent` is called after each chunk of a stream.
    """
    if fault is None and wire.chunks:
        return await _stream(request, wire, ended, sent)
    if fault is None and not wire.padding_bytes:
        ended()
        return web.Response(body=wire.body, status=wire.status, headers=_headers(wire))
    if fault is None:
        return await _padded(request, wire, ended)
    if fault.kind is FaultKind.DRIP:
        drip = _drip_all if fault.before_headers else _drip
        return await drip(request, wire, fault.seconds_per_byte, ended)
    ended()
    return _cut(request, wire, fault)


def cut(transport: asyncio.BaseTransport | None, *, abrupt: bool) -> None:
    """End a connection now: with RST if `abrupt`, otherwise with FIN after what was written."""
    if not isinstance(transport, asyncio.Transport):
        return
    if not abrupt:
        transport.close()
        return
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
    transport.abort()


def _headers(wire: Wire) -> dict[str, str]:
    return {"Content-Type": wire.content_type, **wire.headers}


async def _stream(
    request: web.BaseRequest, wire: Wire, ended: Callable[[], None], sent: Callable[[], None]
) -> web.StreamResponse:
    response = web.StreamResponse(status=wire.status, headers=_headers(wire))
    response.enable_chunked_encoding()
    await response.prepare(request)
    last = len(wire.chunks) - 1
    for place, chunk in enumerate(wire.chunks):
        if isinstance(chunk, Gate):
            await chunk.passed()
            continue
        if place == last:
            ended()
        await response.write(chunk)
        sent()
    ended()
    if wire.end is End.BROKEN:
        cut(request.transport, abrupt=True)
        return web.Response()  # as in `_cut`
    await response.write_eof()
    return response


async def _padded(request: web.BaseRequest, wire: Wire, ended: Callable[[], None]) -> web.StreamResponse:
    response = await _opened(request, wire)
    await response.write(wire.body)
    left = wire.padding_bytes
    while left > 0:
        await response.write(_FILLER[: min(left, len(_FILLER))])
        left -= len(_FILLER)
    ended()
    await response.write_eof()
    return response


async def _drip(
    request: web.BaseRequest, wire: Wire, seconds_per_byte: float, ended: Callable[[], None]
) -> web.StreamResponse:
    response = await _opened(request, wire)
    for place in range(len(wire.body)):
        if place == len(wire.body) - 1:
            ended()
        await response.write(wire.body[place : place + 1])
        await asyncio.sleep(seconds_per_byte)
    await response.write_eof()
    return response


async def _drip_all(
    request: web.BaseRequest, wire: Wire, seconds_per_byte: float, ended: Callable[[], None]
) -> web.StreamResponse:
    """Begin with the status line; aiohttp would write it and all headers at once."""
    transport, answer = request.transport, _head(wire) + wire.body
    for place in range(len(answer)):
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client hung up")
        if place == len(answer) - 1:
            ended()
        transport.write(answer[place : place + 1])
        await asyncio.sleep(seconds_per_byte)
    cut(transport, abrupt=False)
    return web.Response()  # as in `_cut`


async def _opened(request: web.BaseRequest, wire: Wire) -> web.StreamResponse:
    response = web.StreamResponse(status=wire.status, headers=_headers(wire))
    response.content_length = len(wire.body) + wire.padding_bytes
    await response.prepare(request)
    return response


def _cut(request: web.BaseRequest, wire: Wire, fault: Fault) -> web.StreamResponse:
    transport = request.transport
    if transport is not None and not (fault.kind is FaultKind.RESET and fault.before_headers):
        half = b"" if fault.kind is FaultKind.RESET else wire.body[: len(wire.body) // 2]
        transport.write(_head(wire) + half)
    cut(transport, abrupt=fault.abrupt and fault.kind is FaultKind.RESET)
    return web.Response()  # aiohttp finds the connection closing and drops it


def _head(wire: Wire) -> bytes:
    fields = {**_headers(wire), "Content-Length": str(max(len(wire.body), 2))}
    lines = [f"HTTP/1.1 {wire.status} {HTTPStatus(wire.status).phrase}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in fields.items()), "", ""]).encode()

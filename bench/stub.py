"""A provider in a process of its own: canned answers of Ollama and Gemini over keep-alive, as fast as Python allows.

Every answer differs in one number, because equal texts would be stored once and make a ledger look cheap.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from itertools import count
from typing import ClassVar

from bench.machine import allow_many_files

BUSY = "busy"
"""A model of this name is refused with 429, which makes a caller fall over without calling the provider dead."""
CROWD, CROWD_SIZE = "crowd", 1_000
"""A model that answers nobody before so many ask at once."""
CITY = {"name": "Paris", "country": "France"}
"""What is answered to a request for structured output."""

_TEXT = (
    "A signal box sets the points and signals of a stretch of line, so that one train at a time may enter it. "
    * 3
)
_HEADERS_END = b"\r\n\r\n"
_STREAM = b'"stream":true'
CHUNKS = 256
"""Chunks of a streamed answer, the last one included."""
GAP_S = 0.003
"""Seconds after its first chunk: a model takes its time, and whoever waits for that chunk has it by then."""


class Provider(asyncio.Protocol):
    """One connection; requests come one after another, as HTTP clients without pipelining send them."""

    _numbers = count(1)
    _crowd: ClassVar[list[tuple[asyncio.Transport, bytes]]] = []

    def __init__(self) -> None:
        self._waiting = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's is one

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._waiting += data
        while (end := self._waiting.find(_HEADERS_END)) >= 0:
            head = bytes(self._waiting[:end])
            size = _content_length(head)
            whole = end + len(_HEADERS_END) + size
            if len(self._waiting) < whole:
                return
            body = bytes(self._waiting[whole - size : whole])
            del self._waiting[:whole]
            if _STREAM in body:
                self._begin(_streamed(next(self._numbers)))
                continue
            reply = _reply(head, body, next(self._numbers))
            if _is_for(CROWD, body):
                self._crowd.append((self._transport, reply))
                self._answer_a_crowd()
            else:
                self._transport.write(reply)

    def _begin(self, chunks: Iterator[bytes]) -> None:
        """Write the head with the first chunk, then let others have theirs; then the rest, chunk by chunk."""
        self._transport.write(next(chunks) + next(chunks))
        asyncio.get_running_loop().call_later(GAP_S, self._go_on, chunks)

    def _go_on(self, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            self._transport.write(chunk)

    def _answer_a_crowd(self) -> None:
        if len(self._crowd) == CROWD_SIZE:
            for transport, reply in self._crowd:
                transport.write(reply)
            self._crowd.clear()


def _is_for(model: str, body: bytes) -> bool:
    named = f'"{model}"'.encode()
    return named in body[:200] or named in body[-200:]


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _reply(head: bytes, body: bytes, number: int) -> bytes:
    path = head.split(b" ", 2)[1]
    if path.endswith(b"/api/chat"):
        if _is_for(BUSY, body):
            return _http("429 Too Many Requests", {"error": "busy"})
        said = json.dumps(CITY) if b'"format":' in body else f"{number}: {_TEXT}"
        return _http("200 OK", _ollama(said))
    if b":generateContent" in path:
        return _http("200 OK", _gemini(f"{number}: {_TEXT}"))
    return _http("404 Not Found", {"error": f"the stub knows no {path.decode()}"})


def _streamed(number: int) -> Iterator[bytes]:
    """Yield the head of a streamed answer of Ollama's and its chunks, each as a provider writes it."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    for place in range(CHUNKS - 1):
        said = {"message": {"role": "assistant", "content": f"{number}.{place} "}, "done": False}
        yield _chunk({**_HEAD, **said})
    yield _chunk({**_ollama(""), **_HEAD}) + b"0\r\n\r\n"


_HEAD = {"model": "llama3.2", "created_at": "2026-03-01T12:00:00.000000Z"}


def _chunk(body: object) -> bytes:
    line = json.dumps(body).encode() + b"\n"
    return f"{len(line):x}\r\n".encode() + line + b"\r\n"


def _ollama(text: str) -> dict[str, object]:
    return {
        "model": "llama3.2",
        "created_at": "2026-03-01T12:00:00.000000Z",
        "message": {"role": "assistant", "content": text},
        "done": True,
        "done_reason": "stop",
        "total_duration": 1_000_000,
        "load_duration": 1_000,
        "prompt_eval_count": 260,
        "prompt_eval_duration": 1_000,
        "eval_count": 80,
        "eval_duration": 1_000,
    }


def _gemini(text: str) -> dict[str, object]:
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {"promptTokenCount": 260, "candidatesTokenCount": 80, "totalTokenCount": 340},
        "modelVersion": "gemini-2.5-flash",
    }


def _http(status: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def _serve_until_stdin_ends() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    await stdin.read()  # the runner ends, or closes the pipe


if __name__ == "__main__":
    allow_many_files()
    asyncio.run(_serve_until_stdin_ends())

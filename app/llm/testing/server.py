"""Answer model calls from a script and keep count, so that a test says what a provider does and sees what it got."""

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections import deque
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Self

from aiohttp import web

from app.llm.testing.content import (
    Answer,
    Call,
    End,
    Failure,
    Provider,
    Stream,
    Thought,
    Wire,
    pieces_of,
)
from app.llm.testing.delivery import deliver
from app.llm.testing.derive import Ask, derive
from app.llm.testing.gate import Gate
from app.llm.testing.listener import Listener
from app.llm.testing.record import Received, Record
from app.llm.testing.reply import Reply


class StubServer(ABC):
    """What all stubs share: life cycle, script, gates and record. Subclasses speak the dialect.

    A request that the provider itself would refuse (wrong key, unknown model, broken JSON) counts as a send and
    leaves the script untouched.
    """

    provider: ClassVar[Provider]
    _prefix: ClassVar[str] = ""
    _stream_type: ClassVar[str]

    def __init__(self) -> None:
        self._listener = Listener(self._handle, name=f"stub-{self.provider}")
        self._record = Record()
        self._lock = threading.Lock()
        self._script: deque[Reply] = deque()
        self._standing: Reply | None = None
        self._gates: tuple[Gate, ...] = ()

    # -- life

    def start(self) -> Self:
        """Listen on a free port of 127.0.0.1 and return once connections are accepted."""
        self._listener.start()
        return self

    def close(self) -> None:
        """Drop every connection and end the thread. The record stays readable; closing again does nothing."""
        self._listener.close()

    def down(self) -> None:
        """Behave like a killed process: connections are reset, new ones refused; the port stays ours.

        A client meets a reset instead of a refusal if it reuses a pooled connection before its event loop has seen
        it end; `await asyncio.to_thread(stub.down)` gives that loop the chance.
        """
        self._listener.down()

    def up(self) -> None:
        """Listen again on the same port."""
        self._listener.up()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what it says

    def script(self, *replies: Reply) -> None:
        """Queue replies, one per model call. An empty queue derives the answer from the request.

        Raises:
            ValueError: A reply is one that only another provider can give.
        """
        for reply in replies:
            self._check(reply)
        with self._lock:
            self._script.extend(replies)

    def always(self, reply: Reply | None) -> None:
        """Give `reply` to every model call that finds the script empty; None ends that."""
        if reply is not None:
            self._check(reply)
        with self._lock:
            self._standing = reply

    def hold(self) -> Gate:
        """Keep model calls that arrive from now on waiting, after they are counted, until the gate is released."""
        gate = Gate(self._release)
        with self._lock:
            self._gates += (gate,)
        return gate

    def gate(self) -> Gate:
        """Return a gate for `Reply.stream`: the stream waits where it stands until the gate is released."""
        return Gate(self._release)

    # -- what it saw

    @property
    def base_url(self) -> str:
        """The API base to configure, without a trailing slash."""
        if self._listener.address is None:
            raise RuntimeError("start the stub before asking for its address")
        return f"{self._listener.address}{self._prefix}"

    @property
    def sends(self) -> int:
        """Model calls received so far, counted when they arrive."""
        return self._record.sends

    @property
    def requests(self) -> tuple[Received, ...]:
        """Every request so far, oldest first, those that are no model call included."""
        return self._record.requests

    @property
    def max_in_flight(self) -> int:
        """Highest number of model calls that ran at the same time."""
        return self._record.max_in_flight

    @property
    def chunks(self) -> int:
        """Chunks of streams written so far."""
        return self._record.chunks

    @property
    def abandoned(self) -> int:
        """Model calls whose client hung up before the answer was complete."""
        return self._record.abandoned

    def wait_for_sends(self, n: int, timeout_s: float = 10) -> None:
        """Block this thread until `n` model calls have arrived, else raise TimeoutError."""
        self._record.wait(lambda: self.sends >= n, f"{n} model calls", timeout_s)

    def wait_for_abandoned(self, n: int, timeout_s: float = 10) -> None:
        """Block this thread until `n` clients have hung up on a model call, else raise TimeoutError."""
        self._record.wait(lambda: self.abandoned >= n, f"{n} abandoned calls", timeout_s)

    def wait_for_chunks(self, n: int, timeout_s: float = 10) -> None:
        """Block this thread until `n` chunks of streams were written, else raise TimeoutError."""
        self._record.wait(lambda: self.chunks >= n, f"{n} chunks", timeout_s)

    def wait_for_request(self, path: str, n: int = 1, timeout_s: float = 10) -> None:
        """Block this thread until `n` requests to exactly `path` have arrived, else raise TimeoutError."""
        self._record.wait(
            lambda: sum(each.path == path for each in self.requests) >= n,
            f"{n} requests to {path}",
            timeout_s,
        )

    # -- the dialect

    @abstractmethod
    def _is_model_call(self, method: str, path: str) -> bool: ...

    @abstractmethod
    def _refusal(self, received: Received) -> Failure | None:
        """Return what the provider answers before any model runs, or None."""

    @abstractmethod
    def _ask(self, received: Received) -> Ask: ...

    @abstractmethod
    def _answer(self, answer: Answer, received: Received) -> Wire: ...

    @abstractmethod
    def _wants_stream(self, received: Received) -> bool: ...

    @abstractmethod
    def _chunk(self, piece: str | Thought | Call | Failure | tuple[Call, ...], received: Received) -> bytes:
        """Return one chunk of a stream as it is written."""

    @abstractmethod
    def _last_chunk(self, stream: Stream, received: Received) -> bytes: ...

    @abstractmethod
    def _failure(self, failure: Failure, received: Received) -> Wire: ...

    @abstractmethod
    async def _aside(self, received: Received) -> Wire:
        """Answer a request that is no model call."""

    # -- serving, in the server's thread

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()  # not request.read(): that refuses more than 1 MiB
        is_model_call = self._is_model_call(request.method, request.path)

        def make(ordinal: int, in_flight: int) -> Received:
            return Received(
                method=request.method,
                path=request.path,
                query=MappingProxyType(dict(request.query)),
                headers=MappingProxyType({name.lower(): value for name, value in request.headers.items()}),
                body=_parsed(raw),
                raw=raw,
                ordinal=ordinal,
                in_flight_at_arrival=in_flight,
            )

        received = self._record.arrive(make, is_model_call=is_model_call)
        if is_model_call:
            return await self._serve(request, received)
        return await deliver(request, await self._aside(received), None, lambda: None)

    async def _serve(self, request: web.BaseRequest, received: Received) -> web.StreamResponse:
        running = [received]

        def sent() -> None:
            self._record.send_chunk()

        def ended() -> None:
            if running:
                running.clear()
                self._record.leave()

        try:
            refusal = self._refusal(received)
            reply = Reply(content=refusal) if refusal else self._next_reply()
            for gate in self._gates:
                await gate.passed()
            await asyncio.sleep(reply.delay_s)
            return await deliver(request, self._render(reply, received), reply.fault, ended, sent)
        except (asyncio.CancelledError, ConnectionError):
            if running:
                self._record.abandon()
            raise
        finally:
            ended()

    def _render(self, reply: Reply, received: Received) -> Wire:
        content = reply.content
        if isinstance(content, Wire):
            return content
        if isinstance(content, Failure):
            return self._failure(content, received)
        if isinstance(content, Answer) and content.derived:
            content = derive(self._ask(received), content)
        if self._wants_stream(received):
            return self._streamed(pieces_of(content) if isinstance(content, Answer) else content, received)
        return self._answer(content.whole() if isinstance(content, Stream) else content, received)

    def _streamed(self, stream: Stream, received: Received) -> Wire:
        chunks = [
            piece if isinstance(piece, bytes | Gate) else self._chunk(piece, received)
            for piece in stream.pieces
        ]
        failed = any(isinstance(piece, Failure) for piece in stream.pieces)
        if stream.end is End.LAST and not failed:
            chunks.append(self._last_chunk(stream, received))
        body = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
        return Wire(body=body, chunks=tuple(chunks), end=stream.end, content_type=self._stream_type)

    def _next_reply(self) -> Reply:
        with self._lock:
            return self._script.popleft() if self._script else self._standing or Reply()

    def _check(self, reply: Reply) -> None:
        if reply.only not in {None, self.provider}:
            raise ValueError(f"only {reply.only} answers like this, not {self.provider}")

    def _release(self, gate: Gate) -> None:
        with self._lock:
            self._gates = tuple(each for each in self._gates if each is not gate)
        self._listener.soon(gate.open_in_loop)


def _parsed(raw: bytes) -> Any:  # JSON
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None

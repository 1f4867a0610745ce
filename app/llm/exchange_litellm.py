"""The record of one attempt on the wire, kept apart from the libraries that fill it in and the rules that read it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

GOOD = range(200, 300)
"""HTTP statuses whose body is an answer."""


class Unreachable(Exception):
    """No connection: nothing was sent."""


class BrokenOff(Exception):
    """The connection ended before the answer did."""


class UnusableReply(Exception):
    """An answer with a good status that cannot be used; the text says why."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What one attempt sent and got back; empty until it happens."""

    max_bytes: int
    """Bytes that the body of an answer may have, after decompression."""
    prepare: Callable[[bytes], bytes]
    """Makes of a good answer's body what LiteLLM is given; raises `UnusableReply`."""
    on_send: Callable[[], None]
    """Called once, right before the connection is used."""
    authorized: bool = True
    """Whether an Authorization header is wanted: LiteLLM adds one of its own accord, from the environment."""
    requests: int = 0
    written: bool = False
    """Whether a byte of the request may have reached the other side."""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the answer, names in lower case."""
    body: bytes = b""
    failure: Unreachable | BrokenOff | UnusableReply | None = None
    """Why there is no usable answer, where the status does not say it."""


_current: ContextVar[Exchange] = ContextVar("llm_exchange")


@contextmanager
def recorded(exchange: Exchange) -> Iterator[None]:
    """Note in `exchange` what the code inside sends, in this task."""
    token = _current.set(exchange)
    try:
        yield
    finally:
        _current.reset(token)


def current_exchange() -> Exchange:
    """Return the exchange of the attempt that this task works on."""
    return _current.get()

"""The record of one attempt on the wire, kept apart from the libraries that fill it in and the rules that read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from app.llm.errors import LLMProviderError
from app.llm.types import UNKNOWN_USAGE, TokenUsage

GOOD = range(200, 300)
"""HTTP statuses whose body is an answer."""

LINGER_S = 1.0
"""Seconds for which an answer that is complete may keep its connection, so that the next request can use it."""


class Unreachable(Exception):
    """No connection: nothing was sent."""


class BrokenOff(Exception):
    """The connection ended before the answer did."""


class Stalled(TimeoutError):
    """No chunk came for too long in the middle of an answer; the text says for how long."""


class UnusableReply(Exception):
    """An answer with a good status that cannot be used; the text says why."""


class Refused(Exception):
    """An answer with a status that is no good one; what it was stands in the exchange."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What one attempt sent and got back; empty until it happens."""

    max_bytes: int
    """Bytes that the body of an answer may have, after decompression."""
    on_send: Callable[[], None]
    """Called by `begin`; may refuse, by an LLMProviderError."""
    requests: int = 0
    written: bool = False
    """Whether a byte of the request may have reached the other side."""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the answer; looked up in lower case."""
    body: bytes = b""
    failure: Unreachable | BrokenOff | UnusableReply | LLMProviderError | None = None
    """Why there is no usable answer, where the status does not say it."""
    usage: TokenUsage = UNKNOWN_USAGE
    """What a good answer consumed; None where the provider gives no count, or an impossible one."""
    finish: object = None
    """Why the model stopped, in the provider's own words."""

    def begin(self) -> None:
        """Tell that the request is about to leave, once, right before the connection is used.

        Raises:
            LLMProviderError: It must not leave any more; that stands in `failure`, for a library may dress it up.
        """
        try:
            self.on_send()
        except LLMProviderError as refusal:
            self.failure = refusal
            raise

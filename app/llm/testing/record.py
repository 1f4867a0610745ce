"""What a stub has received, readable from any thread while it serves, since assertions run beside the traffic."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came in."""

    method: str
    path: str
    query: Mapping[str, str] = field(repr=False)
    """Not in repr: Gemini accepts the key here."""
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case. Not in repr: a key may be among them."""
    body: Any
    """The parsed JSON, or None if there is none."""
    raw: bytes = field(repr=False)
    ordinal: int
    """1 for the first model call; 0 for a request that is no model call."""
    in_flight_at_arrival: int
    """Model calls running when this arrived, itself included if it is one."""


class Record:
    """Every request so far and the counts that tests wait for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: list[Received] = []
        self._sends = 0
        self._in_flight = 0
        self._max_in_flight = 0
        self._abandoned = 0
        self._chunks = 0

    def arrive(self, make: Callable[[int, int], Received], *, is_model_call: bool) -> Received:
        """Store what `make(ordinal, in_flight)` returns."""
        with self._changed:
            if is_model_call:
                self._sends += 1
                self._in_flight += 1
                self._max_in_flight = max(self._max_in_flight, self._in_flight)
            received = make(self._sends if is_model_call else 0, self._in_flight)
            self._requests.append(received)
            self._changed.notify_all()
            return received

    def leave(self) -> None:
        """Note that a model call has ended."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def abandon(self) -> None:
        """Note that a client hung up before its answer."""
        with self._changed:
            self._abandoned += 1
            self._changed.notify_all()

    def send_chunk(self) -> None:
        """Note that a chunk of a stream was written."""
        with self._changed:
            self._chunks += 1
            self._changed.notify_all()

    @property
    def chunks(self) -> int:
        """Chunks of streams written."""
        with self._changed:
            return self._chunks

    @property
    def requests(self) -> tuple[Received, ...]:
        """Every request, oldest first."""
        with self._changed:
            return tuple(self._requests)

    @property
    def sends(self) -> int:
        """Model calls received."""
        with self._changed:
            return self._sends

    @property
    def abandoned(self) -> int:
        """Model calls whose client hung up before the answer."""
        with self._changed:
            return self._abandoned

    @property
    def max_in_flight(self) -> int:
        """Highest number of model calls at the same time."""
        with self._changed:
            return self._max_in_flight

    def wait(self, reached: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Block until `reached()`, looked at after every change.

        Raises:
            TimeoutError: It was not reached within `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(reached, timeout_s):
                seen = [f"{each.method} {each.path}" for each in self._requests]
                raise TimeoutError(f"no {what} within {timeout_s} s; received: {seen}")

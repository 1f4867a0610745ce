"""Cuts the bytes of a streamed answer into its events, wherever the network has cut them."""

from typing import Protocol


class Framing(Protocol):
    """How one provider puts events into bytes."""

    def cut(self, data: bytes) -> list[bytes]:
        """Return the events that end within `data`, each a JSON text."""
        ...

    def rest(self) -> list[bytes]:
        """Return what is left after the last byte."""
        ...


class Lines:
    """One event a line (NDJSON), ended by LF or CRLF; blank lines are none."""

    def __init__(self) -> None:
        self._open: list[bytes] = []

    def cut(self, data: bytes) -> list[bytes]:
        """Return the lines that end within `data`, without what ends them."""
        return [line for line in self.cut_all(data) if line.strip()]

    def cut_all(self, data: bytes) -> list[bytes]:
        """Likewise with the blank ones."""
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._open.append(tail)
            return []
        whole = b"".join((*self._open, head))
        self._open = [tail]
        return [line.removesuffix(b"\r") for line in whole.split(b"\n")]

    def rest(self) -> list[bytes]:
        """Return the line that nothing has ended."""
        last, self._open = b"".join(self._open), []
        return [last] if last.strip() else []


class ServerSentEvents:
    """The data of server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html.

    Comments and other fields are skipped. What no blank line has ended is an event all the same: a provider that
    closes right after it has said it.
    """

    def __init__(self) -> None:
        self._lines = Lines()
        self._data: list[bytes] = []

    def cut(self, data: bytes) -> list[bytes]:
        """Return the data of the events that end within `data`."""
        return self._read(self._lines.cut_all(data))

    def rest(self) -> list[bytes]:
        """Return the data of the event that nothing has ended."""
        return self._read([*self._lines.rest(), b""])

    def _read(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

"""One logger for the package, through the standard library, so that the host application decides what is shown."""

import json
import logging
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import orjson

NAME = "signalbox"

_host = logging.getLogger(NAME)


def get_logger() -> Any:
    """Return a structlog logger that writes one line of JSON an event to the logger `signalbox`.

    Nothing is configured globally: without a logging set-up of the host, warnings and errors go to stderr.
    """
    import structlog  # noqa: PLC0415  # it loads rich, half as much again as all of ours; types alone need neither

    return structlog.wrap_logger(
        _HostLogger(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),  # the host filters
        processors=[_line],
    ).bind()  # made once: the lazy proxy would ask for its configuration at every event


def is_shown(level: int) -> bool:
    """Return whether the host wants events of this level of `logging`."""
    return _host.isEnabledFor(level)


class _HostLogger:
    """Hands lines to the logger of the host; looks for no caller, who is always this file."""

    def info(self, line: str) -> None:
        self._write(logging.INFO, line)

    def warning(self, line: str) -> None:
        self._write(logging.WARNING, line)

    def error(self, line: str) -> None:
        self._write(logging.ERROR, line)

    def _write(self, level: int, line: str) -> None:
        if _host.isEnabledFor(level):
            _host.handle(_host.makeRecord(NAME, level, __file__, 0, line, (), None))


def _line(_logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
    """Return the event with its level and time as JSON of ASCII characters, which every stream of a host can take."""
    event["level"] = level
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    try:
        line = orjson.dumps(event, default=repr)
    except TypeError:  # half of a surrogate pair, or an integer of more than 64 bits
        return json.dumps(event, default=repr)
    return line.decode() if line.isascii() else json.dumps(event, default=repr)

"""One logger for the package, through the standard library, so that the host application decides what is shown."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import orjson

NAME = "signalbox"

_host = logging.getLogger(NAME)


def is_shown(level: int) -> bool:
    """Return whether the host wants events of this level of `logging`."""
    return _host.isEnabledFor(level)


def write(level: int, event: dict[str, Any]) -> None:
    """Write an event, with its level and the time, as one line of JSON to the logger `signalbox`.

    Nothing is configured globally: without a logging set-up of the host, warnings and errors go to stderr. No caller
    is looked for, who is always this file.
    """
    event["level"] = logging.getLevelName(level).lower()
    event["timestamp"] = datetime.now(UTC)
    _host.handle(_host.makeRecord(NAME, level, __file__, 0, _line(event), (), None))


def _line(event: dict[str, Any]) -> str:
    """Return JSON of ASCII characters, which every stream of a host can take."""
    try:
        line = orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z)
    except TypeError:  # half of a surrogate pair, or an integer of more than 64 bits
        return json.dumps(event, default=_words)
    return line.decode() if line.isascii() else json.dumps(event, default=_words)


def _words(value: object) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else repr(value)

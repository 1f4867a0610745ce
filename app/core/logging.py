"""One logger for the package, through the standard library, so that the host application decides what is shown."""

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

NAME = "signalbox"
FIELDS = "signalbox"
"""Attribute of a log record that holds the event as a dictionary, for formatters that want more than a line."""

Event = Mapping[str, Any]
Render = Callable[[Event], str]

_host = logging.getLogger(NAME)
_BARE = re.compile(r"[\w.:/+@-]+", re.ASCII)
_IN_FRONT = frozenset({"timestamp", "level", "event"})


def is_shown(level: int) -> bool:
    """Return whether the host wants events of this level of `logging`."""
    return _host.isEnabledFor(level)


def json_line(event: Event) -> str:
    """Return JSON of ASCII characters, which every stream of a host can take."""
    try:
        line = orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z)
    except TypeError:  # half of a surrogate pair, or an integer of more than 64 bits
        return json.dumps(event, default=_words)
    return line.decode() if line.isascii() else json.dumps(event, default=_words)


def console_line(event: Event) -> str:
    """Return time (UTC), level and name of an event, then `field=value`; what is not one plain word is JSON of ASCII."""
    fields = (f"{name}={_word(value)}" for name, value in event.items() if name not in _IN_FRONT)
    return " ".join(
        (f"{event['timestamp']:%H:%M:%S}Z", f"{event['level']:<7}", _word(event["event"]), *fields)
    )


def write(level: int, event: dict[str, Any], render: Render = json_line) -> None:
    """Write an event, with its level and the time, as one line to the logger `signalbox`.

    Nothing is configured globally: without a logging set-up of the host, warnings and errors go to stderr. No caller
    is looked for, who is always this file.
    """
    event["level"] = logging.getLevelName(level).lower()
    event["timestamp"] = datetime.now(UTC)
    record = _host.makeRecord(NAME, level, __file__, 0, render(event), (), None)
    setattr(record, FIELDS, event)
    _host.handle(record)


def host_context() -> Event:
    """Return what the host application has bound in structlog's context variables; nothing where it has no structlog."""
    bound = sys.modules.get("structlog.contextvars")
    found: Event = bound.get_contextvars() if bound is not None else {}
    return found


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=_words)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _words(value: object) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else repr(value)

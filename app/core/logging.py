"""One logger for the package, through the standard library, so that the host application decides what is shown."""

import logging
from typing import Any

NAME = "signalbox"


def get_logger() -> Any:
    """Return a structlog logger that writes one line of JSON an event to the logger `signalbox`.

    Nothing is configured globally: without a logging set-up of the host, warnings and errors go to stderr.
    """
    import structlog  # noqa: PLC0415  # it loads rich, half as much again as all of ours; types alone need neither

    return structlog.wrap_logger(
        logging.getLogger(NAME),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    ).bind()  # made once: the lazy proxy would ask for its configuration at every event

"""One logger for the package, through the standard library, so that the host application decides what is shown."""

import logging
from typing import Any

import structlog

NAME = "signalbox"


def get_logger() -> Any:
    """Return a structlog logger that writes one line of JSON an event to the logger `signalbox`.

    Nothing is configured globally: without a logging set-up of the host, warnings and errors go to stderr.
    """
    return structlog.wrap_logger(
        logging.getLogger(NAME),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        cache_logger_on_first_use=True,
    )

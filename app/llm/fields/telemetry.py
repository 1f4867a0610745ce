"""The settings of telemetry: what log lines look like, and what spans may say."""

from enum import StrEnum

from app.llm.fields import Fields


class LogFormat(StrEnum):
    """`json`: one document a line, for machines; `console`: time, level, name and fields, for eyes."""

    JSON = "json"
    CONSOLE = "console"


class TelemetryFields(Fields):
    """What is told to logs and traces."""

    # -- telemetry
    log_format: LogFormat = LogFormat.JSON
    """How events are written to the logger `signalbox`: `json`, or `console` for reading. Its level is the host application's."""
    trace_content: bool = False
    """Whether spans may carry prompts and answers (redacted)."""

"""How events look in a host application's logs, and what of its own context they carry."""

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from app.core import logging as ours
from app.llm.telemetry import Telemetry
from tests.support.ledger import ROOT


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The stream of a host's handler, which formats as it likes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger(ours.NAME)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def bound() -> Iterator[None]:
    """What the host bound for a request of its own."""
    structlog.contextvars.bind_contextvars(request_id="r-17", user="Bearer abcdefghijkl", level="mine", a="b")
    yield
    structlog.contextvars.clear_contextvars()


def console(stream: io.StringIO, **fields: Any) -> str:
    Telemetry(render=ours.console_line).event("llm_x", level="warning", **fields)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("ollama:llama3.2", "ollama:llama3.2"),
        (1.5, "1.5"),
        (True, "true"),
        ("two words", '"two words"'),
        ("größe", '"gr\\u00f6\\u00dfe"'),
        ("\x1b[31m\n", '"\\u001b[31m\\n"'),
        ("", '""'),
    ],
)
def test_a_console_line_is_one_line_of_plain_characters(lines: io.StringIO, value: Any, shown: str):
    said = console(lines, value=value)
    assert re.fullmatch(r"\d\d:\d\d:\d\dZ warning llm_x value=.*\n", said)
    assert said.endswith(f" value={shown}\n")


@pytest.mark.usefixtures("bound")
def test_an_event_carries_what_the_host_bound_and_keeps_its_own_words(lines: io.StringIO):
    Telemetry().event("llm_x", level="warning", a="ours")
    told = json.loads(lines.getvalue())
    assert (told["request_id"], told["user"]) == ("r-17", "Bearer [redacted]")
    assert (told["event"], told["level"], told["a"]) == ("llm_x", "warning", "ours")


def test_nothing_that_the_host_bound_breaks_a_line_or_is_left_as_it_is(lines: io.StringIO):
    itself: dict[Any, Any] = {("a", "b"): ["Bearer abcdefghijkl"]}
    itself["self"] = itself
    with structlog.contextvars.bound_contextvars(nested=itself, tries=2, share=0.5, done=True, none=None):
        Telemetry().event("llm_x", level="warning")
    told = json.loads(lines.getvalue())
    assert told["nested"] == "{('a', 'b'): ['Bearer [redacted]'], 'self': {...}}"
    assert (told["tries"], told["share"], told["done"], told["none"]) == (2, 0.5, True, None)


def test_an_event_names_the_current_span(lines: io.StringIO):
    provider = TracerProvider()
    with provider.get_tracer("host").start_as_current_span("host") as span:
        Telemetry().event("llm_x")
    Telemetry().event("llm_x")
    provider.shutdown()
    inside, outside = map(json.loads, lines.getvalue().splitlines())
    here = span.get_span_context()
    assert (inside["trace_id"], inside["span_id"]) == (f"{here.trace_id:032x}", f"{here.span_id:016x}")
    assert "trace_id" not in outside


def test_filters_and_formatters_of_the_host_see_the_fields(lines: io.StringIO):
    """A filter of the logger, or a formatter such as python-json-logger's, gets at more than a line."""

    def tenant(record: logging.LogRecord) -> bool:
        record.tenant = "acme"
        return bool(record.signalbox["event"] != "llm_dull")  # type: ignore[attr-defined]  # ours

    logger = logging.getLogger(ours.NAME)
    (handler,) = [each for each in logger.handlers if getattr(each, "stream", None) is lines]
    handler.setFormatter(logging.Formatter("%(tenant)s %(message)s"))
    logger.addFilter(tenant)
    try:
        for name in ("llm_x", "llm_dull"):
            Telemetry().event(name)
    finally:
        logger.removeFilter(tenant)
    assert lines.getvalue().count("\n") == 1
    assert json.loads(lines.getvalue().removeprefix("acme "))["event"] == "llm_x"


@pytest.mark.usefixtures("bound")
def test_the_recipe_for_structlog_renders_events_as_the_host_s_own(lines: io.StringIO):
    recipe = re.findall(r"```python\n(.*?)```", (ROOT / "docs/TELEMETRY.md").read_text(), re.DOTALL)[-1]
    (handler,) = [
        each for each in logging.getLogger(ours.NAME).handlers if getattr(each, "stream", None) is lines
    ]
    exec(recipe, {"structlog": structlog, "handler": handler})  # noqa: S102  # our own page
    Telemetry().event("llm_x", level="warning", provider="ollama")
    told = json.loads(lines.getvalue())
    assert (told["event"], told["provider"], told["request_id"]) == ("llm_x", "ollama", "r-17")

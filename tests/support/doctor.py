"""Five providers on loopback, the settings that name them, and a clock that is wrong."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from app.core.clock import SystemClock
from app.diagnosis.doctor import examined
from app.diagnosis.findings import Finding, State
from app.llm.testing import StubAnthropic, StubGemini, StubOllama, StubOpenAI
from app.llm.testing.listener import Listener

KEY = "stub-key-0123456789"
CLOUD = ("gemini", "openai", "anthropic", "groq")
Stub = StubOllama | StubGemini | StubOpenAI | StubAnthropic


@dataclass(frozen=True)
class House:
    """The stubs by provider, and settings under which all of them work."""

    stubs: dict[str, Stub]
    given: dict[str, Any]

    async def look(self, **changes: Any) -> dict[str, Finding]:
        """Return the findings by subject, under settings that differ in `changes`."""
        return await looked({**self.given, **changes})


class SkewedClock(SystemClock):
    """A clock that is ahead of the time."""

    __slots__ = ("_ahead_s",)

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._ahead_s)


async def looked(given: dict[str, Any], **ports: Any) -> dict[str, Finding]:
    """Return the findings by subject; the disk has room."""
    said = {"limit_s": 20.0, "clock": SystemClock(), "free": lambda _: 2**40, **ports}
    findings = await examined(given, **said)
    assert len({each.subject for each in findings}) == len(findings)
    return {each.subject: each for each in findings}


def red(findings: dict[str, Finding]) -> list[str]:
    """Return the subjects that do not work."""
    return [name for name, each in findings.items() if each.state is State.FAULT]


@contextmanager
def house(url: str) -> Iterator[House]:
    """Yield five providers that have what the profiles list, and keys that they take."""
    made: dict[str, Stub] = {
        "ollama": StubOllama(models=("llama3.2",)),
        "gemini": StubGemini(models=("gemini-2.5-flash",), api_key=KEY),
        "openai": StubOpenAI(models=("gpt-4.1-mini",), api_key=KEY),
        "anthropic": StubAnthropic(models=("claude-haiku-4-5-20251001",), api_key=KEY),
        "groq": StubOpenAI(models=("openai/gpt-oss-20b",), api_key=KEY),
    }
    with ExitStack() as stack:
        for stub in made.values():
            stack.enter_context(stub)
        listed = ",".join(made)
        given: dict[str, Any] = {
            "database_url": url,
            **{f"profile_{name}": listed for name in ("fast", "balanced", "advanced")},
            **{f"{name}_api_base": stub.base_url for name, stub in made.items()},
            **{f"{name}_api_key": KEY for name in CLOUD},
        }
        yield House(made, given)


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[str]:
    """Yield the address of a server that says one thing to everybody."""

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, status=status, content_type="text/html")

    listener = Listener(handle, name="one-answer")
    listener.start()
    try:
        yield str(listener.address)
    finally:
        listener.close()

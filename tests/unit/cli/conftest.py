"""The command line in this process, with its exit code and both streams."""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
from typer.main import get_command

from app.bootstrap import build_llm_service
from app.cli import batching, calls, extraction, main, replaying
from app.llm.testing import StubGemini, StubOllama
from app.llm.testing.client import ScriptedClient


@dataclass(frozen=True)
class Outcome:
    """What a shell would see."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """The one line that a failure printed; nothing else was."""
        assert self.out == ""
        assert self.err.startswith("signalbox: ")
        assert self.err.count("\n") == 1, self.err
        return self.err


Run = Callable[..., Outcome]
built_once = cache(get_command)
"""To build all commands takes longer than most of them do; a shell does it once for each."""


class Terminal(io.TextIOWrapper):
    """A stream with somebody in front of it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def signalbox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr("app.cli.get_command", built_once)

    def run(*args: str, stdin: str | bytes = "", kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", kind(io.BytesIO(data)))
        code = main(args)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ScriptedClient:
    """The way to the providers that `chat`, `extract`, `batch` and `replay` use in this test."""
    scripted = ScriptedClient()
    for module in (batching, calls, extraction, replaying):
        monkeypatch.setattr(module, "build_llm_service", partial(build_llm_service, client=scripted))
    return scripted


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubOllama]:
    """The only candidate, behind a real socket."""
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "ollama")
    with StubOllama() as stub:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        yield stub


@pytest.fixture
def gemini(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubGemini]:
    """The only candidate, behind a real socket, with its key."""
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "gemini")
    monkeypatch.setenv("LLM_GEMINI_API_KEY", "stub-key")
    with StubGemini() as stub:
        monkeypatch.setenv("LLM_GEMINI_API_BASE", stub.base_url)
        yield stub


@pytest.fixture
def on_each_database(db_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the test on SQLite, then on PostgreSQL."""
    monkeypatch.setenv("LLM_DATABASE_URL", db_url)
    return db_url

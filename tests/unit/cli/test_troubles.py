"""The situations that people meet first: each prints one line that says what to do."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from app.bootstrap import build_llm_service
from app.cli.faults import told
from app.llm.errors import LLMWorkspaceMissing
from app.llm.messages import Message
from app.llm.settings import load_settings
from app.llm.testing import StubGemini, StubOllama
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMCallContext, LLMRequest
from tests.unit.cli.conftest import Run

HELLO = LLMRequest(messages=(Message.user("Hello"),))


def test_ollama_is_not_running(signalbox: Run, ollama: StubOllama) -> None:
    ollama.down()
    done = signalbox("chat", "Hello")
    assert done.code == 1
    assert f"does not answer at {ollama.base_url}" in done.told
    assert "ollama serve" in done.told


def test_the_model_is_not_pulled(signalbox: Run, ollama: StubOllama) -> None:
    done = signalbox("chat", "Hello", "--model", "ollama:qwen3")
    assert done.code == 1
    assert "ollama pull qwen3" in done.told


def test_the_gemini_key_is_wrong(signalbox: Run, gemini: StubGemini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GEMINI_API_KEY", "wrong-key-0123456789")
    done = signalbox("chat", "Hello")
    assert done.code == 1
    assert "LLM_GEMINI_API_KEY" in done.told
    assert "wrong-key" not in done.told


def test_the_database_is_locked(
    signalbox: Run, client: ScriptedClient, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("LLM_LEDGER_TIMEOUT_S", "0.05")
    with sqlite3.connect(sqlite_url.partition(":///")[2], isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        done = signalbox("chat", "Hello")
        assert signalbox("runs", "list").code == 0  # readers need no lock
    writer.close()
    assert done.code == 1
    assert "was not to be had within 0.05 s" in done.told
    assert client.sends == 0


async def test_the_key_is_in_progress(signalbox: Run, client: ScriptedClient) -> None:
    other = ScriptedClient(gate=asyncio.Event())
    request = HELLO.model_copy(update={"idempotency_key": "k"})
    async with build_llm_service(load_settings(), client=other) as service:
        call = asyncio.create_task(service.chat(request, context=LLMCallContext(workspace_id="local")))
        async with asyncio.timeout(10):
            while not other.sends:  # noqa: ASYNC110  # the client has no event for it
                await asyncio.sleep(0)
        done = await asyncio.to_thread(signalbox, "chat", "Hello", "--key", "k")
        assert other.gate
        other.gate.set()
        run_id = (await call).run_id
    assert done.code == 1
    assert f"run {run_id} holds this key" in done.told
    assert "LLM_ON_IN_PROGRESS=wait" in done.told
    assert client.sends == 0


async def test_the_workspace_is_missing() -> None:
    async with build_llm_service(load_settings(persist_runs=False), client=ScriptedClient()) as service:
        with pytest.raises(LLMWorkspaceMissing) as caught:
            await service.chat(HELLO)
    line, code = told(caught.value)
    assert code == 1
    assert "LLM_DEFAULT_WORKSPACE" in line
    assert "\n" not in line


def test_no_candidate_is_left(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "gemini")
    done = signalbox("chat", "Hello")
    assert done.code == 1
    assert "gemini:gemini-2.5-flash: no credentials (set LLM_GEMINI_API_KEY)" in done.told


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LLM_MAX_ATTEMPTS", "many", "LLM_MAX_ATTEMPTS='many': Input should be a valid integer"),
        ("LLM_DATABASE_URL", "nonsense", "not a database URL; sqlite+aiosqlite:///signalbox.db would be one"),
        (
            "LLM_DATABASE_URL",
            "mysql://u:secret@h/d",
            "write sqlite+aiosqlite:///FILE or postgresql+asyncpg://",
        ),
        ("LLM_PROFILE_FAST", "acme", "LLM_PROFILE_FAST='acme': 'acme' is not `provider:model`"),
    ],
)
def test_a_wrong_setting_is_named_and_exits_2(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    done = signalbox("chat", "Hello")
    assert done.code == 2
    assert said in done.told
    assert "secret" not in done.told


@pytest.mark.parametrize("command", [("chat", "Hello"), ("migrate",)])
@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("sqlite+aiosqlite:///a-file/signalbox.db", "a-file"),
        ("sqlite+aiosqlite:///a-folder", "Is a directory"),
        ("sqlite+aiosqlite:///a-file", "file is not a database"),
        ("postgresql+asyncpg://u:secret@127.0.0.1:1/d", "Connect call failed"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], database: str, said: str
) -> None:
    Path("a-file").write_text("no database " * 100)
    Path("a-folder").mkdir()
    monkeypatch.setenv("LLM_DATABASE_URL", database)
    done = signalbox(*command)
    assert done.code == 1
    assert said in done.told
    assert "LLM_DATABASE_URL" in done.told
    assert "secret" not in done.told

import json
from collections.abc import Iterator

import pytest

from app.llm.testing import StubOllama
from tests.support.doctor import KEY, House, house
from tests.unit.cli.conftest import Run


@pytest.fixture
def at_home(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with house(sqlite_url) as made:
        for name, value in made.given.items():
            monkeypatch.setenv(f"LLM_{name.upper()}", value)
        yield made


def rows(out: str) -> dict[str, str]:
    return {line.split()[0]: line for line in out.splitlines() if line.strip()}


def test_candidates_and_what_the_providers_have_are_listed(signalbox: Run, at_home: House) -> None:
    done = signalbox("models")
    said = rows(done.out)
    assert (done.code, done.err) == (0, "")
    assert said["ollama:llama3.2"].split()[1:3] == ["yes", "8,192"]
    assert "tools, JSON, schema, images" in said["ollama:llama3.2"]
    assert said["anthropic:claude-haiku-4-5"].split()[1] == "yes"
    assert said["anthropic"].split()[1] == "claude-haiku-4-5-20251001"
    assert said["ollama"].split()[1:] == ["llama3.2:latest", "1.9", "GiB"]
    assert said["gemini"].split()[1:] == ["gemini-2.5-flash", "1,048,576"]
    assert [stub.sends for stub in at_home.stubs.values()] == [0] * 5


def test_who_cannot_be_asked_is_told_and_the_others_are_listed(
    signalbox: Run, at_home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home.stubs["ollama"].down()
    monkeypatch.delenv("LLM_GROQ_API_KEY")
    done = signalbox("models")
    assert done.code == 0
    assert "ollama: " in done.err
    assert "groq: no key" in done.err
    said = rows(done.out)
    assert said["ollama:llama3.2"].split()[1] == "unknown"
    assert said["openai:gpt-4.1-mini"].split()[1] == "yes"


def test_the_document_has_caps_and_stocks(
    signalbox: Run, at_home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_OPENAI_MODEL", "not-there")
    done = signalbox("models", "--json")
    document = json.loads(done.out)
    candidates = {each["name"]: each for each in document["candidates"]}
    assert candidates["openai:not-there"]["there"] is False
    assert candidates["ollama:llama3.2"]["caps"]["supports_tools"] is True
    assert candidates["ollama:llama3.2"]["profiles"] == ["fast", "balanced", "advanced"]
    stocks = {each["provider"]: each for each in document["providers"]}
    assert [each["name"] for each in stocks["openai"]["models"]] == ["gpt-4.1-mini"]
    assert stocks["openai"]["unknown"] is None
    assert KEY not in done.out


def test_who_says_nothing_is_told_after_the_time(signalbox: Run, at_home: House) -> None:
    stub = at_home.stubs["ollama"]
    assert isinstance(stub, StubOllama)
    gate = stub.hang_show()
    done = signalbox("models", "--timeout", "1")
    gate.release()
    assert (done.code, "has not answered within 1 s" in done.err) == (0, True)
    assert rows(done.out)["groq:openai/gpt-oss-20b"].split()[1] == "yes"
    assert signalbox("models", "--timeout", "nan").code == 2


def test_with_local_only_nobody_outside_is_asked(
    signalbox: Run, at_home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    monkeypatch.setenv("LLM_LOCAL_HOSTS", "gpu.house")
    done = signalbox("models")
    assert done.code == 0
    assert done.err.count("not asked: LLM_LOCAL_ONLY") == 5
    assert [stub.requests for stub in at_home.stubs.values()] == [()] * 5


def test_what_ollama_says_of_a_model_counts(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubOllama(models=("a",), capabilities=("completion",), context_length=2048) as stub:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        for profile in ("FAST", "BALANCED", "ADVANCED"):
            monkeypatch.setenv(f"LLM_PROFILE_{profile}", "ollama:a")
        [only] = json.loads(signalbox("models", "--json").out)["candidates"]
    assert (only["caps"]["supports_tools"], only["caps"]["max_context_tokens"]) == (False, 2048)

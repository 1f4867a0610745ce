"""`pull` and `warmup`, against an Ollama that says what the real one says."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from aiohttp import web

from app.llm.errors import LLMTimeout
from app.llm.settings import isolated_settings
from app.llm.testing import StubOllama
from app.llm.testing.content import End
from app.llm.testing.listener import Listener
from app.llm.testing.pulling import pull_lines
from app.llm.wire.pulling import load, pull
from tests.support import programs
from tests.support.doctor import answering
from tests.support.terminals import on_terminal
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_process import environment

MANIFEST = {"status": "pulling manifest"}


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubOllama]:
    """An Ollama that has one model and can fetch another."""
    with StubOllama(models=("llama3.2",), library=("qwen3:8b",)) as stub:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        yield stub


def has(stub: StubOllama, signalbox: Run, model: str) -> bool:
    listed = json.loads(signalbox("models", "--json").out)["providers"]
    return any(each["name"] == model for stock in listed for each in stock["models"])


def test_a_model_is_fetched_and_lines_say_how_far_it_is(signalbox: Run, shelf: StubOllama) -> None:
    assert not has(shelf, signalbox, "qwen3:8b")
    done = signalbox("pull", "qwen3:8b")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "pulling manifest"
    assert "50% of 1.9 GiB" in lines
    assert "verifying sha256 digest" in lines
    assert lines[-1].startswith("ollama:qwen3:8b is there, 1.9 GiB, after ")
    assert len(lines) == len(set(lines)), "each step once"
    assert has(shelf, signalbox, "qwen3:8b")


def test_it_may_be_named_as_a_candidate_and_the_document_is_one(signalbox: Run, shelf: StubOllama) -> None:
    done = signalbox("pull", "ollama:qwen3:8b", "--json")
    document = json.loads(done.out)
    assert (document["model"], document["bytes"]) == ("qwen3:8b", 2_019_378_805)
    [asked] = [each for each in shelf.requests if each.path == "/api/pull"]
    assert asked.body == {"model": "qwen3:8b"}


@pytest.mark.parametrize(
    ("model", "said"),
    [("nobody-has-it", "there is no model nobody-has-it to pull"), ("no name", "invalid model name")],
)
def test_a_model_that_is_unknown_is_one_line(
    signalbox: Run, shelf: StubOllama, model: str, said: str
) -> None:
    done = signalbox("pull", model)
    assert (done.code, said in done.err, done.err.count("\n")) == (1, True, 1)


def test_a_last_line_without_an_end_counts(signalbox: Run, shelf: StubOllama) -> None:
    shelf.script_pull(MANIFEST, b'{"status": "success"}')
    assert signalbox("pull", "qwen3:8b").code == 0


def test_an_error_in_the_middle_is_told(signalbox: Run, shelf: StubOllama) -> None:
    shelf.script_pull(MANIFEST, pull_lines()[1], {"error": "max retries exceeded: no space left on device"})
    done = signalbox("pull", "qwen3:8b")
    assert (done.code, "no space left on device" in done.err) == (1, True)
    assert not has(shelf, signalbox, "qwen3:8b")


@pytest.mark.parametrize(("end", "said"), [(End.BROKEN, "was lost"), (End.UNFINISHED, "broke off before")])
def test_a_connection_that_is_lost_is_told_and_goes_on_later(
    signalbox: Run, shelf: StubOllama, end: End, said: str
) -> None:
    shelf.script_pull(*pull_lines()[:3], end=end)
    done = signalbox("pull", "qwen3:8b")
    assert (done.code, said in done.err) == (1, True)
    assert "the same command goes on from there" in done.err
    assert signalbox("pull", "qwen3:8b").code == 0


def test_what_is_no_line_of_a_pull_is_told(signalbox: Run, shelf: StubOllama) -> None:
    shelf.script_pull(MANIFEST, b"<html>\n")
    done = signalbox("pull", "qwen3:8b")
    assert (done.code, "not as Ollama does" in done.err) == (1, True)


def test_no_ollama_is_one_line_with_its_remedy(signalbox: Run, shelf: StubOllama) -> None:
    shelf.down()
    for args in (["pull", "qwen3:8b"], ["warmup", "llama3.2"]):
        done = signalbox(*args)
        assert (done.code, "ollama serve" in done.err) == (1, True)


def test_a_proxy_that_wants_its_token_is_told(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubOllama(api_key="t-0123456789", library=("a",)) as stub:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        refused = [signalbox(*args) for args in (["pull", "a"], ["warmup", "a"])]
        monkeypatch.setenv("LLM_OLLAMA_API_KEY", "t-0123456789")
        assert signalbox("pull", "a").code == 0
    assert [done.code for done in refused] == [1, 1]
    assert all("LLM_OLLAMA_API_KEY" in done.err for done in refused)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"<html>", "status 503"), (b'{"error": "no memory"}', "no memory"), (b"[1]", "status 503")],
)
def test_what_ollama_says_instead_is_told(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, body: bytes, said: str
) -> None:
    with answering(body, 503) as address:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", address)
        for args in (["pull", "a"], ["warmup", "a"]):
            done = signalbox(*args)
            assert (done.code, said in done.err) == (1, True)


async def test_a_model_that_takes_too_long_is_told() -> None:
    silent = asyncio.Event()

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        await silent.wait()
        return web.Response()

    listener = Listener(handle, name="silent")
    listener.start()
    settings = isolated_settings(ollama_api_base=str(listener.address))
    try:
        with pytest.raises(LLMTimeout, match=r"has not loaded a within 0\.3 s"):
            await load(settings, "a", keep_alive=None, timeout_s=0.3)
    finally:
        listener.close()


def test_local_only_asks_no_ollama_elsewhere(
    signalbox: Run, shelf: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    monkeypatch.setenv("LLM_LOCAL_HOSTS", "gpu.house")
    for args in (["pull", "qwen3:8b"], ["warmup", "llama3.2"]):
        done = signalbox(*args)
        assert (done.code, "LLM_LOCAL_ONLY=true" in done.err) == (2, True)
    assert shelf.requests == ()


async def test_silence_ends_it(shelf: StubOllama) -> None:
    gate = shelf.gate()
    shelf.script_pull(MANIFEST, gate, {"status": "success"})
    heard: list[str] = []
    settings = isolated_settings(ollama_api_base=shelf.base_url)
    with pytest.raises(LLMTimeout, match=r"has said nothing of qwen3:8b for 0\.3 s"):
        await pull(settings, "qwen3:8b", lambda progress: heard.append(progress.status), idle_s=0.3)
    gate.release()
    assert heard == ["pulling manifest"]


def test_ctrl_c_stops_it_and_says_that_it_goes_on(shelf: StubOllama) -> None:
    gate = shelf.gate()
    shelf.script_pull(MANIFEST, gate)
    child = programs.Program(
        [sys.executable, "-m", "app", "pull", "qwen3:8b"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"pulling manifest\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    gate.release()
    assert child.returncode == 130
    assert err == b"stopped; what has come so far is kept: the same command goes on from there\n"


def test_on_a_terminal_it_is_a_bar(shelf: StubOllama) -> None:
    code, said = on_terminal("pull", "qwen3:8b")
    assert code == 0
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in said
    assert "50% of" not in said
    assert "ollama:qwen3:8b is there" in said


# -- warmup


def test_litellm_and_the_first_local_model_are_loaded(signalbox: Run, shelf: StubOllama) -> None:
    done = signalbox("warmup")
    first, second = done.out.splitlines()
    assert done.code == 0
    assert first.startswith("LiteLLM 1.105.3 loaded in ")
    assert first.endswith(" s, lane dialect")
    assert second.startswith("ollama:llama3.2 loaded in ")
    [asked] = shelf.requests
    assert (asked.path, asked.body) == (
        "/api/generate",
        {"model": "llama3.2", "stream": False, "options": {"num_ctx": 8192}},
    )


@pytest.mark.parametrize(("said", "sent"), [("-1", -1), ("30m", "30m"), ("600", 600)])
def test_how_long_it_stays_is_said_as_ollama_takes_it(
    signalbox: Run, shelf: StubOllama, said: str, sent: object
) -> None:
    """Ollama refuses a number that is written as a text."""
    done = signalbox("warmup", "ollama:llama3.2", "--keep-alive", said, "--json")
    document = json.loads(done.out)
    assert (done.code, document["model"]["keep_alive"], document["litellm"]["version"]) == (
        0,
        said,
        "1.105.3",
    )
    assert shelf.requests[-1].body["keep_alive"] == sent


def test_the_setting_says_how_long_it_stays(
    signalbox: Run, shelf: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_OLLAMA_KEEP_ALIVE", "-1")
    monkeypatch.setenv("LLM_OLLAMA_NUM_CTX", "4096")
    assert "stays for -1" in signalbox("warmup", "llama3.2").out
    assert shelf.requests[-1].body["keep_alive"] == -1
    assert shelf.requests[-1].body["options"] == {"num_ctx": 4096}


def test_a_model_that_is_not_pulled_is_told(signalbox: Run, shelf: StubOllama) -> None:
    done = signalbox("warmup", "qwen3:8b")
    assert (done.code, "signalbox pull qwen3:8b" in done.err) == (1, True)


def test_a_profile_without_a_local_model_is_told(
    signalbox: Run, shelf: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PROFILE_FAST", "gemini")
    done = signalbox("warmup", "--profile", "fast")
    assert (done.code, "profile fast lists no local model" in done.told) == (1, True)

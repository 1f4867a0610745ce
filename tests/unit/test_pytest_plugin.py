"""The plugin of pytest as a user's suite meets it: recorded once over real sockets, replayed with nobody there."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.llm.cassettes.tapes import read
from app.llm.testing import Reply, StubOllama
from app.llm.wire.loading import load_litellm

pytest_plugins = ["pytester"]

ASK = """
import asyncio
import pytest
from app.bootstrap import build_llm_service
from app.llm import LLMRequest, Message, load_settings
from app.llm.settings import isolated_settings

def ask(text, settings=None, **fields):
    async def run():
        async with build_llm_service(settings or load_settings(default_workspace="w1")) as llm:
            return await llm.chat(LLMRequest(messages=(Message.user(text),), model="ollama:llama3.2", **fields))
    return asyncio.run(run())
"""
SUITE = (
    ASK
    + """
@pytest.mark.signalbox_cassette
def test_plain(signalbox_cassette):
    assert ask("plain").text == "one"
    assert signalbox_cassette.name == "test_plain.jsonl"

@pytest.mark.signalbox_cassette("by/name")
def test_named():
    assert ask("named").text == "two"

class TestClass:
    @pytest.mark.signalbox_cassette
    @pytest.mark.parametrize("what", ["a/b", "a-b"])
    def test_each(self, what):
        assert ask(what).text == f"said {what}"

@pytest.mark.signalbox_cassette
def test_own_settings_and_keys_over_two_services():
    settings = isolated_settings(default_workspace="w1", ollama_api_base=BASE, persist_runs=False)
    assert [ask("again", settings).text for _ in range(2)] == ["three", "four"]
    assert [ask("kept", idempotency_key="k").text for _ in range(2)] == ["five", "five"]

def test_unmarked(signalbox_cassette):
    assert signalbox_cassette is None
"""
)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """A session within a test forgets what it loaded, and LiteLLM's libraries change the process when they load."""
    load_litellm()
    importlib.import_module("app.llm.wire.lanes")
    importlib.import_module("app.llm.persistence.autonomous")


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """A user's folder, recorded; its provider is gone by now."""
    monkeypatch.delenv("CI", raising=False)
    with StubOllama() as stub:
        stub.script(
            *(Reply.text(text) for text in ("one", "two", "said a/b", "said a-b", "three", "four", "five"))
        )
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        pytester.makepyfile(test_suite=SUITE.replace("BASE", repr(stub.base_url)))
        run(pytester, "--signalbox-mode=record").assert_outcomes(passed=6)
        assert stub.sends == 7
        yield pytester
        assert stub.sends == 7, "nobody was asked again"


QUICK = [
    part for name in ("cacheprovider", "asyncio", "cov", "hypothesispytest") for part in ("-p", f"no:{name}")
]


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*QUICK, *options)


def cassettes(pytester: pytest.Pytester) -> dict[str, str]:
    folder = pytester.path / "cassettes"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_marked_tests_are_recorded_into_a_file_each(suite: pytest.Pytester):
    names = sorted(cassettes(suite))
    hashed = names.pop(1)
    assert names == [
        "by/name.jsonl",
        "test_suite/TestClass.test_each[a-b].jsonl",
        "test_suite/test_own_settings_and_keys_over_two_services.jsonl",
        "test_suite/test_plain.jsonl",
    ]
    assert re.fullmatch(r"test_suite/TestClass\.test_each\[a-b\]-[0-9a-f]{8}\.jsonl", hashed)
    assert len(read(suite.path / "cassettes" / names[2])) == 3
    left = {path.name for path in suite.path.iterdir()} - {"__pycache__"}
    assert left == {"cassettes", "test_suite.py"}, "no ledger stays"


def test_marked_tests_are_replayed_by_default(suite: pytest.Pytester):
    before = cassettes(suite)
    run(suite).assert_outcomes(passed=6)
    suite.runpytest_subprocess(*QUICK, "-n", "1").assert_outcomes(passed=6)
    assert cassettes(suite) == before


def test_a_changed_prompt_fails_and_shows_where(suite: pytest.Pytester):
    file = suite.path / "test_suite.py"
    file.write_text(file.read_text().replace('ask("named")', 'ask("renamed")'))
    done = run(suite, "-k", "test_named")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["*LLMCassetteMiss*line 1, differs first at $.request.messages[[]0].content[[]0].text*"]
    )


def test_two_tests_may_replay_one_file_but_not_record_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    pytester.makepyfile(
        ASK
        + """
pytestmark = pytest.mark.signalbox_cassette("shared")

def test_first():
    assert ask("Hello").text == "Hi."

def test_second():
    assert ask("Hello").text == "Hi."
"""
    )
    monkeypatch.delenv("CI", raising=False)
    with StubOllama() as stub:
        stub.script(Reply.text("Hi."))
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        done = run(pytester, "--signalbox-mode=record")
        done.assert_outcomes(passed=1, errors=1)
        done.stdout.fnmatch_lines(["*shared.jsonl is recorded by *::test_first: *"])
        assert stub.sends == 1
    run(pytester).assert_outcomes(passed=2)


def test_two_workers_do_not_record_one_file_either(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    pytester.makepyfile(
        """
import pytest
pytestmark = pytest.mark.signalbox_cassette("shared")

def test_first(): pass

def test_second(): pass
"""
    )
    monkeypatch.delenv("CI", raising=False)
    done = pytester.runpytest_subprocess(*QUICK, "-n", "2", "--signalbox-mode=record")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*shared.jsonl is recorded by *::test_first: *"])


def test_ci_never_records(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    before = cassettes(suite)
    monkeypatch.setenv("CI", "true")
    done = run(suite, "--signalbox-mode=record")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--signalbox-mode=record: CI replays what was recorded*"])
    run(suite).assert_outcomes(passed=6)
    assert cassettes(suite) == before


def test_live_asks_and_leaves_the_cassettes_alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    pytester.makepyfile(
        ASK
        + """
@pytest.mark.signalbox_cassette
def test_it():
    assert ask("it").served_from == "live"
"""
    )
    with StubOllama() as stub:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        run(pytester, "--signalbox-mode=live").assert_outcomes(passed=1)
        assert stub.sends == 1
    assert not (pytester.path / "cassettes").exists()


def test_a_child_process_of_a_test_is_answered_too(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    pytester.makepyfile(
        ASK
        + """
import os, subprocess, sys

@pytest.mark.signalbox_cassette
def test_it():
    if os.environ["LLM_MODE"] == "record":
        assert ask("Hello").text == "From here."
        return
    chat = [sys.executable, "-m", "app", "chat", "Hello", "--model", "ollama:llama3.2"]
    assert subprocess.run(chat, capture_output=True, text=True, check=True).stdout == "From here.\\n"
"""
    )
    monkeypatch.delenv("CI", raising=False)
    with StubOllama() as stub:
        stub.script(Reply.text("From here."))
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        run(pytester, "--signalbox-mode=record").assert_outcomes(passed=1)
    run(pytester).assert_outcomes(passed=1)
    assert stub.sends == 1


def test_the_plugin_loads_nothing_of_the_package_and_its_marker_is_known(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
import json, sys
import pytest

def test_it():
    loaded = [name for name in sys.modules if name.partition(".")[0] in {"app", "pydantic", "litellm"}]
    print(json.dumps(sorted(loaded)))

@pytest.mark.signalbox_cassette
def test_marked():
    pass
"""
    )
    words = ["-m", "pytest", "-sq", "--strict-markers", *QUICK]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[0]) == ["app", "app.pytest_plugin"]
    helped = run(pytester, "--markers").stdout.str()
    assert "@pytest.mark.signalbox_cassette(name=None): answer calls to language models" in helped


def test_pytest_is_no_dependency_of_the_package():
    from importlib.metadata import requires

    assert [each for each in requires("signalbox") or () if each.startswith("pytest")] == []


def test_a_file_keeps_apart_what_names_cannot():
    from app.pytest_plugin import _safe

    assert _safe("test_a[1/x]") != _safe("test_a[1-x]") == "test_a[1-x]"
    assert _safe("TestA.test_b") == "TestA.test_b"
    assert len(_safe("t" * 500)) < 140
    assert Path(_safe("../../etc")).name == _safe("../../etc")

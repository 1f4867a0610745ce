"""The examples run as a new user runs them, and every block of docs/EXAMPLES.md does what it says."""

import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing import Reply, StubOllama, Thought
from tests.support import programs
from tests.support.ledger import ROOT

EXAMPLES = ROOT / "examples"
DOCUMENT = ROOT / "docs" / "EXAMPLES.md"
INVOICE = '{"vendor":"Nordlys Rail AS","total":1480.5,"currency":"EUR","due":"2026-12-15"}'


def start(*words: str, by: Callable[..., Any] = programs.run, **variables: str) -> str:
    """Run a program in the working directory, without a provider unless one is named; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = by(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=55
    )
    assert done.returncode == 0, done.stderr + done.stdout
    named = "LLM_OLLAMA_API_BASE" in variables
    assert done.stderr == ("" if named else "LLM_OLLAMA_API_BASE is not set: a stub on loopback answers.\n")
    return done.stdout


def example(name: str, *options: str, **how: Any) -> list[str]:
    return start(str(EXAMPLES / f"{name}.py"), *options, **how).splitlines()


def in_this_process(name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run an example here, where what takes long is loaded already."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    monkeypatch.setattr(logging.getLogger("signalbox"), "handlers", [])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_structured_extraction_pays_once() -> None:
    """The first time as a new user starts it: with nothing loaded."""
    first = example("structured_extraction", by=subprocess.run)
    again = example("structured_extraction")
    assert first[0] == again[0] == INVOICE
    assert first[1].startswith("served from: live, run ")
    assert again[1] == first[1].replace("live", "replay")


def test_an_agent_with_tools_asks_the_provider_that_is_named() -> None:
    with StubOllama() as stub:
        told = example("agent_with_tools", LLM_OLLAMA_API_BASE=stub.base_url)
        assert stub.sends == 2
    assert told[0] == "tool: exchange_rate('EUR')"
    assert "11.62 NOK" in told[1]
    assert [line.split(",")[0] for line in told[2:]] == ["request 1: live", "request 2: live"]


DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.pg)]


@pytest.mark.parametrize("database", DATABASES)
def test_a_pipeline_pays_again_only_for_what_its_own_transaction_forgot(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    database: str,
) -> None:
    """Both modes in one folder; the very first in a process of its own, the others in this one, which is faster."""
    if database == "postgres":
        monkeypatch.setenv("LLM_DATABASE_URL", request.getfixturevalue("pg_empty_url"))
        monkeypatch.setenv("LLM_AUTO_MIGRATE", "true")
    for mode, again in (("autonomous", "replay"), ("joined", "live")):
        options = ["--joined"] if mode == "joined" else []
        if (mode, database) == ("autonomous", "sqlite"):
            told = example("pipeline", *options)
        else:
            in_this_process("pipeline", monkeypatch, *options)
            told = capfd.readouterr().out.splitlines()
        served = [line.split()[1].rstrip(",") for line in told if line.startswith("  ")]
        assert served == ["live"] * 3 + [again] * 3
        assert [line for line in told if not line.startswith("  ")] == [
            f"first try, {mode}:",
            "rolled back",
            f"second try, {mode}:",
            "committed",
        ]


@pytest.mark.parametrize("database", DATABASES)
def test_a_durable_agent_dies_and_sends_its_invoice_once(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    database: str,
) -> None:
    if database == "postgres":
        monkeypatch.setenv("LLM_DATABASE_URL", request.getfixturevalue("pg_empty_url"))
        monkeypatch.setenv("LLM_AUTO_MIGRATE", "true")
    program = [sys.executable, str(EXAMPLES / "durable_agent.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    died = programs.run(program, env=environment, capture_output=True, text=True, check=False, timeout=55)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert died.stdout == "the invoice is sent; killed before the next request\n"
    second = example("durable_agent")
    in_this_process("durable_agent", monkeypatch)
    third = capfd.readouterr().out.splitlines()
    assert Path("invoices.txt").read_text() == "to Nordlys Rail\n"
    assert re.fullmatch(r"request 1: replay, \d+ tokens paid before", second[0])
    assert re.fullmatch(r"request 2: live, \d+ tokens paid now", second[1])
    assert second[2] == "send_invoice: replayed, invoices.txt has 1 invoice"
    assert second[3].endswith("The result of send_invoice was: sent to Nordlys Rail")
    live = second[1].replace("live", "replay").replace("now", "before")
    assert third == [second[0], live, *second[2:]]
    Path("invoices.txt").unlink()
    in_this_process("durable_agent", monkeypatch)
    assert "send_invoice: replayed, invoices.txt has no invoice" in capfd.readouterr().out


def test_a_stream_comes_to_the_terminal_with_its_thoughts_apart() -> None:
    with StubOllama() as stub:
        stub.script(Reply.stream(Thought("hm, "), Thought("boxes"), "It sets ", "points.", usage=(9, 4)))
        told = example("stream_to_terminal", "What", "is", "it?", LLM_OLLAMA_API_BASE=stub.base_url)
        (asked,) = [each.body for each in stub.requests if each.ordinal]
    assert asked["messages"][-1]["content"] == "What is it?"
    assert told[:2] == ["(thinks: hm, boxes)", "It sets points."]
    assert told[3] == "live, 9 + 4 tokens, 0.0000 USD"
    assert told[4].startswith("ollama:llama3.2: kept, ")


def test_ctrl_c_ends_a_stream_cleanly() -> None:
    with StubOllama() as stub:
        stub.script(Reply.stream("It sets ", stub.gate(), "points."))
        child = programs.Program(
            [sys.executable, str(EXAMPLES / "stream_to_terminal.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "LLM_OLLAMA_API_BASE": stub.base_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.read(8) == "It sets "
        child.send_signal(signal.SIGINT)
        said, complaints = child.communicate(timeout=30)
        stub.wait_for_abandoned(1)
    assert child.returncode == 130
    assert "Traceback" not in complaints
    assert said.splitlines()[-1].startswith("stopped; the ledger keeps what had arrived")
    listed = start("-m", "app", "runs", "list", "--json", LLM_OLLAMA_API_BASE="http://127.0.0.1:9")
    assert [run["status"] for run in json.loads(listed)] == ["CANCELLED"]


def fails(name: str, *, closed: Callable[[], None] = lambda: None, **variables: str) -> str:
    """Return the one line that an example ends with; its output is closed once it has begun, which `closed` is told."""
    with programs.Program(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(1)
        child.stdout.close()
        closed()
        (line,) = child.stderr.read().splitlines()
    assert child.returncode == 1
    return line


def test_an_example_without_its_provider_says_so_in_one_line() -> None:
    line = fails("stream_to_terminal", LLM_OLLAMA_API_BASE="http://127.0.0.1:9")
    assert line.startswith("ollama:llama3.2 does not answer at http://127.0.0.1:9: start it with")


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("structured_extraction", {}, "ollama:llama3.2 does not answer at http://127.0.0.1:9"),
        ("pipeline", {"LLM_DATABASE_URL": "nonsense"}, r"LLM_DATABASE_URL=\*+: not a database URL"),
        pytest.param("pipeline", {"LLM_DATABASE_URL": ""}, "signalbox migrate", marks=pytest.mark.pg),
    ],
    ids=["provider", "setting", "tables"],
)
def test_what_an_example_lacks_is_one_line_and_no_traceback(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    wrong: dict[str, str],
    told: str,
) -> None:
    """In this process: the text that it ends with is what Python writes to stderr before exit code 1."""
    monkeypatch.setenv("LLM_OLLAMA_API_BASE", "http://127.0.0.1:9")
    for variable, value in wrong.items():
        monkeypatch.setenv(variable, value or request.getfixturevalue("pg_empty_url"))
    with pytest.raises(SystemExit, match=told) as ended:
        in_this_process(name, monkeypatch)
    assert "\n" not in str(ended.value)
    assert capfd.readouterr().err == ""


def test_a_stream_whose_output_is_closed_says_so_in_one_line() -> None:
    with StubOllama() as stub:
        gate = stub.gate()
        stub.script(Reply.stream("It ", gate, "sets ", "points."))
        line = fails("stream_to_terminal", closed=gate.release, LLM_OLLAMA_API_BASE=stub.base_url)
    assert line == "stopped: nobody reads the output any more"


def test_the_tests_of_an_own_agent_pass() -> None:
    done = start(
        *("-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:asyncio"),
        *("--rootdir", str(EXAMPLES)),
        str(EXAMPLES / "test_own_agent.py"),
        LLM_OLLAMA_API_BASE="",
    )
    assert re.search(r"^5 passed", done, re.MULTILINE)


def test_every_example_is_run_here_and_named_in_its_document() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        *("provider", "structured_extraction", "agent_with_tools", "durable_agent", "stream_to_terminal"),
        *("pipeline", "test_own_agent"),
    }
    section = DOCUMENT.read_text()
    assert [name for name in sorted(names - {"provider"}) if f"examples/{name}.py" not in section] == []
    commands = re.findall(r"(?:`|\$ )(\S*\b(?:python|pytest|signalbox)) ", section)
    assert {"python", "pytest", "signalbox"} == {each.removeprefix(".venv/bin/") for each in commands}
    assert [each for each in commands if not each.startswith(".venv/bin/")] == [], (
        "as `make install` leaves them"
    )


# -- the blocks of the document


def block(heading: str) -> str:
    section = DOCUMENT.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def run(heading: str) -> Mapping[str, object]:
    """Run a block as a program, in this process, which has loaded what takes long; return its names."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block(heading), f"EXAMPLES: {heading}", "exec"), names)  # noqa: S102  # our own text
    return names


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubOllama]:
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "ollama")
    with StubOllama() as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.base_url)
        yield server


def test_the_block_of_structured_extraction(stub: StubOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run("Structured extraction")
    run("Structured extraction")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == printed[1]
    assert printed[0].startswith(
        "vendor='Nordlys Rail AS' total=1480.5 currency='EUR' due=datetime.date(2026"
    )
    assert stub.sends == 1


def test_the_block_of_an_agent_with_tools(stub: StubOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run("An agent with tools")
    assert "11.62 NOK" in capsys.readouterr().out
    assert stub.sends == 2


def test_the_block_of_a_durable_agent(stub: StubOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run("A durable agent")
    run("A durable agent")
    sent, first, again = capsys.readouterr().out.splitlines()
    assert sent == "sending"
    assert "sent to Nordlys Rail" in first
    assert first.rpartition(" ")[0] == again.rpartition(" ")[0]
    assert again.endswith(" 0")
    assert stub.sends == 2


def test_the_block_of_streaming_to_the_terminal(stub: StubOllama, capsys: pytest.CaptureFixture[str]) -> None:
    stub.script(Reply.stream(Thought("hm"), "It sets ", "points.", usage=(9, 4)))
    run("Streaming to the terminal")
    assert capsys.readouterr().out == "(hm) It sets points.\n4 tokens, 0 USD, ollama:llama3.2\n"


def test_the_block_of_a_pipeline(stub: StubOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run("A pipeline in your unit of work")
    run("A pipeline in your unit of work")
    told = [
        f"{stage} {served}" for served in ("live", "replay") for stage in ("classify", "summarise", "reply")
    ]
    assert capsys.readouterr().out.splitlines() == told


def test_the_block_of_many_requests(stub: StubOllama, capsys: pytest.CaptureFixture[str]) -> None:
    stub.script(Reply.status(400))
    run("Many requests at once")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["20 done, 1 failed", "19 answers"]
    assert Counter(line.split()[0] for line in printed[:-1]) == {str(n): 1 for n in range(1, 21)}


def test_the_block_of_testing_your_own_agent(tmp_path: Path) -> None:
    tested = run("Testing your own agent")["test_a_busy_provider_is_tried_again"]
    assert callable(tested)
    tested(tmp_path)

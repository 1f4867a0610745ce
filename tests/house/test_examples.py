"""The examples run as a new user runs them, and every block of the README's section does what it says."""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app.llm.testing import Reply, StubOllama
from tests.support.ledger import ROOT

EXAMPLES = ROOT / "examples"
INVOICE = '{"vendor":"Nordlys Rail AS","total":1480.5,"currency":"EUR","due":"2026-12-15"}'


def start(*words: str, **variables: str) -> str:
    """Run a program in the working directory, without a provider unless one is named; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=55
    )
    assert done.returncode == 0, done.stderr + done.stdout
    named = "LLM_OLLAMA_API_BASE" in variables
    assert done.stderr == ("" if named else "LLM_OLLAMA_API_BASE is not set: a stub on loopback answers.\n")
    return done.stdout


def example(name: str, *options: str, **variables: str) -> list[str]:
    return start(str(EXAMPLES / f"{name}.py"), *options, **variables).splitlines()


def test_structured_extraction_pays_once() -> None:
    first = example("structured_extraction")
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


PIPELINES = [
    ("autonomous", "sqlite"),
    ("joined", "sqlite"),
    pytest.param("autonomous", "postgres", marks=pytest.mark.pg),
    pytest.param("joined", "postgres", marks=pytest.mark.pg),
]


@pytest.mark.parametrize(("mode", "database"), PIPELINES)
def test_a_pipeline_pays_again_only_for_what_its_own_transaction_forgot(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    database: str,
) -> None:
    """The first in a process of its own, the others in this one, which has loaded what takes long."""
    options = ["--joined"] if mode == "joined" else []
    if database == "postgres":
        monkeypatch.setenv("LLM_DATABASE_URL", request.getfixturevalue("pg_empty_url"))
        monkeypatch.setenv("LLM_AUTO_MIGRATE", "true")
    if (mode, database) == PIPELINES[0]:
        told = example("pipeline", *options)
    else:
        monkeypatch.setattr(sys, "argv", ["pipeline.py", *options])
        monkeypatch.syspath_prepend(EXAMPLES)
        runpy.run_path(str(EXAMPLES / "pipeline.py"), run_name="__main__")
        told = capfd.readouterr().out.splitlines()
    served = [line.split()[1].rstrip(",") for line in told if line.startswith("  ")]
    assert served == ["live"] * 3 + (["live"] if mode == "joined" else ["replay"]) * 3
    assert [line for line in told if not line.startswith("  ")] == [
        f"first try, {mode}:",
        "rolled back",
        f"second try, {mode}:",
        "committed",
    ]


def test_the_tests_of_an_own_agent_pass() -> None:
    done = start(
        *("-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:asyncio"),
        *("--rootdir", str(EXAMPLES)),
        str(EXAMPLES / "test_own_agent.py"),
        LLM_OLLAMA_API_BASE="",
    )
    assert re.search(r"^5 passed", done, re.MULTILINE)


def test_every_example_is_run_here_and_named_in_the_readme() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"provider", "structured_extraction", "agent_with_tools", "pipeline", "test_own_agent"}
    section = (ROOT / "README.md").read_text().split("\n## Examples\n", 1)[1].split("\n## ", 1)[0]
    assert [name for name in sorted(names - {"provider"}) if f"examples/{name}.py" not in section] == []


# -- the blocks of the README


def block(heading: str) -> str:
    section = (ROOT / "README.md").read_text().split(f"\n### {heading}\n", 1)[1].split("\n### ", 1)[0]
    blocks = re.findall(r"```python\n(.*?)```", section.split("\n## ", 1)[0], re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def run(heading: str) -> Mapping[str, object]:
    """Run a block as a program, in this process, which has loaded what takes long; return its names."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block(heading), f"README: {heading}", "exec"), names)  # noqa: S102  # our own text
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

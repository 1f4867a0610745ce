"""What only a process of its own shows: exit codes, signals, pipes, imports."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points, version
from typing import get_args

import pytest

from app.cli import main, options
from app.llm.persistence import models
from app.llm.testing import StubOllama
from app.llm.types import CacheMode, LLMProfile
from tests.support import programs

HEAVY = {"litellm", "pydantic_ai", "sqlalchemy", "jsonschema", "app.llm", "app.bootstrap"}
SIGNALBOX = (sys.executable, "-m", "app")


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def signalbox(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SIGNALBOX, *args], capture_output=True, text=True, env=environment(), check=False, timeout=50
    )


@pytest.mark.parametrize(
    ("args", "code"),
    [(["--help"], 0), ([], 0), (["version"], 0), (["runs", "list"], 1), (["chat"], 2), (["--no"], 2)],
)
def test_exit_codes_reach_the_shell(args: list[str], code: int) -> None:
    done = signalbox(*args)
    assert done.returncode == code
    assert bool(done.stdout) == (code == 0)
    assert done.stderr.count("\n") == (0 if code == 0 else 1)


def test_the_installed_command_is_this_one() -> None:
    [command] = entry_points(group="console_scripts", name="signalbox")
    assert command.load() is main


def test_the_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"signalbox {version('signalbox')}\n"


def test_help_loads_nothing_heavy() -> None:
    """Else `signalbox --help` would take seconds."""
    script = (
        "import sys; from app.cli import main; main(['chat', '--help']); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
        timeout=50,
    )
    assert not HEAVY & set(done.stderr.split())


def test_words_of_options_are_those_of_the_library() -> None:
    assert get_args(options.Profile) == tuple(LLMProfile)
    assert get_args(options.Cache) == tuple(CacheMode)
    states = {models.STARTED, models.SUCCEEDED, models.FAILED, models.CANCELLED, models.ABANDONED}
    assert set(get_args(options.Status)) == states


def test_ctrl_c_is_130_and_the_run_is_settled(ollama: StubOllama) -> None:
    gate = ollama.hold()
    child = programs.Program(
        [*SIGNALBOX, "chat", "Hello"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    ollama.wait_for_sends(1, timeout_s=30)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    gate.release()
    assert (child.returncode, out, err) == (130, b"", b"")
    with sqlite3.connect("signalbox.db") as database:
        assert database.execute("SELECT status FROM llm_runs").fetchall() == [("CANCELLED",)]
    database.close()


@pytest.mark.parametrize(
    "args", [["explain", "Hello"], ["explain", "Hello", "--json"], ["--help"], ["version"]]
)
def test_a_reader_that_went_away_ends_the_program_quietly(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*SIGNALBOX, *args], stdout=writer, stderr=subprocess.PIPE, env=environment(), check=False, timeout=50
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode in {1, 141}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")  # noqa: PTH110
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [*SIGNALBOX, "explain", "Hello"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
            timeout=50,
        )
    assert done.stderr == b"signalbox: output: No space left on device\n"
    assert done.returncode == 1

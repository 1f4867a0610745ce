"""Rules that every command keeps, whoever adds the next one: help with an example, `--json`, and one line for an error."""

import os
import pty
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from app.cli import NAME, cli
from tests.support import programs
from tests.unit.cli.conftest import Run

WITHOUT_SETTINGS = {("version",), ("cassette", "show"), ("doctor",)}
"""The doctor finds them wrong, as it finds other things."""
FILES = {
    "letter.txt": "Dear all",
    "in.jsonl": '{"prompt": "Hello"}',
    "routing.yaml": "",
    "candidate.yaml": "",
    "scan.png": "no picture",
    "invoice.json": '{"type": "object", "properties": {}}',
}
"""What the examples name."""


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, *path, name)
        else:
            yield (*path, name), each


COMMANDS = dict(commands(get_command(cli)))
each_command = pytest.mark.parametrize("path", COMMANDS, ids=" ".join)


def example(path: tuple[str, ...]) -> list[str]:
    """Return the words of a command's example, after the program's name."""
    found = re.findall(r"^\s*Example: (.+)$", COMMANDS[path].help, re.MULTILINE)
    assert len(found) == 1, "a command's help ends with one line `Example: signalbox ...`"
    name, *words = shlex.split(found[0])
    assert (name, tuple(words[: len(path)])) == (NAME, path)
    return words


@each_command
def test_its_help_says_what_it_does_and_gives_an_example_that_it_takes(path: tuple[str, ...]) -> None:
    words = example(path)
    with COMMANDS[path].make_context(path[-1], words[len(path) :]) as context:
        assert context.command is COMMANDS[path]
    options = [option for option in COMMANDS[path].params if option.param_type_name == "option"]
    assert [option.name for option in options if not option.help and option.name != "help"] == []


@each_command
def test_it_has_json(path: tuple[str, ...]) -> None:
    assert any("--json" in option.opts for option in COMMANDS[path].params)


@each_command
def test_an_option_that_it_does_not_know_is_one_line_and_2(signalbox: Run, path: tuple[str, ...]) -> None:
    done = signalbox(*path, "--no-such-option")
    assert done.code == 2
    assert f"(see `{' '.join((NAME, *path))} --help`)" in done.told


@each_command
def test_its_help_is_on_stdout_and_plain(signalbox: Run, path: tuple[str, ...]) -> None:
    done = signalbox(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {' '.join((NAME, *path))}")
    assert "\x1b" not in done.out


@each_command
def test_a_fault_is_one_line_and_a_traceback_with_debug_alone(
    signalbox: Run, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("a\nbug")

    original = get_command(cli)
    found = original
    for name in path:
        found = found.commands[name]  # type: ignore[attr-defined]
    found.callback = broken
    monkeypatch.setattr("app.cli.get_command", lambda _: original)
    words = example(path)
    done = signalbox(*words)
    assert (done.code, done.told) == (
        1,
        "signalbox: unexpected RuntimeError: a bug (see it with `signalbox --debug`)\n",
    )
    assert "Traceback" in signalbox("--debug", *words).err


@each_command
def test_a_wrong_setting_is_one_line_and_2(
    signalbox: Run, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if path in WITHOUT_SETTINGS:
        return
    for name, text in FILES.items():
        Path(name).write_text(text)
    monkeypatch.setenv("LLM_MAX_ATTEMPTS", "many")
    done = signalbox(*example(path))
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "LLM_MAX_ATTEMPTS" in done.told


def on_a_terminal(*args: str, **environment: str) -> str:
    """Return what a command writes to a terminal."""
    ours, theirs = pty.openpty()
    env = {
        **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TERM": "xterm",
        "COLUMNS": "200",
        **environment,
    }
    with programs.Program([sys.executable, "-m", "app", *args], stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    return shown.decode()


def test_colours_are_for_terminals_that_want_them(signalbox: Run) -> None:
    assert "\x1b[32mkept" in on_a_terminal("explain", "Hello")
    assert "\x1b[3" not in on_a_terminal("explain", "Hello", NO_COLOR="1")
    assert "\x1b" not in signalbox("explain", "Hello").out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("signalbox", "runs", ""), {"list", "show", "tail", "release"}),
        (("signalbox", "report", "--by", ""), {"day", "workspace", "stage", "provider", "model"}),
        (("signalbox", "runs", "list", "--status", "F"), {"FAILED"}),
        (("signalbox", "export", "--format", "p"), {"parquet"}),
        (("signalbox", "prune", "--older"), {"--older-than"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(typed: tuple[str, ...], offered: set[str]) -> None:
    asked = {
        "_SIGNALBOX_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    done = programs.run(
        [sys.executable, "-m", "app"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **asked},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert set(done.stdout.split()) == offered


def test_the_shell_is_told_how_to_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "_SIGNALBOX_COMPLETE=complete_bash" in programs.run(
        [sys.executable, "-m", "app", "--show-completion", "bash"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    ).stdout  # fmt: skip

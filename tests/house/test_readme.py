"""The README and the page of streams keep their word: each program runs from a built wheel, against a stub provider."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing import Reply, StubOllama
from tests.support import programs

ROOT = Path(__file__).parents[2]


def block(name: str, page: str = "README.md") -> str:
    """Return the first Python block below a heading of a page."""
    section = (ROOT / page).read_text().split(f"# {name}", 1)[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def wheel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    unpacked = out / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


def run(
    program: str, wheel_dir: Path, cwd: Path, *, by: Callable[..., Any] = programs.run, **variables: str
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "GEMINI_"))}
    done: subprocess.CompletedProcess[str] = by(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(wheel_dir), **variables},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done


def test_the_twelve_lines_run_from_a_wheel_in_an_empty_folder_and_replay_the_second_time(
    wheel_dir: Path, tmp_path: Path
) -> None:
    program = block("The twelve lines")
    with StubOllama() as stub:
        stub.script(Reply.text("It is late."))
        first = run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        second = run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        sends = stub.sends
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("It is late. live ")
    assert second.stdout == first.stdout.replace(" live ", " replay ")
    assert sends == 1
    assert (tmp_path / "signalbox.db").stat().st_mode & 0o777 == 0o600


def test_the_typed_answer_is_asked_for_again_until_it_is_valid(wheel_dir: Path, tmp_path: Path) -> None:
    program = block("Typed answers")
    with StubOllama() as stub:
        stub.script(Reply.json({"vendor": "Nordlys"}), Reply.json({"vendor": "Nordlys", "total": 1480.5}))
        first = run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        second = run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        sends = stub.sends
    assert first.returncode == 0, first.stderr
    assert first.stdout == "vendor='Nordlys' total=1480.5 live 2\n"
    assert second.stdout == "vendor='Nordlys' total=1480.5 replay 0\n"
    assert sends == 2


def test_the_wheel_carries_the_migrations_and_its_own_code(wheel_dir: Path, tmp_path: Path) -> None:
    shown = run("import app; print(app.__file__)", wheel_dir, tmp_path, by=subprocess.run)
    assert shown.stdout.startswith(str(wheel_dir))
    assert (wheel_dir / "app" / "_alembic" / "versions" / "0001_ledger.py").is_file()
    assert (wheel_dir / "app" / "py.typed").is_file()


def test_a_replay_in_a_fresh_process_loads_no_litellm(wheel_dir: Path, tmp_path: Path) -> None:
    program = block("The twelve lines")
    with StubOllama() as stub:
        run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        program += (
            "\nimport sys\nprint(sorted(name for name in ('litellm', 'pydantic_ai') if name in sys.modules))"
        )
        replay = run(program, wheel_dir, tmp_path, by=subprocess.run, LLM_OLLAMA_API_BASE=stub.base_url)
    assert " replay " in replay.stdout
    assert replay.stdout.endswith("[]\n")


def test_the_streaming_block_prints_as_the_answer_arrives_and_again_from_the_ledger(
    wheel_dir: Path, tmp_path: Path
) -> None:
    program = block("Streaming", "docs/STREAMING.md")
    with StubOllama() as stub:
        stub.script(Reply.stream("It sets ", "points.", usage=(9, 4)))
        first = run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        second = run(program, wheel_dir, tmp_path, LLM_OLLAMA_API_BASE=stub.base_url)
        assert stub.sends == 1
    assert (first.stdout, second.stdout) == ("It sets points.\nlive 4\n", "It sets points.\nreplay 0\n"), (
        first.stderr + second.stderr
    )

"""The example of tests that are answered from files: it passes with nobody there, and records what is committed."""

import os
import re
import shutil
import sys
from pathlib import Path

from app.llm.testing import Reply, StubOllama
from tests.support import programs
from tests.support.ledger import ROOT

EXAMPLE = ROOT / "examples" / "replayed"
NOWHERE = "http://127.0.0.1:9"
ALONE = ("-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:asyncio")


def passed(folder: Path, *options: str, base: str = NOWHERE) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_OLLAMA_API_BASE": base}
    environment.pop("CI", None)
    done = programs.run(
        [sys.executable, "-m", "pytest", *ALONE, "--rootdir", str(folder), *options, str(folder)],
        env=environment, capture_output=True, text=True, check=False, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kept(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.jsonl")}


def test_the_example_passes_without_a_provider() -> None:
    assert re.search(r"^2 passed", passed(EXAMPLE), re.MULTILINE)


def test_recording_it_again_changes_no_byte(tmp_path: Path) -> None:
    copy = tmp_path / "replayed"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("cassettes", "__pycache__"))
    with StubOllama() as stub:
        stub.script(
            Reply.json({"team": "signals", "urgent": True}, usage=(61, 9)),
            Reply.busy(),
            Reply.json({"team": "track", "urgent": True}, usage=(60, 9)),
        )
        passed(copy, "--signalbox-mode=record", base=stub.base_url)
        assert stub.sends == 3
    assert kept(copy) == kept(EXAMPLE)


def test_each_cassette_is_short_enough_to_be_read() -> None:
    assert {name for name, text in kept(EXAMPLE).items() if len(text) > 4_000} == set()

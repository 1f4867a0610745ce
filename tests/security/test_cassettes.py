"""A replay opens no socket at all, and a cassette, which is committed, holds no secret."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing import Reply, StubOllama
from tests.support import programs
from tests.support.ledger import ROOT

TAPE = Path("tape.jsonl")
KEYS = {
    "LLM_GEMINI_API_KEY": "gemini-key-in-use",
    "LLM_OLLAMA_HEADERS": "Authorization: Bearer header-in-use",
}
PROGRAM = """
import asyncio, json, socket, sys

opened = []

def guard(event, args):
    made = event == "socket.__new__" and args[1] in {socket.AF_INET, socket.AF_INET6}
    if made or event in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        opened.append([event, str(args[-1])])
        if sys.argv[1] == "replay":
            raise PermissionError(event)

sys.addaudithook(guard)

from app.bootstrap import build_llm_service
from app.llm import LLMError, LLMRequest, Message, ToolSpec

async def main():
    told = []
    async with build_llm_service() as llm:
        await llm.warm_up()
        asked = LLMRequest(messages=(Message.user(sys.argv[2]),))
        told.append((await llm.chat(asked)).text)
        async with llm.stream(asked.model_copy(update={"temperature": 0.5})) as stream:
            async for each in stream:
                pass
        told.append(stream.response.text)
        told.append(await llm.structured(int, asked))
        for other in ("gemini:gemini-2.5-flash", "ollama:llama3.2"):
            try:
                await llm.chat(LLMRequest(messages=(Message.user("Never recorded"),), model=other))
            except LLMError as error:
                told.append(error.code)
    told[2] = told[2].value
    print(json.dumps({"told": told, "opened": opened, "litellm": "litellm" in sys.modules}))

asyncio.run(main())
"""


def run(mode: str, folder: Path, base: str, prompt: str, **keys: str) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    given = {
        "LLM_MODE": mode, "LLM_CASSETTE": str(TAPE), "LLM_OLLAMA_API_BASE": base,
        "LLM_GEMINI_API_BASE": "http://127.0.0.1:9/v1beta", "PYTHONPATH": str(ROOT),
        "LLM_DEFAULT_WORKSPACE": "w1", "LLM_PROFILE_BALANCED": "ollama", "LLM_DATABASE_URL": f"sqlite+aiosqlite:///{mode}.db",
    }  # fmt: skip
    by = subprocess.run if mode == "replay" else programs.run  # a replay says what it has loaded
    done = by(
        [sys.executable, "-c", PROGRAM, mode, prompt],
        env={**clean, **given, **keys}, cwd=folder, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def recorded(tmp_path: Path) -> list[Any]:
    """What the program sees while it is recorded; its last two calls are not among what is kept."""
    with StubOllama(models=("llama3.2",)) as stub:
        stub.script(
            Reply.text("header-in-use is my word, gemini-key-in-use yours"),
            Reply.stream("a ", "b"),
            Reply.text("42"),
        )
        seen = run("record", tmp_path, stub.base_url, "gemini-key-in-use or header-in-use?", **KEYS)
    assert [each for each in seen["opened"] if each[0] == "socket.connect"], "the guard sees what is opened"
    lines = TAPE.read_text().splitlines()
    TAPE.write_text("".join(f"{line}\n" for line in lines if "Never recorded" not in line))
    return list(seen["told"])


def test_a_replay_opens_no_socket_and_loads_nothing_that_could(tmp_path: Path, recorded: list[Any]):
    """With the keys, and without them as in CI: then the prompt is as the cassette has it."""
    for prompt, keys in (("gemini-key-in-use or header-in-use?", KEYS), ("[redacted] or [redacted]?", {})):
        seen = run("replay", tmp_path, "http://ollama.invalid:11434", prompt, **keys)
        assert seen == {
            "told": [*recorded[:3], "cassette_miss", "cassette_miss"],
            "opened": [],
            "litellm": False,
        }
        for left in tmp_path.glob("replay.db*"):
            left.unlink()


def test_a_cassette_holds_no_secret(recorded: list[Any]):
    text = TAPE.read_text()
    assert text.count("[redacted]") >= 4
    assert [secret for secret in ("gemini-key-in-use", "header-in-use") if secret in text] == []

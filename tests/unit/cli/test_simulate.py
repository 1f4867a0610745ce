"""Recorded calls under another routing file, on both databases."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.llm.errors import LLMUnavailable
from app.llm.persistence import recorded
from app.llm.settings import load_settings
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMCallContext
from tests.unit.cli.conftest import Run

IN_FORCE = (
    "providers:\n  gemini: {api_key: k}\nprofiles:\n  balanced: [ollama:a, gemini:g]\ncache_enabled: yes\n"
)
WITHOUT_PRIMARY = IN_FORCE.replace("ollama:a, ", "")
NOBODY = IN_FORCE + "local_only: yes\nlocal_hosts: [elsewhere]\n"


@pytest.fixture
def history(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
) -> ScriptedClient:
    """Five calls that the primary answered, one of them in another workspace, a hit, a failure, a tool and one that fell back."""
    monkeypatch.setattr(recorded, "PAGE", 2)
    for name, text in (
        ("now", IN_FORCE),
        ("same", IN_FORCE),
        ("without", WITHOUT_PRIMARY),
        ("nobody", NOBODY),
    ):
        Path(f"{name}.yaml").write_text(text)
    monkeypatch.setenv("LLM_CONFIG_FILE", "now.yaml")
    for number in range(4):
        assert signalbox("chat", f"number {number}").code == 0
    signalbox("chat", "elsewhere", "--workspace", "other")
    signalbox("chat", "number 1")
    asyncio.run(_effect())
    client.script += [LLMUnavailable("away")] * 2
    assert signalbox("chat", "fell back").code == 0
    client.script += [LLMUnavailable("away")] * 4
    assert signalbox("chat", "failed").code == 1
    return client


async def _effect() -> None:
    """Leave the run of a tool, which is no call."""

    async def work() -> str:
        return "done"

    async with build_llm_service(load_settings(), client=ScriptedClient()) as llm:
        await llm.once("k", "tool", {}, work, context=LLMCallContext(workspace_id="local"))


def simulate(signalbox: Run, name: str, *options: str) -> dict[str, Any]:
    done = signalbox("simulate", "--config", f"{name}.yaml", "--since", "1h", "--json", *options)
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_who_would_move_and_who_would_not(signalbox: Run, history: ScriptedClient) -> None:
    sends = history.sends
    same = simulate(signalbox, "same")
    assert (same["runs"], same["moved"], same["no_candidate"]) == (6, [], [])
    moved = simulate(signalbox, "without")["moved"]
    assert moved == [{"from": "ollama:a", "to": "gemini:g", "runs": 5}]
    nobody = simulate(signalbox, "nobody")
    assert sum(each["runs"] for each in nobody["no_candidate"]) == nobody["runs"] == 6
    assert simulate(signalbox, "without", "--workspace", "other")["runs"] == 1
    assert history.sends == sends, "nobody is called"


def test_tables_say_the_same(signalbox: Run, history: ScriptedClient) -> None:
    done = signalbox("simulate", "--config", "without.yaml")
    assert done.out.startswith("5 of 6 runs would move\n")
    assert ["ollama:a", "gemini:g", "5"] in [line.split() for line in done.out.splitlines()]
    assert "latency expected from recorded medians" in done.out


def test_a_variable_that_beats_the_file_is_told(
    signalbox: Run, history: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "ollama:a,gemini:g")
    done = signalbox("simulate", "--config", "without.yaml")
    assert "warning: LLM_PROFILE_BALANCED (environment) beats what without.yaml says" in done.err
    assert done.out.startswith("0 of 6 runs would move\n")


def test_requests_that_are_not_stored_are_left_out(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
) -> None:
    Path("same.yaml").write_text("")
    monkeypatch.setenv("LLM_STORE_PAYLOADS", "hash")
    signalbox("chat", "Hello")
    asyncio.run(_effect())
    done = signalbox("simulate", "--config", "same.yaml")
    assert done.out.startswith("0 of 0 runs would move\n")
    assert "warning: 1 runs are left out" in done.err


def test_without_a_ledger_it_says_so(signalbox: Run) -> None:
    Path("same.yaml").write_text("")
    done = signalbox("simulate", "--config", "same.yaml")
    assert done.code == 1
    assert "there is no database" in done.told

"""A repetition goes to one candidate, is a run of its own, and is told beside the run that it repeats."""

import asyncio
import base64
import json
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.cli.replaying import differences
from app.llm.errors import LLMAuth
from app.llm.settings import load_settings
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import CacheMode, LLMCallContext
from tests.unit.cli.conftest import Run

PROMPT = "What is a signal box?"


def listed(signalbox: Run) -> list[dict[str, Any]]:
    return list(json.loads(signalbox("runs", "list", "--json").out))


def shown(signalbox: Run, run_id: str) -> dict[str, Any]:
    return dict(json.loads(signalbox("runs", "show", run_id, "--json").out))


@pytest.fixture
def recorded(signalbox: Run, client: ScriptedClient, on_each_database: str) -> str:
    """The id of a call with a key, which was answered."""
    client.script.append(text_reply("A box with levers in it.", input_tokens=7, output_tokens=6))
    done = signalbox(
        "chat", PROMPT, "--system", "Be brief.", "--key", "k", "--stage", "draft", "--workspace", "w1", "--json"
    )  # fmt: skip
    return str(json.loads(done.out)["run_id"])


def test_the_same_request_goes_to_that_candidate_alone_and_is_its_own_run(
    signalbox: Run, client: ScriptedClient, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CACHE_ENABLED", "true")
    client.script.append(text_reply("A hut with levers in it."))
    done = signalbox("replay", recorded, "--on", "ollama:other", "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    candidate, asked = client.sent[-1]
    assert (candidate.name, asked.model, asked.cache) == ("ollama:other", "ollama:other", CacheMode.BYPASS)
    assert asked.messages == client.sent[0][1].messages
    assert told["original"]["run"] == recorded
    assert told["replay"]["text"] == "A hut with levers in it."
    assert (told["original"]["input_tokens"], told["replay"]["input_tokens"]) == (7, 3)
    assert (told["same_text"], told["differences"]) == (False, [{"original": "box ", "replay": "hut "}])
    run, old = shown(signalbox, told["replay"]["run"]), shown(signalbox, recorded)
    assert (run["metadata"], run["idempotency_key"]) == ({"repeats": recorded}, None)
    assert (run["workspace_id"], run["stage"]) == ("w1", "draft")
    assert [entry["model"] for entry in run["route"] if entry["kept"]] == ["other"]
    assert old["replayed_count"] == 0
    assert len(old["executions"]) == 1
    signalbox("chat", PROMPT, "--system", "Be brief.", "--key", "k", "--stage", "draft", "--workspace", "w1")
    assert client.sends == 2, "the key is the old run's as before"


def test_a_person_sees_both_sides_and_the_words_that_differ(
    signalbox: Run, client: ScriptedClient, recorded: str
) -> None:
    client.script.append(text_reply("A hut with levers in it."))
    lines = signalbox("replay", recorded[:-1], "--on", "ollama:other").out.splitlines()
    assert ["candidate", "ollama:llama3.2", "ollama:other"] in [line.split() for line in lines]
    assert lines[-2:] == ["Differences", "A [-box-]{+hut+} with levers in it."]
    client.script.append(text_reply("A box with levers in it."))
    assert signalbox("replay", recorded, "--on", "ollama:other").out.endswith("The texts are the same.\n")


def test_a_hit_is_compared_by_what_its_answer_took(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CACHE_ENABLED", "true")
    signalbox("chat", PROMPT)
    signalbox("chat", PROMPT)
    hit = listed(signalbox)[0]
    assert hit["source_run_id"]
    told = json.loads(signalbox("replay", hit["id"], "--on", "ollama:other", "--json").out)
    assert (client.sends, told["original"]["input_tokens"]) == (2, 3)


def test_a_failure_is_repeated_without_an_answer_to_compare_with(
    signalbox: Run, client: ScriptedClient
) -> None:
    client.script += [LLMAuth("wrong key", provider="ollama")]
    signalbox("chat", PROMPT)
    failed = listed(signalbox)[0]
    done = signalbox("replay", failed["id"], "--on", "ollama:other")
    assert done.code == 0
    assert done.out.endswith("There is no recorded answer to compare with.\n")
    client.script += [LLMAuth("wrong again", provider="ollama")]
    again = signalbox("replay", failed["id"], "--on", "ollama:other")
    assert (again.code, "wrong again" in again.told) == (1, True)


def test_what_cannot_be_repeated_says_why_and_nothing_is_sent(
    signalbox: Run, client: ScriptedClient, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pay() -> dict[str, str]:
        return {}

    async def paid() -> None:
        async with build_llm_service(load_settings(), client=ScriptedClient()) as llm:
            await llm.once("k1", "pay", {}, pay, context=LLMCallContext(workspace_id="w1"))

    def refused(run: str, on: str = "ollama:other") -> tuple[int, str]:
        done = signalbox("replay", run, "--on", on)
        return done.code, done.told

    asyncio.run(paid())
    effect = listed(signalbox)[0]["id"]
    monkeypatch.setenv("LLM_STORE_PAYLOADS", "hash")
    signalbox("chat", PROMPT)
    hashed = listed(signalbox)[0]["id"]
    sends = client.sends
    for run, on, code, why in [
        (effect, "ollama:other", 1, "it is the effect pay, not a call"),
        (hashed, "ollama:other", 1, "its request is not stored (LLM_STORE_PAYLOADS=hash, or it was pruned)"),
        ("ffff", "ollama:other", 1, "no run begins with"),
        (recorded, "nonsense", 2, "--on: a model is named provider:model"),
        (recorded, "nobody:model", 2, "nobody"),
    ]:
        found, told = refused(run, on)
        assert (found, why in told) == (code, True), told
    monkeypatch.setenv("LLM_PERSIST_RUNS", "false")
    assert refused(recorded)[0] == 2
    assert client.sends == sends
    monkeypatch.delenv("LLM_PERSIST_RUNS")
    assert len(listed(signalbox)) == 3


def test_what_was_asked_under_local_only_stays_local(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_GEMINI_API_KEY", "key")
    signalbox("chat", PROMPT, "--local-only")
    done = signalbox("replay", listed(signalbox)[0]["id"], "--on", "gemini:gemini-2.5-flash")
    assert (done.code, "keeps prompts local" in done.told) == (1, True)
    assert client.sends == 1


def test_an_encrypted_request_needs_its_key(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PAYLOAD_KEY", base64.b64encode(b"k" * 32).decode())
    signalbox("chat", PROMPT)
    monkeypatch.delenv("LLM_PAYLOAD_KEY")
    done = signalbox("replay", listed(signalbox)[0]["id"], "--on", "ollama:other")
    assert (done.code, "set LLM_PAYLOAD_KEY" in done.told) == (1, True)


@pytest.mark.parametrize(
    ("one", "other"),
    [("", ""), ("", "a b"), ("a b\nc", "a x\nc"), ("a", "a"), ("  a  b ", "b a"), ("a b c", "c b a")],
)
def test_differences_hold_both_texts_whole(one: str, other: str) -> None:
    found = differences(one, other)
    assert "".join(each.original for each in found) == one
    assert "".join(each.replay for each in found) == other
    assert all(each.original == each.replay for each in found if each.is_same)

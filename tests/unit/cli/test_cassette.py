"""Cassettes out of the ledger, on both databases: what was sent is written, and a replay is served from it."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.cli import calls
from app.cli.cassette_file import exported
from app.cli.faults import NotFound
from app.llm.cassettes.tapes import read
from app.llm.deltas import TextDelta
from app.llm.errors import LLMRateLimited, LLMUnavailable
from app.llm.messages import TextPart, ToolCallPart
from app.llm.persistence.reports import RunFilter
from app.llm.ports import ProviderReply
from app.llm.settings import load_settings
from app.llm.testing.client import ScriptedClient, Told, text_reply
from app.llm.types import FinishReason, LLMCallContext, TokenUsage
from tests.support.ledger import request
from tests.support.service import Watched
from tests.unit.cli.conftest import Run

TAPE = Path("tape.jsonl")
OTHER = "sqlite+aiosqlite:///other.db"
CALL = ProviderReply(
    parts=(TextPart(text="So."), ToolCallPart(id="x", name="lever", arguments={"number": 12}, signature="s")),
    finish_reason=FinishReason.TOOL_CALLS,
    usage=TokenUsage(input_tokens=3, output_tokens=5, cached_input_tokens=2),
)


@pytest.fixture
def history(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
) -> ScriptedClient:
    """A call with a tool, one after a 429, one that failed, a hit and the run of a tool."""
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "ollama:a")
    monkeypatch.setenv("LLM_CACHE_ENABLED", "true")
    client.script += [CALL, LLMRateLimited("busy", http_status=429, retry_after_s=0.0)]
    assert signalbox("chat", "call", "--stage", "tools").code == 0
    assert signalbox("chat", "busy, ask ann@example.org").code == 0
    client.script += [LLMUnavailable("gone away", http_status=500, retry_after_s=0.0)] * 2
    assert signalbox("chat", "failed").code == 1
    assert signalbox("chat", "call").code == 0
    asyncio.run(_effect())
    return client


async def _effect() -> None:
    async def work() -> str:
        return "done"

    async with build_llm_service(load_settings(), client=ScriptedClient()) as llm:
        await llm.once("k", "tool", {}, work, context=LLMCallContext(workspace_id="local"))


def outcomes() -> list[Any]:
    return [getattr(each.outcome, "code", None) or each.outcome.finish_reason for each in read(TAPE).values()]  # type: ignore[union-attr]


def test_every_send_of_the_ledger_becomes_a_line_oldest_first(signalbox: Run, history: ScriptedClient):
    done = signalbox("cassette", "export", "-o", str(TAPE))
    assert (done.code, done.out, done.err) == (0, "tape.jsonl: 5 calls of 3 runs\n", "")
    assert outcomes() == ["tool_calls", "rate_limited", "stop", "unavailable", "unavailable"]
    text = TAPE.read_text()
    assert "ann@example.org" not in text
    first, second, _, fourth, last = (json.loads(line) for line in text.splitlines())
    assert first["response"]["parts"][1] == {
        "arguments": {"number": 12},
        "name": "lever",
        "type": "tool_call",
    }
    assert first["response"]["usage"] == {"cached_input_tokens": 2, "input_tokens": 3, "output_tokens": 5}
    assert second["response"]["message"] == "ollama:a failed with rate_limited (429); its words are not kept"
    assert second["response"]["facts"] == {"http_status": 429, "retry_after_s": 0.0}
    assert fourth["response"]["message"].endswith("its words are not kept")
    assert last["response"]["message"] == "gone away"


def test_what_was_exported_is_served_to_another_ledger(
    signalbox: Run, history: ScriptedClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The very functions of the command line, without the scripted client."""
    assert signalbox("cassette", "export", "-o", str(TAPE)).code == 0
    monkeypatch.setattr(calls, "build_llm_service", build_llm_service)
    for name, value in (
        ("MODE", "replay"),
        ("CASSETTE", str(TAPE)),
        ("DATABASE_URL", OTHER),
    ):
        monkeypatch.setenv(f"LLM_{name}", value)
    sends = history.sends
    busy = signalbox("chat", "busy, ask ann@example.org", "--json")
    assert (busy.code, json.loads(busy.out)["served_from"]) == (0, "cassette"), busy.err
    assert [each["status"] for each in json.loads(busy.out)["attempts"]] == ["FAILED", "SUCCEEDED"]
    assert "gone away" in signalbox("chat", "failed").err
    missed = signalbox("chat", "cull")
    assert (missed.code, "differs first at $.request.messages[0].content[0].text" in missed.err) == (1, True)
    assert history.sends == sends


def test_filters_say_which_runs(signalbox: Run, history: ScriptedClient):
    done = signalbox("cassette", "export", "-o", str(TAPE), "--stage", "tools", "--json")
    assert json.loads(done.out) == {"file": "tape.jsonl", "calls": 1, "runs": 1, "left_out": {}}
    assert signalbox("cassette", "export", "-o", str(TAPE), "--status", "failed").code == 0
    assert outcomes() == ["unavailable", "unavailable"]
    refused = signalbox("cassette", "export", "-o", str(TAPE), "--limit", "2")
    assert (refused.code, "more than 2 runs fit" in refused.told) == (2, True)
    nothing = signalbox("cassette", "export", "-o", str(TAPE), "--workspace", "nobody")
    assert (nothing.code, "there is no call to export" in nothing.told) == (1, True)
    assert outcomes() == ["unavailable", "unavailable"], "a refusal leaves the file alone"


@pytest.mark.parametrize("place", ["nowhere/tape.jsonl", "."])
def test_a_place_where_no_file_can_be_is_a_usage_error(signalbox: Run, place: str):
    done = signalbox("cassette", "export", "-o", place)
    assert (done.code, done.told) == (2, f"signalbox: {place} is no place for a file\n")


def test_who_had_no_key_is_named_before_all_calls(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
):
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "groq,ollama:a")
    assert signalbox("chat", "call").code == 0
    assert signalbox("cassette", "export", "-o", str(TAPE)).code == 0
    assert TAPE.read_text().splitlines()[0] == '{"no_credentials": ["groq"], "v": 1}'


def test_texts_that_are_not_stored_cannot_be_exported(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
):
    monkeypatch.setenv("LLM_STORE_PAYLOADS", "hash")
    signalbox("chat", "Hello")
    done = signalbox("cassette", "export", "-o", str(TAPE))
    assert done.code == 1
    assert "the texts are not stored: LLM_STORE_PAYLOADS was hash, or they were pruned" in done.told
    assert not TAPE.exists()
    monkeypatch.setenv("LLM_STORE_PAYLOADS", "full")
    signalbox("chat", "Hello again")
    done = signalbox("cassette", "export", "-o", str(TAPE))
    assert done.out == "tape.jsonl: 1 calls of 1 runs\n"
    assert done.err.startswith("left out: 1 of which the texts are not stored")


def test_answers_that_a_check_refused_are_not_in_the_ledger(
    signalbox: Run, client: ScriptedClient, on_each_database: str
):
    client.script += [text_reply("no number"), text_reply('{"n": 1}')]
    schema = Path("schema.json")
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    assert signalbox("extract", "-", "--schema", str(schema), "--model", "ollama:a", stdin="one").code == 0
    done = signalbox("cassette", "export", "-o", str(TAPE))
    assert "an answer was refused by a check, and is not stored" in done.told


async def _asked_for_numbers(client: ScriptedClient | None) -> list[int]:
    async with build_llm_service(load_settings(), client=client) as llm:
        return (await llm.structured(list[int], request("Count."))).value


def test_a_question_is_exported_as_it_was_put_to_the_candidate(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, on_each_database: str
):
    """The row has what the caller asked; the candidate was told of the schema in its own way."""
    monkeypatch.setenv("LLM_DEFAULT_WORKSPACE", "w1")
    live = asyncio.run(_asked_for_numbers(ScriptedClient([text_reply('{"answer": [1, 2]}')])))
    assert signalbox("cassette", "export", "-o", str(TAPE)).code == 0
    for name, value in (("MODE", "replay"), ("CASSETTE", str(TAPE)), ("DATABASE_URL", OTHER)):
        monkeypatch.setenv(f"LLM_{name}", value)
    assert asyncio.run(_asked_for_numbers(None)) == live == [1, 2]


async def _left_early() -> None:
    """Leave a stream after its first word; look at a run that has not ended."""

    async def look(*_: object) -> None:
        with pytest.raises(NotFound, match="it has not ended"):
            await exported(TAPE, RunFilter(status="STARTED"), limit=9)

    never = ScriptedClient([Told(deltas=(TextDelta("Half an"), TextDelta(" answer")))])
    async with (
        build_llm_service(load_settings(), client=never) as llm,
        llm.stream(request("left")) as stream,
    ):
        await anext(stream)
    async with build_llm_service(load_settings(), client=Watched(look)) as llm:
        await llm.chat(request("under way"))


def test_a_stream_that_was_left_is_one_that_waits_to_be_left(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, on_each_database: str
):
    monkeypatch.setenv("LLM_DEFAULT_WORKSPACE", "w1")
    monkeypatch.setenv("LLM_AUTO_MIGRATE", "true")
    asyncio.run(_left_early())
    assert signalbox("cassette", "export", "-o", str(TAPE)).code == 0
    _, left, _ = (json.loads(line).get("response") for line in TAPE.read_text().splitlines())
    assert left["error"] == "cancelled"
    assert left["partial"][0]["text"].startswith("Half an")
    assert "(cancelled)" in signalbox("cassette", "show", str(TAPE)).out


def test_encrypted_texts_need_their_key(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
):
    monkeypatch.setenv("LLM_PAYLOAD_KEY", base64.b64encode(bytes(32)).decode())
    signalbox("chat", "Hello")
    assert signalbox("cassette", "export", "-o", str(TAPE)).code == 0
    monkeypatch.delenv("LLM_PAYLOAD_KEY")
    assert (
        "the texts are encrypted: set LLM_PAYLOAD_KEY"
        in signalbox("cassette", "export", "-o", str(TAPE)).told
    )


def test_show_says_what_is_in_a_cassette(signalbox: Run, history: ScriptedClient):
    signalbox("cassette", "export", "-o", str(TAPE))
    lines = [line.split() for line in signalbox("cassette", "show", str(TAPE)).out.splitlines()]
    assert ["1", "ollama:a", "call", "So.", "[lever]"] in lines
    assert json.loads(signalbox("cassette", "show", str(TAPE), "--json").out)[0]["candidate"] == "ollama:a"
    missing = signalbox("cassette", "show", "nowhere.jsonl")
    assert (missing.code, "cassette nowhere.jsonl: it cannot be read" in missing.told) == (2, True)

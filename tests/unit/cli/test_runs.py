"""Every test that reads the ledger runs on both databases."""

import asyncio
import json
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.cli.ages import seconds
from app.llm.errors import LLMAuth
from app.llm.messages import ImagePart, Message, ThinkingPart, ToolCallPart, ToolResultPart, ToolSpec
from app.llm.ports import ProviderReply
from app.llm.settings import load_settings
from app.llm.testing.client import ScriptedClient
from app.llm.types import FinishReason, LLMCallContext, LLMRequest, TokenUsage
from tests.unit.cli.conftest import Outcome, Run, Terminal

HELLO = LLMRequest(messages=(Message.user("Hello"),), idempotency_key="held")


def listed(signalbox: Run, *options: str) -> list[dict[str, Any]]:
    return list(json.loads(signalbox("runs", "list", "--json", *options).out))


async def during_a_call(signalbox: Run, *commands: tuple[str, ...]) -> list[Outcome]:
    """Run commands while another process, as it were, holds the key `held`."""
    client = ScriptedClient(gate=asyncio.Event())
    async with build_llm_service(load_settings(), client=client) as service:
        call = asyncio.create_task(service.chat(HELLO, context=LLMCallContext(workspace_id="local")))
        async with asyncio.timeout(10):
            while not client.sends:  # noqa: ASYNC110  # the client has no event for it
                await asyncio.sleep(0)
        outcomes = [await asyncio.to_thread(signalbox, *command) for command in commands]
        client.gate.set() if client.gate else None
        await asyncio.gather(call, return_exceptions=True)
    return outcomes


@pytest.mark.usefixtures("on_each_database")
def test_runs_are_listed_newest_first_and_filtered(signalbox: Run, client: ScriptedClient) -> None:
    for name, options in [
        ("one", ("--stage", "draft")),
        ("two", ("--key", "k")),
        ("three", ("--workspace", "w")),
    ]:
        signalbox("chat", name, *options)
    assert [run["stage"] for run in listed(signalbox)] == [None, None, "draft"]
    assert [run["workspace_id"] for run in listed(signalbox, "--limit", "1")] == ["w"]
    for filtered in [("--stage", "draft"), ("--key", "k"), ("--workspace", "w")]:
        assert len(listed(signalbox, *filtered)) == 1
    assert len(listed(signalbox, "--status", "succeeded", "--since", "1h")) == 3
    assert listed(signalbox, "--status", "FAILED") == listed(signalbox, "--pipeline-run", "p") == []
    assert listed(signalbox, "--since", "0s") == []


@pytest.mark.usefixtures("on_each_database")
def test_a_list_is_a_table_whose_rows_are_whole(signalbox: Run, client: ScriptedClient) -> None:
    signalbox("chat", "Hello", "--key", "[red]k[/x]")
    done = signalbox("runs", "list")
    [run] = listed(signalbox)
    row = next(line for line in done.out.splitlines() if line.startswith(run["id"]))
    assert row.split()[3:6] == ["local", "SUCCEEDED", "ollama:llama3.2"]
    assert "[red]k[/x]" in row
    assert done.err == ""


def test_an_empty_ledger_has_no_runs(signalbox: Run) -> None:
    signalbox("migrate")
    done = signalbox("runs", "list")
    assert (done.code, done.out, done.err) == (0, "", "no runs\n")
    assert listed(signalbox) == []


@pytest.mark.usefixtures("on_each_database")
def test_a_run_is_shown_whole_by_a_unique_beginning(signalbox: Run, client: ScriptedClient) -> None:
    client.script.append(LLMAuth("wrong key", provider="ollama", http_status=401))
    signalbox("chat", "What?", "--key", "k")
    signalbox("chat", "What?", "--key", "k", "--system", "Be brief.")
    done, failed = listed(signalbox)
    shown = signalbox("runs", "show", done["id"][:-1].upper()).out
    for part in [done["id"], "ollama:llama3.2", "Route", "Attempts", "Runs of this key", "system: Be brief."]:
        assert part in shown
    assert shown.rstrip().endswith("answer 2")
    document = json.loads(signalbox("runs", "show", failed["id"], "--json").out)
    assert (document["status"], document["error_code"]) == ("FAILED", "auth")
    assert [entry["kept"] for entry in document["route"]] == [True, False]
    assert [attempt["status"] for attempt in document["attempts"]] == ["FAILED"]
    assert [run["id"] for run in document["executions"]] == [failed["id"], done["id"]]
    assert document["response"] is None


@pytest.mark.usefixtures("on_each_database")
def test_hits_point_at_their_source_and_the_source_at_its_hits(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CACHE_ENABLED", "true")
    signalbox("chat", "Hello")
    signalbox("chat", "Hello")
    hit, source = listed(signalbox)
    assert client.sends == 1
    assert hit["source_run_id"] == source["id"]
    assert json.loads(signalbox("runs", "show", source["id"], "--json").out)["hits"] == [hit["id"]]


async def test_what_is_no_text_is_named_in_brackets(signalbox: Run) -> None:
    turns = (
        Message.user("Look", ImagePart(data=b"x", media_type="image/png")),
        Message.assistant(ThinkingPart(text="hm"), ToolCallPart(id="1", name="zoom", arguments={"by": 2})),
        Message.tool(ToolResultPart(id="1", name="zoom", content="done")),
    )
    reply = ProviderReply(
        parts=(ThinkingPart(text="so"), ToolCallPart(id="2", name="stop")),
        finish_reason=FinishReason.TOOL_CALLS,
        usage=TokenUsage(),
    )
    settings = load_settings(profile_balanced="ollama:qwen3-vl")
    async with build_llm_service(settings, client=ScriptedClient([reply])) as service:
        await service.chat(
            LLMRequest(messages=turns, tools=(ToolSpec(name="zoom"), ToolSpec(name="stop"))),
            context=LLMCallContext(workspace_id="local"),
        )
    shown = (await asyncio.to_thread(signalbox, "runs", "show", "0")).out
    assert "user: Look [image/png]\n" in shown
    assert "[thinking: hm] [calls zoom({'by': 2})]\ntool: [result of zoom: done]\n" in shown
    assert shown.endswith("[thinking: so] [calls stop({})]\n")


def test_hashes_alone_are_shown_as_not_stored(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_STORE_PAYLOADS", "hash")
    signalbox("chat", "Hello")
    [run] = listed(signalbox)
    assert signalbox("runs", "show", run["id"]).out.count("(not stored)") == 2


def test_a_run_is_named_by_what_fits_exactly_one(signalbox: Run, client: ScriptedClient) -> None:
    for prompt in "abcde":
        signalbox("chat", prompt)
    several = signalbox("runs", "show", "0")
    assert several.code == 1
    assert several.told.startswith("signalbox: several runs begin with 0: ")
    assert several.told.endswith(", ...\n")
    for unknown in ["ffff", "%", "0' OR 1=1", "01a1fbdb-50b6-7d3b-b963-ec7c367c2f01"]:
        none = signalbox("runs", "show", unknown)
        assert none.code == 1
        assert "no run begins with" in none.told


@pytest.mark.usefixtures("on_each_database")
async def test_release_declares_the_owner_dead(signalbox: Run) -> None:
    refused, released, shown, again = await during_a_call(
        signalbox, ("runs", "release", "0"), ("runs", "release", "0", "--yes", "--json"),
        ("runs", "list", "--json"), ("runs", "release", "0", "--yes"),
    )  # fmt: skip
    assert refused.code == 2
    assert "its lease ends in " in refused.err
    assert refused.err.endswith("signalbox: nobody can be asked here: add --yes\n")
    assert json.loads(released.out)["status"] == "ABANDONED"
    assert [run["status"] for run in json.loads(shown.out)] == ["ABANDONED"]
    assert again.code == 1
    assert "is ABANDONED: it holds no key any more" in again.told


@pytest.mark.parametrize(("typed", "code", "status"), [("y\n", 0, "ABANDONED"), ("n\n", 1, "STARTED")])
async def test_release_asks_on_a_terminal(signalbox: Run, typed: str, code: int, status: str) -> None:
    asked = partial(signalbox, stdin=typed, kind=Terminal)
    answered, shown = await during_a_call(asked, ("runs", "release", "0"), ("runs", "list", "--json"))
    assert answered.code == code
    assert "Declare it dead? [y/N] " in answered.err
    assert json.loads(shown.out)[0]["status"] == status


@pytest.mark.parametrize(
    ("age", "expected"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7D", 604_800), ("2w", 1_209_600)]
)
def test_ages_are_read(age: str, expected: float) -> None:
    assert seconds(age, "--since") == expected


@pytest.mark.parametrize("age", ["", "5", "h", "-1h", "1.5h", "1y", "99999999999h"])
def test_other_ages_are_refused(signalbox: Run, age: str) -> None:
    done = signalbox("runs", "list", "--since", age)
    assert done.code == 2
    assert "is no age; write 90s, 30m, 24h, 30d or 2w" in done.told


def test_looking_makes_no_database(signalbox: Run) -> None:
    for command in [("runs", "list"), ("runs", "show", "0"), ("migrate", "--check")]:
        done = signalbox(*command)
        assert done.code == 1
        assert (
            f"there is no database at {Path('signalbox.db').absolute()}: run `signalbox migrate`" in done.told
        )
    assert not Path("signalbox.db").exists()


def test_migrate_says_from_where_to_where(signalbox: Run) -> None:
    made, again, checked = (
        signalbox("migrate"),
        signalbox("migrate"),
        signalbox("migrate", "--check", "--json"),
    )
    assert made.out == "sqlite+aiosqlite:///signalbox.db: migrated from no tables to 0003\n"
    assert again.out == "sqlite+aiosqlite:///signalbox.db: at 0003, which is current\n"
    document = {"database": "sqlite+aiosqlite:///signalbox.db", "before": "0003", "after": "0003"}
    assert (checked.code, json.loads(checked.out)) == (0, document)


def test_check_fails_on_an_empty_and_on_a_newer_database(signalbox: Run) -> None:
    Path("signalbox.db").touch()
    empty = signalbox("migrate", "--check")
    assert empty.code == 1
    assert "the database has no tables yet: run `signalbox migrate`" in empty.told
    signalbox("migrate")
    with sqlite3.connect("signalbox.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    for command in [("migrate", "--check"), ("migrate",)]:
        newer = signalbox(*command)
        assert newer.code == 1
        assert "migrated by a newer version of signalbox" in newer.told


@pytest.mark.usefixtures("on_each_database")
def test_an_effect_is_listed_and_shown_as_a_tool(signalbox: Run) -> None:
    async def pay() -> dict[str, str]:
        return {"receipt": "Ærø"}

    async def paid() -> None:
        async with build_llm_service(load_settings(), client=ScriptedClient()) as llm:
            context = LLMCallContext(workspace_id="local")
            await llm.once("k1", "pay", {"order": 1}, pay, context=context)

    signalbox("migrate")
    asyncio.run(paid())
    [run] = listed(signalbox)
    assert (run["provider"], run["model"], run["profile"], run["cost_usd"]) == ("tool", "pay", "tool", 0)
    assert "tool:pay" in signalbox("runs", "list").out
    shown = signalbox("runs", "show", run["id"]).out
    assert "[calls pay({'order': 1})]" in shown
    assert '{"receipt": "Ærø"}' in shown
    whole = json.loads(signalbox("runs", "show", run["id"], "--json").out)
    assert whole["request"] == {"v": 1, "effect": {"name": "pay", "arguments": {"order": 1}}}
    assert whole["response"] == {"v": 1, "result": {"receipt": "Ærø"}}

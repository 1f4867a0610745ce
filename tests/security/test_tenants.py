"""I13: nothing of one workspace is visible to another: by key, fingerprint, coalescing, spool or run id."""

import asyncio
from typing import Any

import pytest

from app.llm.context import scope
from app.llm.errors import (
    LLMFenced,
    LLMKeyConflict,
    LLMQueueFull,
    LLMWorkspaceConflict,
    LLMWorkspaceMissing,
)
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMRequest, ServedFrom
from tests.security.looks import ANSWER, PROMPT
from tests.security.services import Stubs, wired
from tests.support.ledger import Outside, request
from tests.support.service import Watched, rig, service


def of(workspace: str, text: str = PROMPT, **fields: Any) -> LLMRequest:
    return request(text, metadata={"workspace_id": workspace}, **fields)


def two_answers() -> ScriptedClient:
    return ScriptedClient([text_reply(ANSWER), text_reply("another answer")])


def both_at_once() -> Watched:
    """Return a client that answers a send only while another one is in flight."""
    meeting = asyncio.Barrier(2)

    async def look(*_: object) -> None:
        await meeting.wait()

    return Watched(look, [text_reply(ANSWER), text_reply("another answer")])


async def test_the_same_key_is_another_key_in_another_workspace(db_url: str, outside: Outside):
    async with service(db_url, two_answers(), default_workspace=None) as llm:
        first = await llm.chat(of("a", idempotency_key="k1"))
        second = await llm.chat(of("b", idempotency_key="k1"))
        assert (await llm.chat(of("a", idempotency_key="k1"))).run_id == first.run_id
        assert (await llm.chat(of("b", idempotency_key="k1"))).run_id == second.run_id
    assert (first.text, second.text) == (ANSWER, "another answer")
    assert {run["supersedes"] for run in await outside.runs()} == {None}


async def test_another_workspace_s_key_is_neither_in_progress_nor_a_conflict(db_url: str):
    client = both_at_once()
    async with service(db_url, client, default_workspace=None) as llm:
        calls = [
            asyncio.create_task(llm.chat(of(name, f"text of {name}", idempotency_key="k1")))
            for name in ("a", "b")
        ]
        answers = await asyncio.gather(*calls)
    assert len({answer.run_id for answer in answers}) == 2


async def test_a_forced_execution_frees_only_the_own_key(db_url: str):
    async with service(db_url, ScriptedClient(), default_workspace=None) as llm:
        kept = await llm.chat(of("a", idempotency_key="k1"))
        await llm.chat(of("b", idempotency_key="k1", force_new_execution=True))
        assert (await llm.chat(of("a", idempotency_key="k1"))).run_id == kept.run_id


@pytest.mark.parametrize("persisted", [True, False], ids=["ledger", "memory"])
@pytest.mark.parametrize("match", ["first", "any"])
async def test_an_equal_prompt_of_another_workspace_is_no_hit(db_url: str, match: str, *, persisted: bool):
    settings = {
        "cache_enabled": True,
        "cache_match": match,
        "persist_runs": persisted,
        "default_workspace": None,
    }
    async with service(db_url, client := ScriptedClient(), **settings) as llm:
        served = [(await llm.chat(of(name))).served_from for name in ("a", "b", "a", "b")]
    assert served == [ServedFrom.LIVE] * 2 + [ServedFrom.CACHE] * 2
    assert client.sends == 2


@pytest.mark.parametrize("persisted", [True, False], ids=["ledger", "memory"])
async def test_equal_prompts_of_two_workspaces_do_not_wait_for_each_other(db_url: str, *, persisted: bool):
    client = both_at_once()
    settings = {"cache_enabled": True, "persist_runs": persisted, "default_workspace": None}
    async with service(db_url, client, **settings) as llm:
        calls = [asyncio.create_task(llm.chat(of(name))) for name in ("a", "b")]
        answers = await asyncio.gather(*calls)
    assert {answer.served_from for answer in answers} == {ServedFrom.LIVE}
    assert len({answer.text for answer in answers}) == 2


async def test_a_spooled_answer_is_replayed_in_its_own_workspace_only(db_url: str):
    async with rig(db_url, two_answers(), default_workspace=None) as one:
        one.ledger.away_for.add("finish")
        spooled = await one.llm.chat(of("a", idempotency_key="k1"))
        one.ledger.away_for.clear()
        other = await one.llm.chat(of("b", idempotency_key="k1"))
    assert not spooled.persisted
    assert (other.text, other.served_from) == ("another answer", ServedFrom.LIVE)


async def test_a_conflict_names_a_run_of_the_own_workspace(db_url: str):
    async with service(db_url, ScriptedClient(), default_workspace=None) as llm:
        runs = {name: (await llm.chat(of(name, idempotency_key="k1"))).run_id for name in ("a", "b")}
        with pytest.raises(LLMKeyConflict) as caught:
            await llm.chat(of("b", "another prompt", idempotency_key="k1"))
    assert caught.value.facts["run_id"] == runs["b"]
    assert runs["a"] not in str(caught.value)


async def test_a_run_id_of_another_workspace_as_key_or_metadata_gives_nothing(db_url: str):
    async with service(db_url, two_answers(), default_workspace=None) as llm:
        first = await llm.chat(of("a", idempotency_key="k1"))
        asked = request(
            PROMPT,
            idempotency_key=first.run_id,
            metadata={"workspace_id": "b", "run_id": first.run_id, "source_run_id": first.run_id},
        )
        answer = await llm.chat(asked)
    assert answer.text != ANSWER
    assert answer.run_id != first.run_id


@pytest.mark.parametrize(
    ("one", "other"), [("a", "A"), ("a", "á"), ("é", "e\u0301"), ("a", "a "), ("a%", "ab"), ("1", "01")]
)
async def test_workspaces_that_look_alike_are_two(db_url: str, one: str, other: str):
    """No collation, trimming or wildcard makes them equal."""
    async with service(db_url, client := ScriptedClient(), default_workspace=None) as llm:
        for name in (one, other):
            await llm.chat(of(name, idempotency_key="k1"))
    assert client.sends == 2


async def test_a_full_queue_names_the_own_runs_and_counts_those_of_others(stubs: Stubs):
    settings = {"ollama_concurrency_limit": 2, "queue_limit": 0, "profile_balanced": "ollama:first"}
    async with wired(
        "sqlite+aiosqlite:///unused.db", stubs, persist_runs=False, default_workspace=None, **settings
    ) as llm:
        await llm.warm_up()
        with stubs.ollama.hold():
            holders = [asyncio.create_task(llm.chat(of(name))) for name in ("a", "b")]
            await asyncio.to_thread(stubs.ollama.wait_for_sends, 2)
            with pytest.raises(LLMQueueFull) as caught:
                await llm.chat(of("b"))
        theirs, own = [(await holder).run_id for holder in holders]
    assert f"held by {own}, 1 of other workspaces; nothing was sent" in str(caught.value)
    assert (caught.value.facts["run_ids"], caught.value.facts["others"]) == ((own,), 1)
    assert theirs not in f"{caught.value}{caught.value.facts}"


async def test_a_run_of_another_workspace_cannot_be_released(db_url: str, outside: Outside):
    released: list[bool] = []

    async def release(*_: Any) -> None:
        (run,) = await outside.runs()
        released.append(await llm.release(run["id"], workspace_id="b"))
        with scope(workspace_id="b"):
            released.append(await llm.release(run["id"]))
        assert (await outside.runs())[0]["status"] == "STARTED"
        released.append(await llm.release(run["id"], workspace_id="a"))

    async with service(db_url, Watched(release), default_workspace=None) as llm:
        with pytest.raises(LLMFenced):
            await llm.chat(of("a", idempotency_key="k1"))
    assert released == [False, False, True]


async def test_a_release_belongs_to_a_workspace(sqlite_url: str):
    async with service(sqlite_url, default_workspace=None) as llm:
        with pytest.raises(LLMWorkspaceMissing, match="pass workspace_id=, or set LLM_DEFAULT_WORKSPACE"):
            await llm.release("run")
        with (
            scope(workspace_id="a"),
            pytest.raises(LLMWorkspaceConflict, match="workspace_id= says 'b', scope says 'a'"),
        ):
            await llm.release("run", workspace_id="b")

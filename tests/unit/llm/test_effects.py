"""Effects: run once under a key, whoever asks again, and told apart from others under the same key."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.core.clock import SystemClock
from app.llm.errors import (
    LLMAnswerNotStored,
    LLMError,
    LLMInvalidRequest,
    LLMKeyConflict,
    LLMKeyUnavailable,
    LLMLedgerUnavailable,
    LLMOutcomeUnknown,
    LLMWorkspaceMissing,
)
from app.llm.messages import Message
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMCallContext, LLMRequest, ServedFrom
from tests.support.effects import ORDER, Work, pay
from tests.support.ledger import Outside, request
from tests.support.service import rig, service


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


async def test_an_effect_is_run_once_by_whatever_process_and_returns_what_it_returned_then(
    db_url: str, outside: Outside
):
    work = Work({"receipt": [1, None, "é\x00\ud800", 2**70]})
    async with service(db_url) as llm:
        first = await pay(llm, work)
        assert await pay(llm, work, {"amount": 1480.5, "to": "Nordlys Rail"}) == first
    async with service(db_url) as llm:
        assert await pay(llm, work) == first == {"receipt": [1, None, "é\x00\ud800", 2**70]}
    assert work.runs == 1
    (row,) = await outside.runs()
    assert (row["provider"], row["model"], row["profile"], row["status"]) == (
        "tool",
        "pay",
        "tool",
        "SUCCEEDED",
    )
    assert (row["sends_noted"], row["total_tokens"], row["cost_usd"]) == (0, None, 0)
    assert (row["replayed_count"], row["cache_mode"], row["finish_reason"]) == (2, "bypass", None), "no hit"
    assert await outside.attempts(row["id"]) == []


async def test_what_comes_back_live_has_been_through_json_too(sqlite_url: str):
    work = Work((1, 2), {3: "three"})  # type: ignore[arg-type, dict-item]
    async with service(sqlite_url) as llm:
        assert await llm.once("k1", "pay", {}, work) == [1, 2]
        assert await llm.once("k2", "pay", {}, work) == {"3": "three"}


async def test_other_arguments_are_a_conflict_that_shows_both_and_where_they_differ(db_url: str):
    work = Work()
    async with service(db_url) as llm:
        await pay(llm, work)
        with pytest.raises(LLMKeyConflict) as caught:
            await pay(llm, work, {**ORDER, "amount": 99})
    assert work.runs == 1
    assert caught.value.facts["path"] == "$.arguments.amount"
    assert 'pay({"to": "Nordlys Rail", "amount": 1480.5})' in caught.value.message
    assert 'pay({"to": "Nordlys Rail", "amount": 99})' in caught.value.message


async def test_a_conflict_shows_no_secret_and_no_more_than_a_reader_takes_in(sqlite_url: str):
    async with service(sqlite_url) as llm:
        await pay(llm, Work(), {"token": "token=abcdefgh1234", "text": "x" * 1000})
        with pytest.raises(LLMKeyConflict) as caught:
            await pay(llm, Work(), {"token": "mail to anna@example.org", "text": "x" * 1000})
    assert "abcdefgh1234" not in str(caught.value)
    assert "anna@example.org" not in str(caught.value)
    assert len(caught.value.message) < 1000


async def test_another_effect_or_a_call_never_gets_the_result_of_a_key(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client) as llm:
        await pay(llm, Work())
        with pytest.raises(LLMKeyConflict, match=r"differ first at \$\.name"):
            await llm.once("k1", "refund", ORDER, Work())
        with pytest.raises(LLMKeyConflict):
            await llm.chat(request(idempotency_key="k1"))
        await llm.chat(request(idempotency_key="k2"))
        with pytest.raises(LLMKeyConflict):
            await llm.once("k2", "pay", ORDER, Work())
        assert await llm.once("k1", "pay", ORDER, work := Work(), context=LLMCallContext(workspace_id="w2"))
    assert (client.sends, work.runs) == (1, 1)


async def test_what_raises_frees_the_key_and_is_recorded_without_secrets(db_url: str, outside: Outside):
    work = Work(RuntimeError("no luck, password: hunter2hunter2"))
    async with service(db_url) as llm:
        with pytest.raises(RuntimeError, match="no luck"):
            await pay(llm, work)
        assert await pay(llm, work) == "receipt 2"
    failed, done = await outside.runs()
    assert (failed["status"], failed["error_code"], failed["idem_slot"]) == ("FAILED", "effect_failed", None)
    assert failed["error_message"].startswith("RuntimeError: no luck")
    assert "hunter2hunter2" not in failed["error_message"]
    assert done["status"] == "SUCCEEDED"


async def test_what_did_nothing_is_recorded_as_cancelled(db_url: str, outside: Outside):
    work = Work(PermissionError())
    async with service(db_url) as llm:
        with pytest.raises(PermissionError):
            await pay(llm, work, undone=(PermissionError,))
        assert await pay(llm, work) == "receipt 2"
    assert [row["error_code"] for row in await outside.runs()] == ["cancelled", None]


async def test_force_runs_it_again(sqlite_url: str):
    work = Work()
    async with service(sqlite_url) as llm:
        assert await pay(llm, work) == "receipt 1"
        assert await pay(llm, work, force_new_execution=True) == "receipt 2"
        with pytest.raises(LLMKeyConflict):
            await pay(llm, work, {}, force_new_execution=True)
        assert await pay(llm, work) == "receipt 2"


async def test_a_result_that_the_database_did_not_take_is_replayed_from_the_spool(db_url: str):
    work = Work()
    async with rig(db_url, clock=SystemClock(), finish_budget_s=0.2) as rigged:
        rigged.ledger.away_for = {"finish"}
        assert await pay(rigged.llm, work) == "receipt 1"
        assert await pay(rigged.llm, work) == "receipt 1"
        rigged.ledger.away_for = set()
    async with service(db_url) as llm:
        assert await pay(llm, work) == "receipt 1"
    assert work.runs == 1


async def test_nothing_is_run_while_the_database_is_away(db_url: str):
    work = Work()
    async with rig(db_url) as rigged:
        rigged.ledger.away = True
        with pytest.raises(LLMLedgerUnavailable):
            await pay(rigged.llm, work)
        rigged.ledger.away = False
    assert work.runs == 0


async def test_where_only_hashes_are_kept_a_result_cannot_be_had_again(sqlite_url: str):
    work = Work()
    async with service(sqlite_url, store_payloads="hash") as llm:
        await pay(llm, work)
        with pytest.raises(LLMAnswerNotStored):
            await pay(llm, work)
        with pytest.raises(LLMKeyConflict):
            await pay(llm, work, {})
    assert work.runs == 1


async def test_results_are_encrypted_with_the_rest(sqlite_url: str):
    key, view = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", Outside(sqlite_url)
    async with service(sqlite_url, payload_key=key) as llm:
        await pay(llm, Work("receipt 1"))
        assert await pay(llm, Work("receipt 2")) == "receipt 1"
        with pytest.raises(LLMKeyConflict, match="Nordlys"):
            await pay(llm, Work(), {})
    assert {row["codec"] for row in await view.payloads()} == {2}
    async with service(sqlite_url) as llm:
        with pytest.raises(LLMKeyConflict) as caught:
            await pay(llm, Work(), {})
    assert "path" not in caught.value.facts, "nobody can read it without the key"
    await view.close()


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"arguments": {"when": object()}}, LLMInvalidRequest, "the arguments of pay cannot be recorded"),
        ({"arguments": {"n": float("nan")}}, LLMInvalidRequest, "the arguments of pay cannot be recorded"),
        ({"name": "p\nay"}, LLMInvalidRequest, "name of an effect"),
        ({"name": "p" * 256}, LLMInvalidRequest, "256 characters"),
        ({"key": "k" * 256}, LLMInvalidRequest, "key: "),
        ({"key": " "}, LLMInvalidRequest, "key: "),
        ({"key": ""}, LLMInvalidRequest, "key: an effect needs a key of its own, not ''"),
        ({"key": None}, LLMInvalidRequest, "key: an effect needs a key of its own, not None"),
        ({"arguments": [1, 2]}, LLMInvalidRequest, "the arguments of pay must be a JSON object, .* not list"),
        (
            {"arguments": None},
            LLMInvalidRequest,
            "the arguments of pay must be a JSON object, .* not NoneType",
        ),
    ],
    ids=[
        *("no JSON", "NaN", "unprintable", "long name", "long key", "blank key", "empty key", "no key"),
        *("list", "no arguments"),
    ],
)
async def test_what_cannot_be_recorded_is_refused_before_the_work(
    db_url: str, asked: dict[str, Any], error: type[LLMError], says: str
):
    work = Work()
    async with service(db_url) as llm:
        with pytest.raises(error, match=says):
            await llm.once(**{"key": "k1", "name": "pay", "arguments": ORDER, "work": work, **asked})
    assert work.runs == 0


async def test_work_whose_result_is_no_json_is_not_done_again_unasked(db_url: str, outside: Outside):
    work = Work(float("inf"))
    async with service(db_url, on_abandoned="refuse") as careful, service(db_url) as llm:
        with pytest.raises(LLMInvalidRequest, match="what pay returned cannot be recorded as JSON") as caught:
            await pay(careful, work)
        (row,) = await outside.runs()
        assert (caught.value.run_id, caught.value.possibly_paid) == (row["id"], True)
        assert f"`signalbox runs release {row['id']}`" in caught.value.message
        await careful.drain()
        for _ in range(2):
            with pytest.raises(LLMOutcomeUnknown):
                await pay(careful, work)
        assert work.runs == 1
        assert await pay(llm, work) == "receipt 2"


async def test_an_effect_needs_a_ledger_and_a_workspace(sqlite_url: str):
    async with service(sqlite_url, persist_runs=False) as llm:
        with pytest.raises(LLMKeyUnavailable):
            await pay(llm, Work())
    async with service(sqlite_url, default_workspace=None) as llm:
        with pytest.raises(LLMWorkspaceMissing):
            await pay(llm, Work())
        with llm.scope(workspace_id="w7", pipeline_run_id="p1", stage="pay"):
            await pay(llm, Work())
    view = Outside(sqlite_url)
    (row,) = await view.runs()
    assert (row["workspace_id"], row["pipeline_run_id"], row["stage"]) == ("w7", "p1", "pay")
    await view.close()


async def test_in_a_unit_of_work_it_is_the_callers_to_commit(db_url: str):
    from sqlalchemy.ext.asyncio import AsyncSession

    view, work = Outside(db_url), Work()
    async with service(db_url) as llm:
        async with AsyncSession(view.engine) as session:
            assert await pay(llm.joined(session), work) == "receipt 1"
            assert await pay(llm.joined(session), work) == "receipt 1"
            await session.rollback()
        async with AsyncSession(view.engine) as session:
            assert await pay(llm.joined(session), work) == "receipt 2"
            await session.commit()
        assert await pay(llm, work) == "receipt 2"
    await view.close()


# -- two requests under one key


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ({}, {"text": "Today is Monday."}, "$.messages[0].content[0].text"),
        ({}, {"temperature": 0.5}, "$.temperature"),
        ({}, {"profile": "fast"}, "$.profile"),
        ({}, {"constraints": {"local_only": True}}, "$.constraints.local_only"),
    ],
    ids=["text", "sampling", "profile", "constraints"],
)
async def test_a_conflict_of_two_requests_names_the_place_and_not_the_text(
    db_url: str, first: dict[str, Any], second: dict[str, Any], path: str
):
    def asked(text: str = "Today is Sunday.", **fields: Any) -> LLMRequest:
        return LLMRequest(messages=(Message.system(text), Message.user("x")), idempotency_key="k1", **fields)

    client = ScriptedClient()
    async with service(db_url, client) as llm:
        await llm.chat(asked(**first))
        with pytest.raises(LLMKeyConflict) as caught:
            await llm.chat(asked(**second))
        with pytest.raises(LLMKeyConflict):
            async with llm.stream(asked(**second)) as stream:
                await anext(stream)
        assert (await llm.chat(asked(**first))).served_from is ServedFrom.REPLAY
    assert client.sends == 1
    assert caught.value.facts["path"] == path
    assert path in caught.value.message
    assert "Sunday" not in str(caught.value)
    assert caught.value.run_id

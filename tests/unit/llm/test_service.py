"""The story of a call, end to end over a scripted client: what is sent, what is stored, what others see meanwhile."""

import asyncio
from typing import Any

import pytest

from app.core.clock import SystemClock
from app.llm.errors import (
    LLMAnswerNotStored,
    LLMContractError,
    LLMFenced,
    LLMInternal,
    LLMInvalidRequest,
    LLMKeyConflict,
    LLMKeyUnavailable,
    LLMLedgerError,
    LLMNoCandidate,
    LLMOutcomeUnknown,
    LLMProviderError,
    LLMWorkspaceConflict,
    LLMWorkspaceMissing,
)
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMCallContext, LLMConstraints, ServedFrom
from tests.support.ledger import Outside, changed, request
from tests.support.service import Watched, limited, refused, rig, service, timed_out

KEYED = request(idempotency_key="k1")


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


async def test_a_call_is_answered_live_and_told_on_one_row(db_url: str, outside: Outside):
    client = ScriptedClient([text_reply("A box.")])
    async with service(db_url, client) as llm:
        answer = await llm.chat(KEYED, context=LLMCallContext(pipeline_run_id="p1", stage="draft"))
    assert (answer.text, answer.served_from, answer.persisted) == ("A box.", ServedFrom.LIVE, True)
    assert (answer.provider, answer.model, answer.cost_usd) == ("ollama", "first", 0.0)
    assert answer.usage == answer.original_usage
    assert answer.usage.total_tokens == 8
    assert [each.ordinal for each in answer.attempts] == [1]
    assert [entry["model"] for entry in answer.route] == ["first", "second"]

    (row,) = await outside.runs()
    assert (row["id"], row["status"], row["pipeline_run_id"], row["stage"]) == (
        answer.run_id,
        "SUCCEEDED",
        "p1",
        "draft",
    )
    assert client.sends == len(await outside.attempts(answer.run_id)) == row["sends_noted"] == 1
    assert client.closed


async def test_started_is_seen_by_others_before_the_provider_is_asked(db_url: str, outside: Outside):
    """I3."""
    seen: list[Any] = []

    async def look(*_: Any) -> None:
        seen.extend(await outside.runs())

    async with service(db_url, Watched(look)) as llm:
        answer = await llm.chat(KEYED)
    assert [(row["id"], row["status"], row["idem_slot"]) for row in seen] == [
        (answer.run_id, "STARTED", "k1")
    ]


async def test_every_further_send_is_noted_before_it_happens(db_url: str, outside: Outside):
    """I6."""
    noted: list[int] = []

    async def look(*_: Any) -> None:
        noted.extend(row["sends_noted"] for row in await outside.runs())

    client = Watched(look, [limited(), refused(), limited()])
    async with service(db_url, client) as llm:
        await llm.chat(request())
    assert noted == [1, 2, 3, 4]


async def test_while_the_provider_works_no_connection_is_held_and_others_can_write(
    db_url: str, outside: Outside
):
    """I4."""
    held: list[int] = []

    async def look(*_: Any) -> None:
        held.append(rigged.checked_out())
        (row,) = await outside.runs()
        await outside.update(row["id"], trace_id="written meanwhile")

    async with rig(db_url, Watched(look)) as rigged:
        answer = await rigged.llm.chat(request())
    assert held == [0]
    assert (await outside.run(answer.run_id))["trace_id"] == "written meanwhile"


async def test_a_key_is_replayed_without_a_second_send(db_url: str, outside: Outside):
    """I5: the same text, consumed nothing, under the row that made it."""
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        first = await llm.chat(KEYED)
        second = await llm.chat(KEYED)
        assert client.sends == 1
    assert second.served_from is ServedFrom.REPLAY
    assert (second.text, second.run_id) == (first.text, first.run_id)
    assert (second.usage.total_tokens, second.original_usage, second.cost_usd) == (0, first.usage, 0.0)
    (row,) = await outside.runs()
    assert row["replayed_count"] == 1


async def test_a_replay_works_when_nothing_could_be_sent_any_more(db_url: str):
    """The configuration changed since: no candidate is left, the stored answer still serves."""
    async with service(db_url) as llm:
        first = await llm.chat(KEYED)
    client = ScriptedClient()
    async with service(
        db_url, client, gemini_api_key=None, profile_balanced="gemini:third", profile_fast="gemini:third"
    ) as llm:
        with pytest.raises(LLMNoCandidate):
            await llm.chat(request())
        again = await llm.chat(KEYED)
    assert (again.text, again.served_from) == (first.text, ServedFrom.REPLAY)
    assert client.sends == 0


async def test_a_replay_is_no_new_row_and_changes_none(db_url: str, outside: Outside):
    """I16."""
    async with service(db_url) as llm:
        await llm.chat(KEYED)
        (before,) = await outside.runs()
        for _ in range(3):
            await llm.chat(KEYED)
    (after,) = await outside.runs()
    assert changed(before, after) == {"replayed_count"}
    assert after["replayed_count"] == 3


async def test_the_same_key_for_another_request_is_refused(db_url: str):
    """I15."""
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        first = await llm.chat(KEYED)
        with pytest.raises(LLMKeyConflict) as caught:
            await llm.chat(request("Other", idempotency_key="k1"))
    assert caught.value.run_id == first.run_id
    assert first.text not in str(caught.value)
    assert client.sends == 1


async def test_the_same_key_in_another_workspace_is_another_key(db_url: str):
    """I13."""
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        first = await llm.chat(KEYED)
        second = await llm.chat(KEYED, context=LLMCallContext(workspace_id="w2"))
    assert first.text != second.text
    assert client.sends == 2


async def test_force_executes_a_finished_key_again(db_url: str, outside: Outside):
    async with service(db_url) as llm:
        first = await llm.chat(KEYED)
        second = await llm.chat(KEYED.model_copy(update={"force_new_execution": True}))
        third = await llm.chat(KEYED)
    assert first.text != second.text == third.text
    old, new = await outside.runs()
    assert (old["idem_slot"], new["idem_slot"], new["execution"], new["supersedes"]) == (
        None,
        "k1",
        2,
        first.run_id,
    )


async def test_force_without_a_key_is_refused(sqlite_url: str):
    async with service(sqlite_url) as llm:
        with pytest.raises(LLMInvalidRequest):
            await llm.chat(request(force_new_execution=True))


# -- retry and fallback


async def test_retry_and_fallback_are_told_attempt_by_attempt(db_url: str, outside: Outside):
    client = ScriptedClient([limited(), refused(), text_reply("from the cloud")])
    async with service(db_url, client) as llm:
        answer = await llm.chat(KEYED)
    assert [candidate.name for candidate, _ in client.sent] == [
        "ollama:first",
        "ollama:first",
        "gemini:second",
    ]
    assert (answer.provider, answer.model, answer.cost_usd) == ("gemini", "second", None)
    (row,) = await outside.runs()
    assert (row["status"], row["provider"], row["sends_noted"]) == ("SUCCEEDED", "gemini", 3)
    rows = await outside.attempts(answer.run_id)
    assert [(each["provider"], each["status"], each["error_code"], each["http_status"]) for each in rows] == [
        ("ollama", "FAILED", "rate_limited", 429),
        ("ollama", "FAILED", "unavailable", None),
        ("gemini", "SUCCEEDED", None, 200),
    ]
    assert [each.error_code for each in answer.attempts] == ["rate_limited", "unavailable", None]


async def test_no_call_sends_more_often_than_max_attempts(db_url: str, outside: Outside):
    client = ScriptedClient([limited() for _ in range(20)])
    async with service(db_url, client, max_attempts=3, attempts_per_candidate=9) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(KEYED)
    assert client.sends == len(caught.value.attempts) == 3
    (row,) = await outside.runs()
    assert (row["id"], row["status"], row["error_code"], row["idem_slot"]) == (
        caught.value.run_id,
        "FAILED",
        "rate_limited",
        None,
    )
    assert len(await outside.attempts(row["id"])) == row["sends_noted"] == 3


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        ("never", ["ollama:first"]),
        ("fallback_only", ["ollama:first", "gemini:second"]),
        ("always", ["ollama:first", "ollama:first", "gemini:second", "gemini:second"]),
    ],
)
async def test_a_send_that_may_have_been_paid_is_repeated_only_as_allowed(
    db_url: str, outside: Outside, rule: str, asked: list[str]
):
    client = ScriptedClient([timed_out() for _ in range(9)])
    async with service(db_url, client, retry_possibly_paid=rule) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(KEYED)
    assert [candidate.name for candidate, _ in client.sent] == asked
    assert caught.value.possibly_paid
    (row,) = await outside.runs()
    assert (row["status"], row["possibly_paid"], row["sends_noted"]) == ("FAILED", True, len(asked))
    assert all(each["possibly_paid"] for each in await outside.attempts(row["id"]))


async def test_an_error_after_an_earlier_send_that_may_be_paid_says_so(db_url: str):
    """The last error was free; the call as a whole was not."""
    client = ScriptedClient([timed_out(), refused(), refused()])
    async with service(db_url, client) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(KEYED)
    assert caught.value.code == "unavailable"
    assert caught.value.possibly_paid


@pytest.mark.parametrize("error", [refused, timed_out])
async def test_after_a_failure_the_key_is_free_at_once(db_url: str, outside: Outside, error: Any):
    """I10."""
    client = ScriptedClient([error() for _ in range(4)])
    async with service(db_url, client, max_attempts=1) as llm:
        with pytest.raises(LLMProviderError):
            await llm.chat(KEYED)
        client.script.clear()
        answer = await llm.chat(KEYED)
    assert answer.served_from is ServedFrom.LIVE
    assert [row["status"] for row in await outside.runs()] == ["FAILED", "SUCCEEDED"]


async def test_a_defect_of_the_client_is_recorded_and_raised(db_url: str, outside: Outside):
    def defect(*_: Any) -> Any:
        raise KeyError("oops")

    async with service(db_url, ScriptedClient([defect])) as llm:
        with pytest.raises(LLMInternal) as caught:
            await llm.chat(KEYED)
    assert caught.value.possibly_paid
    (row,) = await outside.runs()
    assert (row["status"], row["error_code"], row["possibly_paid"]) == ("FAILED", "internal", True)
    assert len(await outside.attempts(row["id"])) == 1


async def test_a_send_that_never_left_is_no_attempt(db_url: str, outside: Outside):
    class Queue(ScriptedClient):
        async def send(self, *_: Any, **__: Any) -> Any:
            raise refused()

    async with service(db_url, Queue(), max_attempts=1) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(request())
    assert caught.value.attempts == ()
    assert not caught.value.possibly_paid
    (row,) = await outside.runs()
    assert await outside.attempts(row["id"]) == []


async def test_a_request_that_nobody_can_serve_is_recorded_with_its_reasons(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        with pytest.raises(LLMNoCandidate) as caught:
            await llm.chat(request(constraints=LLMConstraints(providers=()), idempotency_key="k1"))
    (row,) = await outside.runs()
    assert (row["id"], row["status"], row["error_code"]) == (caught.value.run_id, "FAILED", "no_candidate")
    assert "provider_not_allowed" in row["route"]
    assert client.sends == 0


# -- the database between two sends


async def test_a_send_that_cannot_be_noted_does_not_happen(db_url: str, outside: Outside):
    """I6: and the error still says that the first send may have been paid."""
    async with rig(db_url, ScriptedClient([timed_out()])) as rigged:
        rigged.ledger.away_for = {"note_send"}
        with pytest.raises(LLMLedgerError) as caught:
            await rigged.llm.chat(KEYED)
        assert rigged.client.sends == 1
    (row,) = await outside.runs()
    assert (row["status"], row["error_code"], row["possibly_paid"]) == ("FAILED", "ledger_unavailable", True)
    assert len(await outside.attempts(row["id"])) == 1
    assert caught.value.possibly_paid
    assert caught.value.run_id == row["id"]
    assert [each.error_code for each in caught.value.attempts] == ["timeout"]


async def test_a_database_that_is_away_before_the_call_stops_it(db_url: str):
    """Fail closed."""
    async with rig(db_url) as rigged:
        rigged.ledger.away = True
        for asked in (KEYED, request()):
            with pytest.raises(LLMLedgerError):
                await rigged.llm.chat(asked)
        assert rigged.client.sends == 0
        rigged.ledger.away = False


# -- fencing


async def test_a_fenced_call_returns_the_winners_answer(db_url: str, outside: Outside):
    """I5, I8: two answers exist, the callers of the key get one of them."""

    async def take_over(*_: Any) -> None:
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        async with service(db_url, ScriptedClient([text_reply("the winner's")])) as other:
            assert (await other.chat(KEYED)).text == "the winner's"

    async with service(db_url, Watched(take_over, [text_reply("the loser's")])) as llm:
        answer = await llm.chat(KEYED)
    assert (answer.text, answer.served_from) == ("the winner's", ServedFrom.REPLAY)
    old, new = await outside.runs()
    assert (old["status"], old["late"], old["total_tokens"]) == ("ABANDONED", True, 8)
    assert (new["status"], new["execution"], new["supersedes"]) == ("SUCCEEDED", 2, old["id"])


async def test_a_fenced_call_waits_for_a_winner_that_still_works(db_url: str, outside: Outside):
    """I5."""
    gate, asked = asyncio.Event(), asyncio.Event()
    winners: list[asyncio.Task[Any]] = []

    async def slow(*_: Any) -> None:
        asked.set()
        await gate.wait()

    async with service(db_url, Watched(slow, [text_reply("the winner's")])) as other:

        async def take_over(*_: Any) -> None:
            (row,) = await outside.runs()
            await outside.end_lease(row["id"])
            winners.append(asyncio.create_task(other.chat(KEYED)))
            await asked.wait()
            asyncio.get_running_loop().call_later(0.05, gate.set)  # while the loser waits for it

        async with service(db_url, Watched(take_over)) as llm:
            answer = await llm.chat(KEYED)
        assert answer.text == (await winners[0]).text == "the winner's"


async def test_a_fenced_call_without_a_winner_raises_with_its_own_answer(db_url: str, outside: Outside):
    """The answer was paid for: the caller may still use it, knowingly."""

    async def release(*_: Any) -> None:
        (row,) = await outside.runs()
        async with service(db_url) as other:
            assert await other.release(row["id"])

    async with service(db_url, Watched(release, [text_reply("mine")])) as llm:
        with pytest.raises(LLMFenced) as caught:
            await llm.chat(KEYED)
    assert caught.value.facts["answer"].text == "mine"
    assert caught.value.possibly_paid
    assert "None" not in str(caught.value)


async def test_a_fenced_call_whose_winner_kept_no_text_raises_with_its_own_answer(
    db_url: str, outside: Outside
):
    async def take_over(*_: Any) -> None:
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        async with service(db_url, store_payloads="hash") as other:
            await other.chat(KEYED)

    async with service(db_url, Watched(take_over, [text_reply("mine")]), store_payloads="hash") as llm:
        with pytest.raises(LLMFenced) as caught:
            await llm.chat(KEYED)
    assert caught.value.facts["answer"].text == "mine"


async def test_a_failed_call_that_was_fenced_returns_the_winners_answer(db_url: str, outside: Outside):
    """I5: its own sends failed, and an answer to the key exists."""

    async def take_over(*_: Any) -> None:
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        async with service(db_url, ScriptedClient([text_reply("the winner's")])) as other:
            await other.chat(KEYED)

    async with service(db_url, Watched(take_over, [refused()]), max_attempts=1) as llm:
        assert (await llm.chat(KEYED)).text == "the winner's"


async def test_a_fenced_call_sends_no_further(db_url: str, outside: Outside):
    """I8: the key was lost between two sends."""
    looks = 0

    async def take_over(*_: Any) -> None:
        nonlocal looks
        looks += 1
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        async with service(db_url, ScriptedClient([text_reply("the winner's")])) as other:
            await other.chat(KEYED)

    async with service(db_url, Watched(take_over, [limited(), text_reply("late")])) as llm:
        assert (await llm.chat(KEYED)).text == "the winner's"
    assert looks == 1


# -- settings of keys


async def test_a_dead_owners_key_is_taken_over(db_url: str, outside: Outside, caplog: Any):
    """I7."""
    async with rig(db_url, owner="dead") as dead:
        dead.ledger.after = _die_after("claim")
        with pytest.raises(_DeadError):
            await dead.llm.chat(KEYED)
    (row,) = await outside.runs()
    await outside.end_lease(row["id"])
    async with service(db_url) as llm:
        answer = await llm.chat(KEYED)
    assert [each["status"] for each in await outside.runs()] == ["ABANDONED", "SUCCEEDED"]
    assert (await outside.run(answer.run_id))["supersedes"] == row["id"]
    assert "llm_takeover" in caplog.text


async def test_a_dead_owners_key_is_refused_where_the_settings_say_so(db_url: str, outside: Outside):
    async with rig(db_url, owner="dead") as dead:
        dead.ledger.after = _die_after("claim")
        with pytest.raises(_DeadError):
            await dead.llm.chat(KEYED)
    (row,) = await outside.runs()
    await outside.end_lease(row["id"])
    client = ScriptedClient()
    async with service(db_url, client, on_abandoned="refuse") as llm:
        with pytest.raises(LLMOutcomeUnknown) as caught:
            await llm.chat(KEYED)
        assert (caught.value.run_id, caught.value.possibly_paid) == (row["id"], True)
        assert client.sends == 0
        assert (await llm.chat(KEYED.model_copy(update={"force_new_execution": True}))).text
    assert [each["status"] for each in await outside.runs()] == ["ABANDONED", "SUCCEEDED"]


async def test_an_expired_key_is_executed_again(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client, idempotency_ttl_s=3600) as llm:
        first = await llm.chat(KEYED)
        await outside.expire(first.run_id)
        second = await llm.chat(KEYED)
    assert (second.served_from, client.sends) == (ServedFrom.LIVE, 2)
    assert (await outside.run(second.run_id))["supersedes"] == first.run_id


async def test_a_repeated_key_whose_answer_was_not_stored_is_refused(db_url: str):
    client = ScriptedClient()
    async with service(db_url, client, store_payloads="hash") as llm:
        first = await llm.chat(KEYED)
        with pytest.raises(LLMAnswerNotStored) as caught:
            await llm.chat(KEYED)
    assert caught.value.run_id == first.run_id
    assert client.sends == 1


async def test_the_lease_is_the_deadline_and_the_grace(db_url: str, outside: Outside):
    leases: list[float] = []

    async def look(*_: Any) -> None:
        (row,) = await outside.runs()
        leases.append((row["lease_until"] - row["created_at"]).total_seconds())

    async with service(db_url, Watched(look), lease_grace_s=1000) as llm:
        await llm.chat(request(timeout_s=500))
    assert 1400 < leases[0] <= 1500.1


# -- without persistence


async def test_without_persistence_a_key_is_refused_and_calls_work(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client, persist_runs=False) as llm:
        with pytest.raises(LLMKeyUnavailable):
            await llm.chat(KEYED)
        assert client.sends == 0
        answer = await llm.chat(request())
        assert (answer.text, answer.persisted) == ("answer 1", False)
        assert llm._repo._answers == {}  # type: ignore[attr-defined]  # nothing is cached, so nothing is kept
        with pytest.raises(LLMContractError, match="LLM_PERSIST_RUNS"):
            llm.joined(object())
        assert await llm.release(answer.run_id) is False
    view = Outside(sqlite_url)
    assert await view.runs() == []
    await view.close()


# -- whose call it is


async def test_a_call_without_a_workspace_is_refused(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client, default_workspace=None) as llm:
        with pytest.raises(LLMWorkspaceMissing):
            await llm.chat(request())
        with pytest.raises(LLMWorkspaceConflict, match=r"'b'.*'a'"):
            await llm.chat(request(metadata={"workspace_id": "a"}), context=LLMCallContext(workspace_id="b"))
        answer = await llm.chat(request(metadata={"workspace_id": "a", "page": 7}))
    assert client.sends == 1
    row = await outside.run(answer.run_id)
    assert (row["workspace_id"], row["metadata"]) == ("a", '{"page":7}')
    assert len(await outside.runs()) == 1


async def test_a_route_is_explained_without_a_send_or_a_row(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        assert [candidate.name for candidate in llm.explain(request()).kept] == [
            "ollama:first",
            "gemini:second",
        ]
        assert [candidate.name for candidate in llm.candidates(model="gemini:second")] == ["gemini:second"]
        assert [candidate.name for candidate in llm.candidates()] == ["ollama:first", "gemini:second"]
    assert client.sends == 0
    assert await outside.runs() == []


async def test_the_order_of_a_call_is_look_up_claim_send_settle(sqlite_url: str):
    order: list[str] = []

    async def look(*_: Any) -> None:
        order.append("send")

    async with rig(sqlite_url, Watched(look, [limited()]), cache_enabled=True) as rigged:
        rigged.ledger.before = order.append
        await rigged.llm.chat(KEYED)
        assert order == ["read", "read", "claim", "send", "note_send", "send", "finish"]
        order.clear()
        await rigged.llm.chat(KEYED)
        assert order == ["read"]


async def test_closing_waits_for_what_is_written_in_the_background(db_url: str, outside: Outside):
    """I12."""
    gate, asked = asyncio.Event(), asyncio.Event()

    async def wait(*_: Any) -> None:
        asked.set()
        await gate.wait()

    async with service(db_url, Watched(wait)) as llm:
        call = asyncio.create_task(llm.chat(KEYED))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await llm.close()
        (row,) = await outside.runs()
        assert (row["status"], row["possibly_paid"], row["idem_slot"]) == ("CANCELLED", True, None)
        await llm.close()


async def test_waits_between_sends_are_the_clocks(sqlite_url: str):
    """A provider that asks for patience is given it, within the deadline."""
    from tests.support.service import QuickClock

    clock = QuickClock()
    patient = [limited().with_facts(retry_after_s=7.0), text_reply("at last")]
    async with rig(sqlite_url, ScriptedClient(patient), clock=clock) as rigged:
        assert (await rigged.llm.chat(request())).text == "at last"
    assert clock.slept == [7.0]
    assert isinstance(clock, SystemClock)


class _DeadError(BaseException):
    """Ends a process, as far as its service can tell."""


def _die_after(transition: str) -> Any:
    def after(name: str) -> None:
        if name == transition:
            raise _DeadError

    return after

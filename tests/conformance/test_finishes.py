"""How a run ends: once, by its owner, with its attempts and payloads, whatever the answer holds."""

import base64
import hashlib
import json
import random
from typing import Any

import pytest

from app.llm.errors import LLMTimeout
from app.llm.messages import Message, TextPart, ThinkingPart, ToolCallPart
from app.llm.persistence.settlement import MAX_ERROR_CHARS
from app.llm.ports import Failure, Finished, Replay
from app.llm.types import LLMRequest, TokenUsage
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, attempt, cancellation, changed, failure, new_run, request, success
from tests.support.rounds import in_full

KEYED = request(idempotency_key="k1")

FIFTY_MIB = 50 * 2**20
TEXTS = {
    "NUL": "a\x00b",
    "lone surrogate": "a\ud800b",
    "emoji and marks": "\U0001f682 e\u0301 \u202e \ufeff",
    "empty": "",
    "quotes": "'; DROP TABLE llm_runs; -- \" \\ %s :p_id {}",
}


async def test_success_is_told_by_row_attempts_and_payloads(ledger: Ledger):
    run = new_run(KEYED, pipeline_run_id="p1", stage="draft", metadata={"page": 3})
    one = ledger.repo()
    await one.create_started(run)
    assert await one.mark_succeeded(run, success(run, "yes", sends=2)) == Finished()

    seen = await ledger.seen()
    row = await seen.run(run.run_id)
    expected = {
        "status": "SUCCEEDED",
        "workspace_id": "w1",
        "pipeline_run_id": "p1",
        "stage": "draft",
        "metadata": '{"page":3}',
        "idem_slot": "k1",
        "flight_slot": None,
        "provider": "ollama",
        "model": "first",
        "candidate_sha256": run.route.kept[0].identity,
        "prompt_sha256": run.prompt_sha256,
        "request_sha256": run.request_sha256,
        "profile": "balanced",
        "finish_reason": "stop",
        "input_tokens": 3,
        "output_tokens": 5,
        "total_tokens": 8,
        "usage_source": "provider",
        "cost_usd": 0.0,
        "error_code": None,
        "error_message": None,
        "late": False,
        "possibly_paid": True,
        "replayed_count": 0,
        "source_run_id": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["created_at"] <= row["finished_at"]
    assert [entry["reason"] for entry in json.loads(row["route"])] == ["listed", "listed"]

    first, second = await seen.attempts(run.run_id)
    assert (first["ordinal"], first["status"], first["error_code"], first["possibly_paid"]) == (
        1,
        "FAILED",
        "timeout",
        True,
    )
    assert (second["ordinal"], second["status"], second["http_status"], second["output_tokens"]) == (
        2,
        "SUCCEEDED",
        200,
        5,
    )

    payloads = await seen.texts()
    assert set(payloads) == {row["request_payload"], row["response_payload"]}
    for address, data in payloads.items():
        assert hashlib.sha256(data).hexdigest() == address


async def test_a_stored_request_reads_back_as_the_request(ledger: Ledger):
    """I20: what was asked can be read by whoever audits it, with nothing but the stored bytes."""
    asked = LLMRequest(
        messages=(
            Message.system("Be brief."),
            Message.user("Which box?"),
            Message.assistant(
                ThinkingPart(text="hm"), ToolCallPart(id="c1", name="look", arguments={"at": 1})
            ),
        ),
        temperature=0.0,
        idempotency_key="k1",
        metadata={"page": 3},
    )
    run = new_run(asked)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run))
    seen = await ledger.seen()
    address = (await seen.run(run.run_id))["request_payload"]
    body = json.loads((await seen.texts())[address])
    assert LLMRequest.model_validate(body["request"]) == asked


async def test_failure_is_told_with_its_error_and_its_sends(ledger: Ledger):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    assert await one.mark_failed(run, failure(sends=2)) == Finished()
    seen = await ledger.seen()
    row = await seen.run(run.run_id)
    assert (row["status"], row["error_code"], row["error_message"], row["possibly_paid"]) == (
        "FAILED",
        "timeout",
        "no answer in time",
        True,
    )
    assert row["response_payload"] is None
    assert row["input_tokens"] is None
    assert [each["ordinal"] for each in await seen.attempts(run.run_id)] == [1, 2]


async def test_cancellation_is_told(ledger: Ledger):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_cancelled(run, cancellation())
    row = await (await ledger.seen()).run(run.run_id)
    assert (row["status"], row["error_code"], row["possibly_paid"]) == ("CANCELLED", "cancelled", False)


async def test_finishing_twice_changes_nothing(ledger: Ledger):
    """I12: the acknowledgement was lost, not the work."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run, "yes"))
    seen = await ledger.seen()
    before = (await seen.runs(), await seen.attempts(run.run_id), await seen.payloads())
    assert await one.mark_succeeded(run, success(run, "yes")) == Finished()
    seen = await ledger.seen()
    assert (await seen.runs(), await seen.attempts(run.run_id), await seen.payloads()) == before


@pytest.mark.parametrize("again_as", ["mark_succeeded", "mark_failed", "mark_cancelled"])
@pytest.mark.parametrize("ended_as", ["mark_succeeded", "mark_failed", "mark_cancelled"])
async def test_a_finished_row_never_changes(ledger: Ledger, ended_as: str, again_as: str):
    """I16: not even by its own owner."""

    def outcome(how: str, text: str) -> Any:
        made = {"mark_failed": failure(), "mark_cancelled": cancellation()}
        return made.get(how) or success(run, text)

    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await getattr(one, ended_as)(run, outcome(ended_as, "first"))
    seen = await ledger.seen()
    before = (await seen.run(run.run_id), await seen.attempts(run.run_id))
    await getattr(one, again_as)(run, outcome(again_as, "second"))
    await one.release(run.run_id, "w1")
    seen = await ledger.seen()
    assert (await seen.run(run.run_id), await seen.attempts(run.run_id)) == before


async def test_another_owner_cannot_finish_a_run(ledger: Ledger):
    """I8."""
    run = new_run(KEYED)
    await ledger.repo().create_started(run)
    before = await (await ledger.seen()).run(run.run_id)
    assert await ledger.repo("two").mark_succeeded(run, success(run)) == Finished(persisted=False)
    seen = await ledger.seen()
    assert await seen.run(run.run_id) == before
    assert await seen.attempts(run.run_id) == []


async def test_a_late_owner_without_a_successor_still_succeeds(ledger: Ledger):
    """The end of a lease fences nobody; only a takeover does."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)
    assert await one.mark_succeeded(run, success(run)) == Finished()
    assert (await (await ledger.seen()).run(run.run_id))["status"] == "SUCCEEDED"


async def test_a_fenced_owner_is_given_the_winners_answer(ledger: Ledger):
    """I5, I8: its own answer is accounted for on its own row, and nowhere else."""
    run = new_run(KEYED)
    one, two = ledger.repo(), ledger.repo("two")
    await one.create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)
    successor = again(run)
    await two.create_started(successor)
    await two.mark_succeeded(successor, success(successor, "the winner's"))
    before = await (await ledger.seen()).run(successor.run_id)
    mine = await ledger.outside.run(run.run_id)

    finished = await one.mark_succeeded(run, success(run, "the loser's", sends=2))
    assert finished.fenced
    assert finished.successor_run_id == successor.run_id
    assert finished.winner is not None
    assert finished.winner.response is not None
    assert finished.winner.response.text == "the winner's"

    seen = await ledger.seen()
    assert await seen.run(successor.run_id) == before
    late = await seen.run(run.run_id)
    assert (late["status"], late["late"], late["total_tokens"], late["idem_slot"]) == (
        "ABANDONED",
        True,
        8,
        None,
    )
    assert {"status", "owner", "finished_at", "created_at", "execution"}.isdisjoint(changed(mine, late))
    assert [row["ordinal"] for row in await seen.attempts(run.run_id)] == [1, 2]


async def test_a_fenced_owner_is_told_of_a_successor_that_still_works(ledger: Ledger):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)
    successor = again(run)
    await ledger.repo("two").create_started(successor)
    await ledger.seen()
    finished = await one.mark_succeeded(run, success(run))
    assert finished == Finished(fenced=True, successor_run_id=successor.run_id)


async def test_late_accounting_happens_once(ledger: Ledger):
    """I12, I16."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await ledger.seen()
    await ledger.repo("two").release(run.run_id, "w1")
    await ledger.seen()
    await one.mark_succeeded(run, success(run, "first"))
    before = await (await ledger.seen()).run(run.run_id)
    assert before["late"]
    await one.mark_succeeded(run, success(run, "second"))
    assert await (await ledger.seen()).run(run.run_id) == before


async def test_equal_texts_of_a_workspace_are_stored_once_and_never_across(ledger: Ledger):
    """I13."""
    one = ledger.repo()
    for workspace in ("w1", "w1", "w2"):
        run = new_run(request(), workspace=workspace)
        await one.create_started(run)
        await one.mark_succeeded(run, success(run, "the same"))
    seen = await ledger.seen()
    assert len({row["response_payload"] for row in await seen.runs()}) == 1
    assert sorted(row["workspace_id"] for row in await seen.payloads()) == ["w1", "w1", "w2", "w2"]


async def test_storing_a_text_again_says_when_it_was_last_needed(ledger: Ledger):
    one = ledger.repo()
    first, second = new_run(request()), new_run(request())
    await one.create_started(first)
    await one.mark_succeeded(first, success(first))
    before = {row["sha256"]: row["last_ref_at"] for row in await (await ledger.seen()).payloads()}
    await one.create_started(second)
    await one.mark_succeeded(second, success(second))
    after = {row["sha256"]: row["last_ref_at"] for row in await (await ledger.seen()).payloads()}
    assert before.keys() == after.keys()
    assert all(after[address] >= before[address] for address in before)
    assert after != before


async def test_hash_mode_keeps_no_text_and_replays_nothing(ledger: Ledger):
    one = ledger.repo(store_payloads="hash")
    run = new_run(KEYED)
    await one.create_started(run)
    await one.mark_succeeded(run, success(run, "a secret answer"))
    other = new_run(request("Other"))
    await one.create_started(other)
    await one.mark_failed(
        other,
        Failure(
            error=LLMTimeout("it said: a secret"), attempts=[attempt()], queue_wait_ms=0.0, latency_ms=0.0
        ),
    )

    seen = await ledger.seen()
    row = await seen.run(run.run_id)
    assert (row["request_payload"], row["response_payload"]) == (None, None)
    assert row["total_tokens"] == 8
    assert await seen.payloads() == []
    assert (await seen.run(other.run_id))["error_message"] is None
    assert "secret" not in repr(await seen.runs())
    state = await one.get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(state, Replay)
    assert state.answer.response is None


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_any_text_is_stored_and_comes_back_as_it_was(ledger: Ledger, text: str):
    """I14."""
    asked = request(idempotency_key="k1").model_copy(  # unchecked: a request refuses lone surrogates
        update={"messages": (Message.user("ask", text or "-"),)}
    )
    run = new_run(asked, metadata={"note": text})
    one = ledger.repo()
    await one.create_started(run)
    call = ToolCallPart(id="c1", name="t", arguments={"text": text, "big": 2**63, "huge": -(2**200)})
    said = (TextPart(text=text), ThinkingPart(text=text, signature=text), call)
    finished = await one.mark_succeeded(run, success(run, parts=said))
    assert finished == Finished()
    await ledger.seen()
    state = await ledger.repo("two").get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(state, Replay)
    assert state.answer.response is not None
    assert state.answer.response.parts == said


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_any_error_text_is_stored(ledger: Ledger, text: str):
    """I14."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    failed = Failure(error=LLMTimeout(text * 1000), attempts=[attempt()], queue_wait_ms=0.0, latency_ms=0.0)
    assert await one.mark_failed(run, failed) == Finished()
    row = await (await ledger.seen()).run(run.run_id)
    assert row["status"] == "FAILED"
    assert len(row["error_message"]) <= MAX_ERROR_CHARS


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.0], ids=str)
async def test_numbers_that_json_does_not_know_do_not_stop_a_finish(ledger: Ledger, number: float):
    """I14."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    said = (ToolCallPart(id="c1", name="t", arguments={"x": number}),)
    assert await one.mark_succeeded(run, success(run, parts=said)) == Finished()
    state = await one.get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(state, Replay)
    assert state.answer.response is not None
    assert repr(state.answer.response.tool_calls[0].arguments["x"]) == repr(number)


@pytest.mark.parametrize("tokens", [2**63 - 1, 2**63, 2**80, -1], ids=str)
async def test_token_counts_that_no_column_holds_are_unknown_on_the_row(ledger: Ledger, tokens: int):
    """I14: the provider's nonsense costs us the figure, not the answer."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    usage = TokenUsage(input_tokens=tokens, output_tokens=1)
    ended = success(run, usage=usage, original_usage=usage)
    ended.attempts[0] = attempt(usage=usage)  # type: ignore[index]
    assert await one.mark_succeeded(run, ended) == Finished()
    seen = await ledger.seen()
    fits = 0 <= tokens < 2**63
    row = await seen.run(run.run_id)
    assert row["status"] == "SUCCEEDED"
    assert row["input_tokens"] == (tokens if fits else None)
    assert row["output_tokens"] == 1
    assert (await seen.attempts(run.run_id))[0]["input_tokens"] == (tokens if fits else None)


@pytest.mark.parametrize(
    "facts",
    [{"http_status": 2**40}, {"http_status": -(2**70)}, {"retry_after_s": float("nan")}, {"retry_after_s": 1e300},
     {"retry_after_s": float("inf")}],
    ids=str,
)  # fmt: skip
async def test_odd_facts_of_an_attempt_do_not_stop_a_finish(ledger: Ledger, facts: dict[str, Any]):
    """I14: headers are written by strangers."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    ended = success(run)
    ended.attempts[0] = attempt(**facts)  # type: ignore[index]
    assert await one.mark_succeeded(run, ended) == Finished()
    assert (await (await ledger.seen()).run(run.run_id))["status"] == "SUCCEEDED"


async def test_an_answer_of_fifty_mebibytes_is_stored(autonomous: Ledger):
    """I14: more than any provider is allowed to send."""
    run = new_run(KEYED)
    one = autonomous.repo()
    await one.create_started(run)
    one._finish_budget_s = 60
    noise = random.Random(14).randbytes(in_full(FIFTY_MIB, in_short=2**20) // 4 * 3)  # noqa: S311
    text = base64.b64encode(noise).decode() * (
        FIFTY_MIB * 3 // 4 // len(noise)
    )  # compression hardly helps in full
    assert len(text) == FIFTY_MIB
    assert await one.mark_succeeded(run, success(run, text)) == Finished()
    state = await autonomous.repo("two").get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(state, Replay)
    assert state.answer.response is not None
    assert state.answer.response.text == text


async def test_replays_are_counted_in_batches(autonomous: Ledger):
    """I16: a replay writes nothing but, some time later, one number."""
    one = autonomous.repo()
    runs = [new_run(request(idempotency_key=f"k{n}")) for n in range(2)]
    for run in runs:
        await one.create_started(run)
        await one.mark_succeeded(run, success(run))
    before = await autonomous.outside.runs()
    for _ in range(3):
        one.count_replay(runs[0].run_id)
    one.count_replay(runs[1].run_id)
    assert await autonomous.outside.runs() == before
    await one.drain()
    after = {row["id"]: row for row in await autonomous.outside.runs()}
    assert [after[run.run_id]["replayed_count"] for run in runs] == [3, 1]
    assert changed(before[0], after[before[0]["id"]]) == {"replayed_count"}
    await one.drain()
    assert (await autonomous.outside.run(runs[0].run_id))["replayed_count"] == 3


async def test_drain_and_close_may_be_called_twice(autonomous: Ledger):
    """I12."""
    one = autonomous.repo()
    run = new_run(KEYED)
    await one.create_started(run)
    await one.mark_cancelled(run, cancellation())
    await one.drain()
    await one.drain()
    assert (await autonomous.outside.run(run.run_id))["status"] == "CANCELLED"
    await one.close()
    await one.close()

"""Checked output on both databases, over providers that speak the real wire format: what is asked, stored and served."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from app.llm.errors import LLMInvalidOutput, LLMKeyConflict
from app.llm.structured.wanted import wanted
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import FinishReason, ServedFrom
from tests.security.services import Stubs, wired
from tests.support.ledger import GEMINI_KEY, Outside, request

GOOD = {"vendor": "Nordlys", "total": 1480.5}
BAD = {"vendor": "Nordlys", "total": "a lot"}


class Invoice(BaseModel):
    """An invoice."""

    vendor: str
    total: float


class Cheap(BaseModel):
    """An invoice by the same schema, which is stricter than the schema says."""

    model_config = ConfigDict(title="Invoice")
    __doc__ = "An invoice."

    vendor: str
    total: float

    @field_validator("total")
    @classmethod
    def _is_small(cls, total: float) -> float:
        if total > 1000:
            raise ValueError("too much")
        return total


@pytest.fixture
def stubs() -> Iterator[Stubs]:
    with (
        StubOllama(models=("first", "big-cloud")) as ollama,
        StubGemini(models=("second",), api_key=GEMINI_KEY) as gemini,
    ):
        yield Stubs(ollama, gemini)


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


def _bodies(stub: StubOllama | StubGemini) -> list[Any]:
    return [received.body for received in stub.requests if received.ordinal]


def _ends(rows: list[Any]) -> list[tuple[str, str | None, bool]]:
    return [(row["status"], row["error_code"], bool(row["possibly_paid"])) for row in rows]


REFUSED = ("FAILED", "invalid_output", True)
ACCEPTED = ("SUCCEEDED", None, False)


async def test_a_valid_answer_is_one_row_one_attempt_and_an_object(
    db_url: str, stubs: Stubs, outside: Outside
):
    stubs.ollama.script(Reply.text("```json\n" + json.dumps(GOOD) + "\n```"))
    async with wired(db_url, stubs) as llm:
        checked = await llm.structured(Invoice, request())
    assert checked.value == Invoice(**GOOD)
    assert checked.response.served_from is ServedFrom.LIVE
    (row,) = await outside.runs()
    assert (row["status"], row["id"]) == ("SUCCEEDED", checked.response.run_id)
    assert _ends(await outside.attempts(row["id"])) == [ACCEPTED]
    (body,) = _bodies(stubs.ollama)
    assert body["format"]["required"] == ["vendor", "total"]


async def test_an_invalid_answer_is_asked_again_with_its_faults(db_url: str, stubs: Stubs, outside: Outside):
    """Each question is a send of the one run: noted before, a row of its own after."""
    stubs.ollama.script(Reply.json(BAD), Reply.json(GOOD))
    async with wired(db_url, stubs) as llm:
        checked = await llm.structured(Invoice, request())
    assert checked.value.total == 1480.5
    (row,) = await outside.runs()
    assert (row["status"], row["sends_noted"]) == ("SUCCEEDED", 2)
    assert _ends(await outside.attempts(row["id"])) == [REFUSED, ACCEPTED]
    first, second = _bodies(stubs.ollama)
    assert second["messages"][: len(first["messages"])] == first["messages"]
    said, complaint = second["messages"][len(first["messages"]) :]
    assert (said["role"], json.loads(said["content"])) == ("assistant", BAD)
    assert "$.total: Input should be a valid number" in complaint["content"]


async def test_after_all_tries_the_next_candidate_is_asked_the_original_question(
    db_url: str, stubs: Stubs, outside: Outside
):
    stubs.ollama.script(Reply.json(BAD), Reply.text("No."))
    stubs.gemini.script(Reply.json(GOOD))
    async with wired(db_url, stubs) as llm:
        checked = await llm.structured(Invoice, request("What does it cost?"))
    assert (checked.response.provider, checked.value.total) == ("gemini", 1480.5)
    assert (stubs.ollama.sends, stubs.gemini.sends) == (2, 1)
    assert _ends(await outside.attempts(checked.response.run_id)) == [REFUSED, REFUSED, ACCEPTED]
    (body,) = _bodies(stubs.gemini)
    assert [turn["parts"] for turn in body["contents"]] == [[{"text": "What does it cost?"}]]


async def test_without_any_valid_answer_the_error_holds_each_answer_and_each_fault(
    db_url: str, stubs: Stubs, outside: Outside
):
    for stub in (stubs.ollama, stubs.gemini):
        stub.always(Reply.json(BAD))
    asked = request(idempotency_key="k1")
    async with wired(db_url, stubs) as llm:
        with pytest.raises(LLMInvalidOutput) as caught:
            await llm.structured(Invoice, asked)
        rejected = caught.value.rejected
        assert [(each.provider, each.model) for each in rejected] == [
            ("ollama", "first"), ("ollama", "first"), ("gemini", "second"), ("gemini", "second"),
        ]  # fmt: skip
        assert all(json.loads(each.text) == BAD and each.faults[0].startswith("$.total") for each in rejected)
        assert "a lot" not in caught.value.message
        (row,) = await outside.runs()
        assert (row["status"], row["error_code"], bool(row["possibly_paid"])) == REFUSED
        assert _ends(await outside.attempts(row["id"])) == [REFUSED] * 4
        stubs.ollama.always(Reply.json(GOOD))
        assert (await llm.structured(Invoice, asked)).value.total == 1480.5  # the key was free


async def test_a_truncated_answer_is_never_accepted_however_valid_it_looks(
    db_url: str, stubs: Stubs, outside: Outside
):
    stubs.ollama.script(Reply.text(json.dumps(GOOD), finish="length"))
    stubs.gemini.script(Reply.json({**GOOD, "vendor": "whole"}))
    async with wired(db_url, stubs) as llm:
        checked = await llm.structured(Invoice, request(max_output_tokens=4))
    assert checked.value.vendor == "whole"
    assert (stubs.ollama.sends, stubs.gemini.sends) == (1, 1)  # asking again would cut it again
    assert _ends(await outside.attempts(checked.response.run_id)) == [REFUSED, ACCEPTED]


@pytest.mark.parametrize(
    ("limits", "sends"),
    [
        ({"max_attempts": 1}, (1, 0)),
        ({"max_attempts": 3}, (2, 1)),
        ({"retry_possibly_paid": "never"}, (1, 0)),
        ({"retry_possibly_paid": "always", "attempts_per_candidate": 1}, (2, 2)),
    ],
)
async def test_the_limits_of_a_call_hold_for_its_questions(
    db_url: str, stubs: Stubs, limits: dict[str, Any], sends: tuple[int, int]
):
    for stub in (stubs.ollama, stubs.gemini):
        stub.always(Reply.json(BAD))
    async with wired(db_url, stubs, **limits) as llm:
        with pytest.raises(LLMInvalidOutput) as caught:
            await llm.structured(Invoice, request())
    assert (stubs.ollama.sends, stubs.gemini.sends) == sends
    assert len(caught.value.rejected) == sum(sends)


async def test_a_replay_is_validated_again_and_a_conflict_is_a_clear_error(db_url: str, stubs: Stubs):
    asked = request(idempotency_key="k1")
    assert wanted(Cheap, tries=1).form == wanted(Invoice, tries=1).form
    stubs.ollama.script(Reply.json(GOOD))
    async with wired(db_url, stubs) as llm:
        first = await llm.structured(Invoice, asked)
        second = await llm.structured(Invoice, asked)
        assert (second.value, second.response.served_from) == (first.value, ServedFrom.REPLAY)
        with pytest.raises(LLMKeyConflict, match="no valid answer to what is asked for now") as caught:
            await llm.structured(Cheap, asked)
        assert caught.value.facts["faults"] == ("$.total: Value error, too much",)
        with pytest.raises(LLMKeyConflict, match="of another request"):
            await llm.structured(list[Invoice], asked)
    assert (stubs.ollama.sends, stubs.gemini.sends) == (1, 0)


async def test_a_cached_answer_is_served_only_if_it_is_valid_now(db_url: str, stubs: Stubs, outside: Outside):
    stubs.ollama.script(Reply.json(GOOD), Reply.json({**GOOD, "total": 10.0}))
    async with wired(db_url, stubs, cache_enabled=True) as llm:
        assert (await llm.structured(Invoice, request())).response.served_from is ServedFrom.LIVE
        hit = await llm.structured(Invoice, request())
        assert (hit.value.total, hit.response.served_from) == (1480.5, ServedFrom.CACHE)
        other = await llm.structured(Cheap, request())
        assert (other.value.total, other.response.served_from) == (10.0, ServedFrom.LIVE)
        keyed = await llm.structured(Cheap, request(idempotency_key="k1"))
        assert (keyed.value.total, keyed.response.served_from) == (10.0, ServedFrom.CACHE)
    assert stubs.ollama.sends == 2
    assert [row["status"] for row in await outside.runs()] == ["SUCCEEDED"] * 4


async def test_an_answer_that_a_plain_call_accepted_is_no_hit_for_a_checked_one(db_url: str, stubs: Stubs):
    stubs.ollama.script(Reply.json(BAD), Reply.json(GOOD))
    plain = wanted(Invoice, tries=1).asked(request())
    async with wired(db_url, stubs, cache_enabled=True) as llm:
        assert json.loads((await llm.chat(plain)).text) == BAD
        checked = await llm.structured(Invoice, request())
    assert (checked.value.total, checked.response.served_from) == (1480.5, ServedFrom.LIVE)


async def test_equal_checked_calls_share_one_send(db_url: str, stubs: Stubs):
    gate = stubs.ollama.hold()
    async with wired(db_url, stubs, cache_enabled=True) as llm, asyncio.TaskGroup() as group:
        calls = [group.create_task(llm.structured(Invoice, request())) for _ in range(5)]
        await asyncio.to_thread(stubs.ollama.wait_for_sends, 1)
        gate.release()
    served = sorted(call.result().response.served_from.value for call in calls)
    assert stubs.ollama.sends == 1
    assert served == ["cache"] * 4 + ["live"]
    assert len({call.result().value.vendor for call in calls}) == 1


async def test_a_candidate_without_json_schema_is_asked_in_json_mode_and_told_the_schema(
    db_url: str, stubs: Stubs
):
    """Routing excludes nobody: an Ollama `-cloud` model ignores a schema."""
    stubs.ollama.script(Reply.json(GOOD))
    async with wired(db_url, stubs, profile_balanced="ollama:big-cloud,gemini:second") as llm:
        checked = await llm.structured(Invoice, request())
    assert (checked.value.total, checked.response.model) == (1480.5, "big-cloud")
    (body,) = _bodies(stubs.ollama)
    assert body["format"] == "json"
    assert body["messages"][0]["role"] == "system"
    assert '"required":["vendor","total"]' in body["messages"][0]["content"]


async def test_joined_to_a_callers_session_it_is_checked_as_well(db_url: str, stubs: Stubs, engine: Any):
    from sqlalchemy.ext.asyncio import AsyncSession

    stubs.ollama.script(Reply.json(BAD), Reply.json(GOOD))
    async with wired(db_url, stubs) as llm, AsyncSession(engine) as session:
        checked = await llm.joined(session).structured(Invoice, request())
        await session.commit()
    assert checked.response.finish_reason is FinishReason.STOP
    assert [each.error_code for each in checked.response.attempts] == ["invalid_output", None]

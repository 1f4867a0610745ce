"""A process that was suspended and wakes up after its key was taken over: fenced, and heard by nobody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.llm.errors import LLMOutcomeUnknown
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import service
from tests.support.worker import overlapping, sends, suspended

pytestmark = pytest.mark.crash

POINTS = {"after claim": 1, "send 1": 1, "reply 1": 1, "before note_send": 1, "before finish": 1}
"""Where an owner is suspended, and how often it has sent in the end."""


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


@asynccontextmanager
async def zombies(url: str, folder: Path, points: Any) -> AsyncIterator[list[Any]]:
    """Yield while an owner of each key, named after the point, is suspended there; then its result is in the list."""
    jobs = [
        {
            "job": "zombie",
            "url": url,
            "file": str(folder / "sends"),
            "key": at,
            "at": at,
            "spool": str(folder / at),
        }
        for at in points
    ]
    async with suspended(jobs) as results:
        yield results


async def test_a_zombie_is_fenced_wherever_it_slept_and_its_caller_gets_the_winners_answer(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I1, I5, I7, I8: what the dead owner did is told on its own row, late; of its answer nobody hears."""
    async with zombies(db_url, tmp_path, POINTS) as woken:
        await outside.end_leases()
        async with service(db_url, ScriptedClient([text_reply("the winner's")] * len(POINTS))) as llm:
            won = {at: await llm.chat(request(idempotency_key=at)) for at in POINTS}
        before = {at: await outside.run(answer.run_id) for at, answer in won.items()}
    for at, told in zip(POINTS, woken, strict=True):
        assert told == {"text": "the winner's", "run": won[at].run_id, "served_from": "replay"}
        old, new = await outside.runs(idempotency_key=at)
        assert (old["status"], old["late"], old["idem_slot"]) == ("ABANDONED", True, None)
        assert len(await outside.attempts(old["id"])) == sends(tmp_path / "sends").count(at) == POINTS[at]
        assert (new["status"], new["supersedes"], new["execution"]) == ("SUCCEEDED", old["id"], 2)
        assert {**new, "replayed_count": 0} == {**before[at], "replayed_count": 0}
    assert overlapping(tmp_path / "sends") == []
    async with service(db_url) as llm:
        assert {(await llm.chat(request(idempotency_key=at))).text for at in POINTS} == {"the winner's"}


async def test_a_zombie_whose_key_nobody_took_still_succeeds(db_url: str, outside: Outside, tmp_path: Path):
    """The end of a lease alone fences nobody."""
    async with zombies(db_url, tmp_path, ["send 1", "before finish"]) as woken:
        await outside.end_leases()
    assert [told["served_from"] for told in woken] == ["live", "live"]
    assert [row["status"] for row in await outside.runs()] == ["SUCCEEDED"] * 2


async def test_where_takeovers_are_refused_a_person_decides_about_the_zombie(
    db_url: str, outside: Outside, tmp_path: Path
):
    """The error names the run and both ways on; a released run is dead, whatever its owner has to say later."""
    async with zombies(db_url, tmp_path, ["send 1", "reply 1", "before finish"]) as woken:
        await outside.end_leases()
        runs = {row["idempotency_key"]: row["id"] for row in await outside.runs()}
        client = ScriptedClient([text_reply("after release"), text_reply("forced")])
        async with service(db_url, client, on_abandoned="refuse") as llm:
            for at, run_id in runs.items():
                with pytest.raises(
                    LLMOutcomeUnknown, match="force_new_execution=True, or `signalbox runs release "
                ) as caught:
                    await llm.chat(request(idempotency_key=at))
                assert (caught.value.run_id, caught.value.possibly_paid) == (run_id, True)
                assert run_id in str(caught.value)
            assert client.sends == 0
            assert [await llm.release(runs["send 1"]) for _ in range(2)] == [True, False]
            assert (await llm.chat(request(idempotency_key="send 1"))).text == "after release"
            forced = request(idempotency_key="reply 1", force_new_execution=True)
            assert (await llm.chat(forced)).text == "forced"
            assert await llm.release(runs["before finish"])
    assert [told.get("text") for told in woken[:2]] == ["after release", "forced"]
    assert woken[2]["error"] == "fenced"
    assert woken[2]["own"].startswith("answer of process"), "paid for, so its own caller gets it, marked"
    async with service(db_url, ScriptedClient([text_reply("a new one")])) as llm:
        answer = await llm.chat(request(idempotency_key="before finish"))
    assert (answer.text, answer.served_from) == ("a new one", ServedFrom.LIVE)
    assert {row["status"] for row in await outside.runs()} == {"ABANDONED", "SUCCEEDED"}

"""A process is killed around a real HTTP request: the provider itself counts what that costs."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.llm.errors import LLMKeyInProgress
from app.llm.testing import Reply, StubOllama
from app.llm.testing.client import ScriptedClient
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import service
from tests.support.worker import worker

pytestmark = [pytest.mark.crash, pytest.mark.pg]
MID_CALL, ANSWERED = "mid-call", "before finish"
"""While the request is open; and when its answer has been read, which no database has heard of."""


@pytest.mark.tried(4)
async def test_an_owner_killed_around_its_request_costs_one_further_run_whose_sends_come_later(
    sqlite_url: str, pg_url: str, tmp_path: Path
):
    """I1, I3, I6, I7, I10: on both databases; LiteLLM is loaded once for all of these processes."""
    urls = {
        f"{at}, {url.partition(':')[0]}": url for at in (MID_CALL, ANSWERED) for url in (sqlite_url, pg_url)
    }
    with StubOllama(models=("first",)) as stub:
        jobs = {key: _job(key, url, stub, tmp_path / key) for key, url in urls.items()}
        async with worker("tests.support.http_worker") as processes:
            gate = stub.hold()
            dying = asyncio.create_task(
                processes.run([{**job, "at": key.partition(",")[0]} for key, job in jobs.items()])
            )
            await asyncio.to_thread(stub.wait_for_sends, len(urls), 50)
            for key, url in urls.items():
                assert await _story(url, key) == [("STARTED", 1, 1, 0)], (
                    "others see it before the answer is there"
                )
            _kill_those_in_mid_call(tmp_path)
            await asyncio.to_thread(stub.wait_for_abandoned, 2)
            gate.release()
            assert await dying == [None] * len(urls)
            assert (stub.sends, stub.abandoned) == (len(urls), 2), "the others died of their answers"

            for key, url in urls.items():
                await _nobody_may_before_the_lease_ends(url, key)
            stub.script(*[Reply.rate_limited(0), Reply.text("once more")] * len(urls))
            for job in jobs.values():  # one after another: whatever else is in flight is an overlap
                assert await processes.run([job]) == [{"text": "once more", "served_from": "live"}]

    asked = Counter(each.body["messages"][-1]["content"] for each in stub.requests)
    assert asked == dict.fromkeys(urls, 3), "one send of the dead, two of the one run that came after it"
    assert {each.in_flight_at_arrival for each in stub.requests[len(urls) :]} == {1}
    for key, url in urls.items():
        assert await _story(url, key) == [("ABANDONED", 1, 1, 0), ("SUCCEEDED", 2, 2, 2)]
        async with service(url, ScriptedClient()) as llm:
            answer = await llm.chat(request(key, idempotency_key=key))
        assert (answer.text, answer.served_from) == ("once more", ServedFrom.REPLAY)


def _job(key: str, url: str, stub: StubOllama, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return {"job": "ask", "url": url, "key": key, "folder": str(folder), "base_url": stub.base_url}


def _kill_those_in_mid_call(folder: Path) -> None:
    for file in folder.glob(f"{MID_CALL}*/pid"):
        os.kill(int(file.read_text()), signal.SIGKILL)


async def _story(url: str, key: str) -> list[tuple[Any, ...]]:
    """Return status, execution, noted sends and attempt rows of each run of a key."""
    outside = Outside(url)
    rows = await outside.runs(idempotency_key=key)
    story = [
        (row["status"], row["execution"], row["sends_noted"], len(await outside.attempts(row["id"])))
        for row in rows
    ]
    await outside.close()
    assert [row["supersedes"] for row in rows] == [None, *(row["id"] for row in rows)][: len(rows)]
    return story


async def _nobody_may_before_the_lease_ends(url: str, key: str) -> None:
    """Find the key taken, then let the lease end."""
    client = ScriptedClient()
    async with service(url, client) as llm:
        with pytest.raises(LLMKeyInProgress):
            await llm.chat(request(key, idempotency_key=key))
    assert client.sends == 0
    outside = Outside(url)
    for row in await outside.runs(idempotency_key=key):
        await outside.end_lease(row["id"])
    await outside.close()

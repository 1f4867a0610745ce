"""Streams that end too early: the process is killed, the provider breaks off, the listener goes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app.llm.deltas import TextDelta
from app.llm.errors import LLMKeyInProgress, LLMTimeout
from app.llm.testing import End, Failure, Reply, StubOllama
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMResponse, ServedFrom
from tests.crash.weather import Observed, Stubs
from tests.support.ledger import Outside, request
from tests.support.service import rig, service
from tests.support.worker import worker

pytestmark = [pytest.mark.crash, pytest.mark.pg]


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


# -- killed in the middle of a stream


@pytest.mark.tried(2)
async def test_an_owner_killed_in_the_middle_of_its_stream_costs_one_further_run(
    sqlite_url: str, pg_url: str, tmp_path: Path
):
    """The provider has begun to answer: nothing of it is an answer, and nobody sends before the lease is over."""
    urls = {"sqlite": sqlite_url, "postgres": pg_url}
    with StubOllama(models=("first",)) as stub:
        jobs = {key: _job(key, url, stub, tmp_path / key) for key, url in urls.items()}
        with stub.gate() as gate:
            stub.script(*[Reply.stream("Hel", gate, "lo")] * len(urls))
            async with worker("tests.support.http_worker") as processes:
                dying = [{**job, "at": "first delta"} for job in jobs.values()]
                assert await processes.run(dying) == [None] * len(urls)
                await asyncio.to_thread(stub.wait_for_abandoned, len(urls))
                assert (stub.sends, stub.chunks) == (len(urls), len(urls)), "each died of its first chunk"
                for key, url in urls.items():
                    await _nobody_may_before_the_lease_ends(url, key)
                stub.script(*[Reply.stream("once ", "more")] * len(urls))
                for job in jobs.values():
                    assert await processes.run([job]) == [{"text": "once more", "served_from": "live"}]
    assert stub.sends == 2 * len(urls)
    for key, url in urls.items():
        client = ScriptedClient()
        async with service(url, client) as llm:
            items = [item async for item in llm.stream(request(key, idempotency_key=key))]
        assert items[0] == TextDelta("once more")
        assert isinstance(items[1], LLMResponse)
        assert (items[1].served_from, client.sends) == (ServedFrom.REPLAY, 0)


def _job(key: str, url: str, stub: StubOllama, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    place = {"folder": str(folder), "base_url": stub.base_url}
    return {"job": "ask", "url": url, "key": key, "streams": True, **place}


async def _nobody_may_before_the_lease_ends(url: str, key: str) -> None:
    client, outside = ScriptedClient(), Outside(url)
    async with service(url, client) as llm:
        with pytest.raises(LLMKeyInProgress):
            await anext(llm.stream(request(key, idempotency_key=key)))
    (row,) = await outside.runs(idempotency_key=key)
    assert (row["status"], row["sends_noted"], row["response_payload"], client.sends) == (
        "STARTED",
        1,
        None,
        0,
    )
    await outside.end_lease(row["id"])
    await outside.close()


# -- over both providers


FAULTS = {
    "connection lost": Reply.stream(end=End.BROKEN),
    "nothing at all": Reply.stream(end=End.UNFINISHED),
    "error": Reply.stream(Failure(status=503, message="server busy, please try again")),
    "503": Reply.status(503),
    "garbage": Reply.garbage(),
}
"""What goes wrong before the first chunk, or instead of the next one."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_breaks_before_the_first_chunk_falls_back(db_url: str, fault: str):
    with Stubs(NO_CHANCE, 0) as stubs:
        stubs.first.script(*[FAULTS[fault]] * 2)
        stubs.second.script(Reply.stream("fi", "ne"))
        async with rig(db_url, Observed(stubs)) as r:
            items = [item async for item in r.llm.stream(request())]
        assert stubs.second.sends == 1
    assert items[:2] == [TextDelta("fi"), TextDelta("ne")]
    assert [each.status for each in items[2].attempts][-2:] == ["FAILED", "SUCCEEDED"]


class _Never:
    """A chance that strikes never: the weather is fine."""

    def random(self) -> float:
        return 1.0


NO_CHANCE: Any = _Never()

LATER = {
    "connection lost": (lambda gate: Reply.stream("Hel", gate, end=End.BROKEN), "unavailable"),
    "last chunk missing": (lambda gate: Reply.stream("Hel", gate, end=End.UNFINISHED), "unavailable"),
    "error": (lambda gate: Reply.stream("Hel", gate, Failure(status=503)), "unavailable"),
    "garbage": (lambda gate: Reply.stream("Hel", gate, b"<html>\n"), "bad_response"),
}


@pytest.mark.parametrize("fault", LATER)
async def test_what_breaks_after_the_first_chunk_is_final(db_url: str, outside: Outside, fault: str):
    """One send, one FAILED row, possibly paid, with what had arrived."""
    with Stubs(NO_CHANCE, 0) as stubs:
        gate = stubs.first.gate()
        reply, code = LATER[fault]
        stubs.first.script(reply(gate))
        async with rig(db_url, Observed(stubs), retry_possibly_paid="always") as r:
            async with r.llm.stream(request(idempotency_key="k")) as stream:
                assert await anext(stream) == TextDelta("Hel")
                gate.release()
                with pytest.raises(Exception, match="first") as caught:
                    await anext(stream)
            await r.llm.drain()
        assert stubs.sends == 1
    assert (caught.value.code, caught.value.possibly_paid) == (code, True)  # type: ignore[attr-defined]
    (row,) = await outside.runs()
    assert (row["status"], row["error_code"], row["possibly_paid"]) == ("FAILED", code, True)
    body = json.loads((await outside.texts())[row["response_payload"]])
    assert (body["parts"], body["finish_reason"]) == ([{"type": "text", "text": "Hel"}], None)


async def test_a_stall_before_the_first_chunk_falls_back_and_one_after_it_does_not(db_url: str):
    with Stubs(NO_CHANCE, 0) as stubs, stubs.first.gate() as gate:
        stubs.first.script(Reply.stream(gate, "late"), Reply.stream("Hel", gate))
        stubs.second.script(Reply.stream("fine"))
        client = Observed(stubs)
        limits = {"attempts_per_candidate": 1, "attempt_timeout_s": 0.5}
        async with rig(db_url, client, **limits) as r:
            assert TextDelta("fine") in [item async for item in r.llm.stream(request())]
            client._inner._settings = client._inner._settings.model_copy(
                update={"stream_idle_timeout_s": 0.2}
            )
            async with r.llm.stream(request("again")) as stream:
                assert await anext(stream) == TextDelta("Hel")
                with pytest.raises(LLMTimeout, match="LLM_STREAM_IDLE_TIMEOUT_S"):
                    await anext(stream)


async def test_a_listener_that_leaves_early_closes_the_providers_connection(db_url: str, outside: Outside):
    """And leaves one CANCELLED row, with what had arrived."""
    with Stubs(NO_CHANCE, 0) as stubs, stubs.first.gate() as gate:
        stubs.first.script(*[Reply.stream("Hel", gate, "lo")] * 2)
        client = Observed(stubs)
        async with rig(db_url, client) as r:
            async with r.llm.stream(request()) as stream:
                await anext(stream)
            await asyncio.to_thread(stubs.first.wait_for_abandoned, 1)
            async for _ in r.llm.stream(request("again")):
                break
            await asyncio.to_thread(stubs.first.wait_for_abandoned, 2)
            await r.llm.drain()
            assert client.limits.in_flight() == 0
    rows = await outside.runs()
    assert [(row["status"], row["possibly_paid"]) for row in rows] == [("CANCELLED", True)] * 2
    assert all(row["response_payload"] for row in rows)

"""Streams of the service: committed at the first delta, settled like any call, and gone when their listener goes."""

import asyncio
import gc
import json
from typing import Any

import pytest

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, ToolCallDelta, deltas_of, parts_of
from app.llm.errors import LLMCancelled, LLMContractError, LLMInvalidRequest, LLMTimeout, LLMUnavailable
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.service import LLMService
from app.llm.streams import ROOM, LLMStream
from app.llm.testing.client import ScriptedClient, Told, text_reply
from app.llm.types import FinishReason, LLMRequest, LLMResponse, ServedFrom, TokenUsage
from tests.support.ledger import Outside, request
from tests.support.service import Watched, limited, rig, service, timed_out


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


HELLO = (TextDelta("Hel"), TextDelta("lo"))
ANSWERED = Told(deltas=HELLO, then=text_reply("Hello"))


async def heard_of(llm: LLMService, asked: LLMRequest) -> tuple[list[Delta], LLMResponse]:
    """Return all deltas of a call, and its answer."""
    async with llm.stream(asked) as stream:
        *deltas, response = [item async for item in stream]
    assert isinstance(response, LLMResponse)
    assert stream.response is response
    return [each for each in deltas if not isinstance(each, LLMResponse)], response


async def test_deltas_come_first_and_the_response_last(db_url: str, outside: Outside):
    async with service(db_url, ScriptedClient([ANSWERED])) as llm:
        deltas, response = await heard_of(llm, request())
    assert tuple(deltas) == HELLO
    assert (response.text, response.served_from) == ("Hello", ServedFrom.LIVE)
    row = (await outside.runs())[0]
    assert (row["id"], row["status"]) == (response.run_id, "SUCCEEDED")


async def test_without_a_block_the_iterator_does_it_all(db_url: str):
    async with service(db_url, ScriptedClient([ANSWERED])) as llm:
        items = [item async for item in llm.stream(request())]
    assert tuple(items[:-1]) == HELLO


async def test_there_is_no_response_before_the_end(db_url: str):
    async with service(db_url, ScriptedClient([ANSWERED])) as llm, llm.stream(request()) as stream:
        await anext(stream)
        with pytest.raises(RuntimeError, match="before its end"):
            _ = stream.response


async def test_calls_are_named_as_in_the_response(db_url: str):
    calls = [ToolCallPart(id=f"call_{i}", name="f", arguments={"i": i}) for i in range(2)]
    reply = ProviderReply(parts=tuple(calls), finish_reason=FinishReason.TOOL_CALLS, usage=TokenUsage())
    told = Told(deltas=tuple(deltas_of(tuple(calls))), then=reply)
    async with service(db_url, ScriptedClient([told])) as llm:
        deltas, response = await heard_of(llm, request())
    assert parts_of(deltas) == response.parts
    assert [each.id for each in deltas if isinstance(each, ToolCallDelta)] == [
        call.id for call in response.tool_calls
    ]


# -- commit at the first delta


async def test_before_the_first_delta_the_next_candidate_is_asked(db_url: str):
    client = ScriptedClient([limited(), limited(), ANSWERED])
    async with rig(db_url, client) as r:
        deltas, response = await heard_of(r.llm, request())
    assert tuple(deltas) == HELLO
    assert [each.status for each in response.attempts] == ["FAILED", "FAILED", "SUCCEEDED"]


@pytest.mark.parametrize("failed", [limited(), timed_out(), LLMUnavailable("broke off", provider="ollama")])
async def test_after_it_an_error_is_final_and_what_had_arrived_is_kept(
    db_url: str, outside: Outside, failed: Any
):
    """No second send, whatever the error would allow; the payload of the row holds the beginning."""
    client = ScriptedClient([Told(deltas=HELLO, then=failed), text_reply("never")])
    async with rig(db_url, client, retry_possibly_paid="always") as r:
        stream = r.llm.stream(request())
        heard = [await anext(stream), await anext(stream)]
        with pytest.raises(type(failed)) as caught:
            await anext(stream)
    assert (tuple(heard), client.sends, caught.value.possibly_paid) == (HELLO, 1, True)
    run = (await outside.runs())[0]
    attempt = (await outside.attempts(run["id"]))[0]
    assert (run["status"], attempt["status"]) == ("FAILED", "FAILED")
    assert run["possibly_paid"]
    assert attempt["possibly_paid"]
    assert attempt["cost_usd"] is None or attempt["cost_usd"] == 0
    assert await stored_text(outside, run) == "Hello"


async def stored_text(outside: Outside, run: Any) -> str | None:
    """Return the text that a run's response payload holds."""
    if run["response_payload"] is None:
        return None
    body = json.loads((await outside.texts())[run["response_payload"]])
    assert body["finish_reason"] is None
    return "".join(part["text"] for part in body["parts"])


async def test_a_partial_answer_is_neither_replayed_nor_a_hit(db_url: str):
    broken = Told(deltas=HELLO, then=timed_out())
    client = ScriptedClient([broken, text_reply("whole"), text_reply("other")])
    async with rig(db_url, client) as r:
        keyed = request(idempotency_key="k1")
        with pytest.raises(LLMTimeout):
            await heard_of(r.llm, keyed)
        _, response = await heard_of(r.llm, keyed)
        assert (response.text, response.served_from, client.sends) == ("whole", ServedFrom.LIVE, 2)


async def test_only_hashes_are_kept_of_a_partial_answer_where_that_is_wanted(db_url: str, outside: Outside):
    client = ScriptedClient([Told(deltas=HELLO, then=timed_out())])
    async with rig(db_url, client, store_payloads="hash") as r:
        with pytest.raises(LLMTimeout):
            await heard_of(r.llm, request())
    assert await outside.payloads() == []


# -- out of the ledger


@pytest.mark.parametrize("key", ["k1", None])
async def test_a_replay_and_a_hit_stream_from_the_ledger(db_url: str, key: str | None):
    parts = (ThinkingPart(text="hm"), TextPart(text="Hello"), ToolCallPart(id="x", name="f"))
    reply = ProviderReply(parts=parts, finish_reason=FinishReason.TOOL_CALLS, usage=TokenUsage())
    async with service(db_url, ScriptedClient([reply]), cache_enabled=True) as llm:
        first = await llm.chat(request(idempotency_key=key))
        await llm.drain()
        deltas, response = await heard_of(llm, request(idempotency_key=key))
    assert response.served_from is (ServedFrom.REPLAY if key else ServedFrom.CACHE)
    assert deltas == deltas_of(first.parts)
    assert parts_of(deltas) == response.parts
    assert deltas[0] == ThinkingDelta("hm")


async def test_a_stream_waits_for_the_call_that_works_on_the_same(db_url: str):
    """Coalescing: the leader streams, the follower is given the answer as a whole."""
    asked, gate = asyncio.Event(), asyncio.Event()

    async def look(*_: Any) -> None:
        asked.set()
        await gate.wait()

    client = Watched(look, [text_reply("once")])
    async with service(db_url, client, cache_enabled=True) as llm:
        both = [asyncio.ensure_future(heard_of(llm, request())) for _ in range(2)]
        await asyncio.wait_for(asked.wait(), 10)
        gate.set()
        (one, first), (other, second) = await asyncio.gather(*both)
    assert (one, other, client.sends) == ([TextDelta("once")], [TextDelta("once")], 1)
    assert {first.served_from, second.served_from} == {ServedFrom.LIVE, ServedFrom.CACHE}


# -- leaving


async def test_leaving_the_block_cancels_the_call_and_keeps_what_had_arrived(db_url: str, outside: Outside):
    async with service(db_url, ScriptedClient([Told(deltas=HELLO)])) as llm:
        async with llm.stream(request()) as stream:
            assert [await anext(stream), await anext(stream)] == list(HELLO)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    run = (await outside.runs())[0]
    attempt = (await outside.attempts(run["id"]))[0]
    assert (run["status"], attempt["status"], run["possibly_paid"]) == ("CANCELLED", "CANCELLED", True)
    assert await stored_text(outside, run) == "Hello"


async def test_an_iterator_that_is_dropped_leaves_no_task(db_url: str, outside: Outside):
    async with service(db_url, ScriptedClient([Told(deltas=HELLO)])) as llm:
        async for _ in llm.stream(request()):
            break
        gc.collect()
        await asyncio.wait(llm._streaming._tasks, timeout=10)
        assert len(llm._streaming._tasks) == 0
        await llm.drain()
    assert (await outside.runs())[0]["status"] == "CANCELLED"


async def test_a_service_that_closes_ends_its_streams(db_url: str, outside: Outside):
    async with service(db_url, ScriptedClient([Told(deltas=HELLO)])) as llm:
        stream = llm.stream(request())
        await anext(stream)
    assert (await outside.runs())[0]["status"] == "CANCELLED"
    with pytest.raises(LLMCancelled):
        await anext(stream)


@pytest.mark.parametrize("closed", ["service", "stream"])
async def test_who_waits_for_a_stream_that_somebody_closes_is_told_and_not_cancelled(
    sqlite_url: str, closed: str
):
    async with service(sqlite_url, ScriptedClient([Told(deltas=HELLO)])) as llm:
        stream = llm.stream(request())
        for _ in HELLO:
            await anext(stream)
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        await (llm.close() if closed == "service" else stream.aclose())
        with pytest.raises(LLMCancelled, match=f"the {closed} was closed while") as caught:
            await reader
        assert caught.value.possibly_paid
        assert [item async for item in stream] == []


async def read(stream: LLMStream) -> Delta | LLMResponse:
    return await anext(stream)


async def test_a_second_reader_of_a_stream_is_refused_and_the_first_goes_on(sqlite_url: str):
    async with service(sqlite_url, ScriptedClient([ANSWERED])) as llm, llm.stream(request()) as stream:
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        with pytest.raises(LLMContractError, match="another task reads this stream"):
            await anext(stream)
        heard = [await reader, *[item async for item in stream]]
    assert tuple(heard[:-1]) == HELLO
    assert isinstance(heard[-1], LLMResponse)


async def test_a_stream_that_was_closed_before_it_began_sends_nothing(db_url: str):
    client = ScriptedClient()
    async with service(db_url, client) as llm:
        stream = llm.stream(request())
        await stream.aclose()
        assert [item async for item in stream] == []
        with pytest.raises(RuntimeError, match="closed"):
            await stream.__aenter__()
    assert client.sends == 0


async def test_an_error_of_the_contract_is_raised_where_the_stream_is_read(db_url: str):
    async with service(db_url) as llm:
        stream = llm.stream(request(force_new_execution=True))
        with pytest.raises(LLMInvalidRequest):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_slow_listener_holds_the_provider_back(db_url: str):
    """No more than `ROOM` deltas lie between them."""
    told = list[int]()

    class Chatty(ScriptedClient):
        async def send(self, *_: Any, on_send: Any, listener: Any = None, **__: Any) -> ProviderReply:
            on_send(0.0)
            for number in range(3 * ROOM):
                told.append(number)
                await listener.on_delta(TextDelta(f"{number} "))
            return text_reply("".join(f"{number} " for number in told))

    async with service(db_url, Chatty()) as llm, llm.stream(request()) as stream:
        await anext(stream)
        for _ in range(100):
            await asyncio.sleep(0)
        assert ROOM <= len(told) <= ROOM + 2
        rest = [item async for item in stream]
    assert len(rest) == 3 * ROOM


def test_deltas_of_one_kind_are_one_part():
    deltas = [ThinkingDelta("a"), ThinkingDelta("b", "s"), TextDelta("c"), TextDelta("d"), ThinkingDelta("e")]
    assert parts_of(deltas) == (
        ThinkingPart(text="ab", signature="s"),
        TextPart(text="cd"),
        ThinkingPart(text="e"),
    )

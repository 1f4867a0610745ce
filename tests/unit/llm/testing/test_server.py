"""The life of a stub: script, gates, counts and the port, over real sockets and without sleeping."""

import asyncio
import doctest
import importlib
import io
import json
import threading

import aiohttp
import pytest

from app.llm.testing import Reply, StubGemini, StubOllama

CHAT = {"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "Hello there"}]}


async def chat(stub: StubOllama, client: aiohttp.ClientSession) -> tuple[int, str]:
    async with client.post(f"{stub.base_url}/api/chat", json=CHAT) as answer:
        body = await answer.json(content_type=None)
        return answer.status, body["message"]["content"] if answer.status == 200 else body["error"]


async def test_scripted_replies_come_in_order_then_the_standing_one_then_the_derived_one():
    with StubOllama() as stub:
        async with aiohttp.ClientSession() as client:
            stub.script(Reply.text("one"), Reply.text("two"))
            stub.always(Reply.text("standing"))
            said = [(await chat(stub, client))[1] for _ in range(4)]
            stub.always(None)
            said.append((await chat(stub, client))[1])
    assert said == ["one", "two", "standing", "standing", "Stub answer about: Hello there."]


async def test_a_held_call_is_counted_before_it_is_answered():
    with StubOllama() as stub:
        async with aiohttp.ClientSession() as client:
            gate = stub.hold()
            waiting = [asyncio.create_task(chat(stub, client)) for _ in range(3)]
            await asyncio.to_thread(stub.wait_for_sends, 3)
            assert not any(task.done() for task in waiting)
            gate.release()
            gate.release()
            await asyncio.gather(*waiting)
        assert stub.sends == stub.max_in_flight == 3
        assert sorted(each.in_flight_at_arrival for each in stub.requests) == [1, 2, 3]


async def test_leaving_the_block_of_a_hold_releases_it():
    with StubOllama() as stub:
        async with aiohttp.ClientSession() as client:
            with stub.hold():
                waiting = asyncio.create_task(chat(stub, client))
                await asyncio.to_thread(stub.wait_for_sends, 1)
            assert (await waiting)[0] == 200
            assert (await chat(stub, client))[0] == 200


async def test_calls_one_after_the_other_are_never_in_flight_together():
    with StubOllama() as stub:
        async with aiohttp.ClientSession() as client:
            for _ in range(20):
                await chat(stub, client)
        assert (stub.sends, stub.max_in_flight) == (20, 1)
        assert [each.ordinal for each in stub.requests] == list(range(1, 21))


async def test_the_record_keeps_method_path_lower_case_headers_and_both_forms_of_the_body():
    with StubOllama() as stub:
        async with aiohttp.ClientSession() as client:
            await client.post(f"{stub.base_url}/api/chat?a=1", json=CHAT, headers={"X-Trace": "abc"})
            await client.post(f"{stub.base_url}/api/show", data=b"not json")
    first, second = stub.requests
    assert (first.method, first.path, dict(first.query), first.body) == (
        "POST",
        "/api/chat",
        {"a": "1"},
        CHAT,
    )
    assert first.headers["x-trace"] == "abc"
    assert (second.raw, second.body, second.ordinal) == (b"not json", None, 0)


def test_neither_headers_nor_query_show_in_the_repr_of_a_request():
    """A user who points a real key at the stub must not find it in a CI log."""

    async def call(stub: StubGemini) -> None:
        async with aiohttp.ClientSession() as client:
            url = f"{stub.base_url}/models/gemini-2.5-flash:generateContent"
            await client.post(url, params={"key": "s3cret"}, json={}, headers={"x-goog-api-key": "s3cret"})

    with StubGemini() as stub:
        asyncio.run(call(stub))
    assert "s3cret" not in repr(stub.requests)


async def test_a_body_above_one_mebibyte_is_accepted():
    with StubOllama() as stub:
        long = {**CHAT, "messages": [{"role": "user", "content": "words " * 400_000}]}
        big = io.BytesIO(json.dumps(long).encode())
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{stub.base_url}/api/chat", data=big) as got,
        ):
            assert got.status == 200
        assert len(stub.requests[0].raw) > 2_000_000


async def test_down_refuses_connections_and_up_returns_to_the_same_port():
    with StubOllama() as stub:
        before = stub.base_url
        async with aiohttp.ClientSession() as client:
            assert (await chat(stub, client))[0] == 200
            for _ in range(2):
                await asyncio.to_thread(stub.down)
                await asyncio.to_thread(stub.down)
                with pytest.raises(aiohttp.ClientConnectorError):
                    await chat(stub, client)
                stub.up()
                stub.up()
                assert (await chat(stub, client))[0] == 200
        assert stub.base_url == before
        assert stub.sends == 3


async def test_down_resets_a_call_that_is_running():
    with StubOllama() as stub:
        stub.hold()
        async with aiohttp.ClientSession() as client:
            running = asyncio.create_task(chat(stub, client))
            await asyncio.to_thread(stub.wait_for_sends, 1)
            stub.down()
            with pytest.raises(aiohttp.ClientError):
                await running
        await asyncio.to_thread(stub.wait_for_abandoned, 1)


async def test_a_client_that_hangs_up_is_noticed():
    with StubOllama() as stub:
        async with aiohttp.ClientSession() as client:
            stub.hold()
            running = asyncio.create_task(chat(stub, client))
            await asyncio.to_thread(stub.wait_for_sends, 1)
            running.cancel()
            await asyncio.to_thread(stub.wait_for_abandoned, 1)
        assert stub.abandoned == 1


def test_waiting_in_vain_names_what_was_received():
    with StubOllama() as stub, pytest.raises(TimeoutError, match="no 1 model calls within"):
        stub.wait_for_sends(1, timeout_s=0)


def test_a_reply_of_the_other_provider_is_refused_when_it_is_scripted():
    with pytest.raises(ValueError, match="only gemini answers like this"):
        StubOllama().script(Reply.blocked())
    with pytest.raises(ValueError, match="only ollama answers like this"):
        StubGemini().always(Reply.load())


def test_a_stub_ends_its_thread_and_may_be_closed_twice():
    stub = StubOllama().start()
    names = {thread.name for thread in threading.enumerate()}
    stub.close()
    stub.close()
    assert "stub-ollama" in names
    assert "stub-ollama" not in {thread.name for thread in threading.enumerate()}


async def test_closing_ends_a_held_call_and_a_later_release_does_no_harm():
    stub = StubOllama().start()
    gate = stub.hold()
    async with aiohttp.ClientSession() as client:
        running = asyncio.create_task(chat(stub, client))
        await asyncio.to_thread(stub.wait_for_sends, 1)
        await asyncio.to_thread(stub.close)
        with pytest.raises(aiohttp.ClientError):
            await running
    gate.release()


def test_misuse_of_the_life_cycle_is_refused():
    stub = StubOllama()
    with pytest.raises(RuntimeError, match="start the stub"):
        _ = stub.base_url
    with pytest.raises(RuntimeError, match="not running"):
        stub.down()
    with stub, pytest.raises(RuntimeError, match="already started"):
        stub.start()


async def test_two_stubs_run_side_by_side():
    with StubOllama() as one, StubOllama() as other:
        async with aiohttp.ClientSession() as client:
            one.hold()
            waiting = asyncio.create_task(chat(one, client))
            await asyncio.to_thread(one.wait_for_sends, 1)
            assert (await chat(other, client))[0] == 200
            assert not waiting.done()
            waiting.cancel()


def test_a_port_that_cannot_be_had_fails_in_the_thread_that_asked(monkeypatch):
    def refused(_port: int) -> None:
        raise OSError("no port left")

    monkeypatch.setattr("app.llm.testing.listener._bound", refused)
    stub = StubOllama()
    with pytest.raises(OSError, match="no port left"):
        stub.start()
    stub.close()


@pytest.mark.parametrize("module", ["app.llm.testing.ollama", "app.llm.testing.gemini"])
def test_the_examples_of_the_docstrings_run(module):
    assert doctest.testmod(importlib.import_module(module)) == (0, 2)

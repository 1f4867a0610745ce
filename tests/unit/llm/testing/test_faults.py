"""Every way in which an answer breaks on its way to the client, seen from a real client."""

import json

import aiohttp
import pytest

from app.llm.testing import Reply, StubGemini, StubOllama

CHAT = {"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "Hello there"}]}
GENERATE = {"contents": [{"role": "user", "parts": [{"text": "Hello there"}]}]}


async def send(stub: StubOllama | StubGemini, timeout_s: float = 30) -> tuple[aiohttp.ClientResponse, bytes]:
    """Post one model call over a connection of its own."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        if isinstance(stub, StubOllama):
            post = client.post(f"{stub.base_url}/api/chat", json=CHAT, allow_redirects=False)
        else:
            url = f"{stub.base_url}/models/gemini-2.5-flash:generateContent"
            post = client.post(
                url, json=GENERATE, headers={"x-goog-api-key": "stub-key"}, allow_redirects=False
            )
        async with post as answer:
            return answer, await answer.read()


@pytest.fixture(params=[StubOllama, StubGemini])
def stub(request):
    with request.param() as running:
        yield running


@pytest.mark.parametrize("abrupt", [True, False])
async def test_a_reset_before_headers_leaves_no_byte(stub, abrupt):
    stub.script(Reply.reset(abrupt=abrupt))
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await send(stub)
    assert stub.sends == 1


@pytest.mark.parametrize("abrupt", [True, False])
async def test_a_reset_after_headers_breaks_the_body(stub, abrupt):
    stub.script(Reply.reset(before_headers=False, abrupt=abrupt))
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        await send(stub)


async def test_a_truncated_body_is_shorter_than_promised(stub):
    stub.script(Reply.truncated(Reply.text("a long answer")), Reply.truncated())
    for _ in range(2):
        with pytest.raises(aiohttp.ClientPayloadError):
            await send(stub)


async def test_the_stub_serves_on_after_a_broken_connection(stub):
    stub.script(Reply.reset(), Reply.truncated(), Reply.text("still here"))
    for _ in range(2):
        with pytest.raises(aiohttp.ClientError):
            await send(stub)
    _, body = await send(stub)
    assert b"still here" in body
    assert stub.max_in_flight == 1


@pytest.mark.parametrize("headers", [False, True])
async def test_a_dripping_answer_arrives_whole_for_a_client_that_waits(stub, headers):
    stub.script(Reply.drip(0, Reply.json({"slow": True}), headers=headers))
    answer, body = await send(stub)
    assert answer.status == 200
    assert b"slow" in json.dumps(json.loads(body)).encode()


@pytest.mark.parametrize("headers", [False, True])
async def test_a_dripping_answer_outlasts_a_total_timeout_and_counts_as_abandoned(stub, headers):
    stub.script(Reply.drip(30, headers=headers))
    with pytest.raises(TimeoutError):
        await send(stub, timeout_s=0.2)
    stub.wait_for_abandoned(1)


async def test_a_delayed_reply_outlasts_a_timeout(stub):
    stub.script(Reply.text("too late").after(30))
    with pytest.raises(TimeoutError):
        await send(stub, timeout_s=0.2)
    stub.wait_for_abandoned(1)


async def test_a_huge_body_has_the_size_that_was_asked_for(stub):
    stub.script(Reply.huge(300_000), Reply.huge(5))
    sizes = [len((await send(stub))[1]) for _ in range(2)]
    assert sizes == [300_000, 5]


async def test_garbage_empty_raw_and_redirect_travel_as_they_are(stub):
    stub.script(
        Reply.garbage(),
        Reply.empty(),
        Reply.raw(b"[1]", status=418, content_type="text/x", headers={"X-A": "b"}),
        Reply.redirect("http://127.0.0.1:9/elsewhere"),
    )
    (html, page), (empty, nothing), (raw, body), (redirect, _) = [await send(stub) for _ in range(4)]
    assert (html.status, html.content_type, page[:6]) == (200, "text/html", b"<html>")
    assert (empty.status, nothing) == (200, b"")
    assert (raw.status, raw.content_type, raw.headers["X-A"], body) == (418, "text/x", "b", b"[1]")
    assert (redirect.status, redirect.headers["Location"]) == (307, "http://127.0.0.1:9/elsewhere")


async def test_a_status_carries_headers_body_and_message(stub):
    stub.script(
        Reply.status(429, headers={"Retry-After": "3"}),
        Reply.status(500, body={"mine": 1}),
        Reply.status(400, message="no such luck"),
        Reply.status(599),
    )
    (first, _), (_, second), (_, third), (last, _) = [await send(stub) for _ in range(4)]
    assert (first.status, first.headers["Retry-After"]) == (429, "3")
    assert json.loads(second) == {"mine": 1}
    assert b"no such luck" in third
    assert last.status == 599

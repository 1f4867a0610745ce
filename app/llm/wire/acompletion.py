"""The lane of every provider that LiteLLM knows: `litellm.acompletion`, whose HTTP client and timeouts are ours.

LiteLLM hides status, headers and bytes of an answer, repeats a request whose connection closed before the headers,
leaves a task behind for each, and has no limit of size. So `_post` takes the place of its HTTP client's `post`, and
gives LiteLLM an answer that is free of what it would stumble over.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx

from app.llm.candidates import Candidate
from app.llm.messages import ThinkingPart
from app.llm.providers import known
from app.llm.providers.openai_messages import SEALED_BY_ANTHROPIC
from app.llm.types import LLMProvider, WireFormat
from app.llm.wire.acompletion_stream import IN_PIECES, LibraryReader, MendedStream, cut_off, tool_call
from app.llm.wire.answers import Answer
from app.llm.wire.exchange import GOOD, Exchange, UnusableReply
from app.llm.wire.http import OneRequestHTTP
from app.llm.wire.loading import make_known
from app.llm.wire.mending import mended
from app.llm.wire.outlet import Outlet
from app.llm.wire.parsing import LENGTH, thought_first
from app.llm.wire.rendering import as_sent


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of `acompletion`, as its HTTP client has to know it."""

    wire: WireFormat
    line: OneRequestHTTP
    exchange: Exchange
    options: Mapping[str, Any]
    listening: "_Listening | None" = None


@dataclass(frozen=True, slots=True)
class _Listening:
    """What a call that streams has besides: who reads, and what is left open until it has ended."""

    reader: LibraryReader
    opened: AsyncExitStack


_current: ContextVar[_Call] = ContextVar("llm_acompletion")


class AcompletionLane:
    """Lets LiteLLM do all but the HTTP."""

    def __init__(self, library: Any, lines: Mapping[LLMProvider, OneRequestHTTP]) -> None:
        from litellm._internal_context import is_internal_call  # noqa: PLC0415  # lazy: LiteLLM is loaded by now

        self._library = library
        self._lines = lines
        self._internal_call = is_internal_call
        self._client = _client()

    async def send(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange
    ) -> Answer | None:
        """Return what the candidate said; as in `Lane.send`."""
        with self._calling(candidate, options, exchange):
            response = await self._completion(options)
        return _answer(response, known()[candidate.provider].wire)

    async def stream(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange, outlet: Outlet
    ) -> None:
        """Put what the candidate says into `outlet` as it arrives; as in `Lane.stream`.

        Only LiteLLM's reading of the provider's chunks is used. Its wrapper around that counts tokens, judges what
        was said and leaves tasks behind.
        """
        wire = known()[candidate.provider].wire
        reader = outlet.opened(LibraryReader(wire, exchange))
        counted = {"stream_options": {"include_usage": True}} if wire is WireFormat.OPENAI else {}
        async with AsyncExitStack() as opened:
            with self._calling(candidate, options, exchange, _Listening(reader, opened)):
                wrapper = await self._completion({**options, **counted, "stream": True})
                if wrapper.completion_stream is None:
                    await wrapper.fetch_stream()
                async for chunk in wrapper.completion_stream:
                    await outlet.give(reader.add(chunk))

    @contextmanager
    def _calling(
        self,
        candidate: Candidate,
        options: Mapping[str, Any],
        exchange: Exchange,
        listening: _Listening | None = None,
    ) -> Iterator[None]:
        make_known(self._library, options["model"], candidate)
        provider = candidate.provider
        wire = known()[provider].wire
        call = _current.set(_Call(wire, self._lines[provider], exchange, options, listening))
        # Calls within LiteLLM are not logged; any other leaves a task of its logging behind in the event loop.
        internal = self._internal_call.set(True)
        try:
            yield
        finally:
            self._internal_call.reset(internal)
            _current.reset(call)

    async def _completion(self, options: Mapping[str, Any]) -> Any:
        return await self._library.acompletion(**options, client=self._client, num_retries=0, max_retries=0)


def _client() -> Any:
    """Return an HTTP client of LiteLLM's that posts by us and does nothing else."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler  # noqa: PLC0415  # lazy, as above

    client = AsyncHTTPHandler(transport=httpx.AsyncBaseTransport())  # refuses all
    client.client = client.client  # hands it over: else a task of LiteLLM's closes it some day
    client.post = _post
    return client


async def _post(
    url: str,
    *,
    headers: Mapping[str, str],
    data: str | None = None,
    json: Any = None,  # a name that LiteLLM gives
    **_unused: Any,  # timeout, stream, logging_obj ...
) -> httpx.Response:
    """Send one request of the current call and return its answer; called by LiteLLM.

    Raises:
        httpx.HTTPStatusError: The status is not a good one.
        Exception: As `OneRequestHTTP.send`.
    """
    call = _current.get()
    sent = _authorized(as_sent(headers), call.options)
    body = (data if data is not None else _dumped(json)).encode()
    if call.listening is not None and _streams(call, body):
        return await _listened(call, call.listening, url, sent, body)
    await call.line.send(url, sent, body, call.exchange)
    return httpx.Response(
        call.exchange.status or 0, content=_readable(call), request=httpx.Request("POST", url)
    ).raise_for_status()


async def _listened(
    call: _Call, listening: _Listening, url: str, headers: Mapping[str, str], body: bytes
) -> httpx.Response:
    exchange, request = call.exchange, httpx.Request("POST", url)
    posted = await listening.opened.enter_async_context(call.line.stream(url, headers, body, exchange))
    if exchange.status not in GOOD:
        exchange.body = await posted.whole()
        return httpx.Response(exchange.status or 0, request=request).raise_for_status()
    stream = MendedStream(call.wire, posted, exchange, listening.reader)
    return httpx.Response(exchange.status or 0, stream=stream, request=request)


def _streams(call: _Call, body: bytes) -> bool:
    """Return whether a stream is asked for after all: LiteLLM asks Groq for none where a schema is to be held to."""
    return call.wire is not WireFormat.OPENAI or json.loads(body).get("stream") is True


def _readable(call: _Call) -> bytes:
    """Return what LiteLLM is given to read; an error's body is read by us alone."""
    if call.exchange.status not in GOOD:
        return b""
    if call.listening is not None:  # the whole answer is one chunk
        call.listening.reader.chunks, call.listening.reader.finished = 1, True
    try:
        return mended(call.wire, call.exchange)
    except UnusableReply as error:
        call.exchange.failure = error  # for LiteLLM dresses it up
        raise


def _dumped(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)


def _authorized(headers: dict[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    """Return headers without the Authorization that LiteLLM adds of its own accord, from the environment."""
    wanted = as_sent(options.get("headers", {})).get("authorization")
    if wanted is not None:
        return {**headers, "authorization": wanted}
    if "api_key" not in options:
        headers.pop("authorization", None)
    return headers


def _answer(response: Any, wire: WireFormat) -> Answer | None:  # litellm.ModelResponse
    if not response.choices:
        return None
    choice = response.choices[0]
    text, thoughts = choice.message.content, _thoughts(choice.message, wire)
    if wire is WireFormat.OPENAI and text and not thoughts:
        thought, text = thought_first(text)
        thoughts = [ThinkingPart(text=thought)] if thought else []
    calls = [tool_call(call) for call in choice.message.tool_calls or ()]
    if calls and choice.finish_reason == LENGTH and wire in IN_PIECES:
        # of Anthropic's input, which is an object, nothing tells how much of it came
        calls[-1] = calls[-1]._replace(whole=False) if wire is WireFormat.ANTHROPIC else cut_off(calls[-1])
    return Answer(text=text, thoughts=thoughts, calls=calls, finish=choice.finish_reason)


def _thoughts(message: Any, wire: WireFormat) -> list[ThinkingPart]:  # litellm.Message
    seal = SEALED_BY_ANTHROPIC if wire is WireFormat.ANTHROPIC else ""
    if blocks := getattr(message, "thinking_blocks", None):
        return [
            ThinkingPart(text=block["thinking"], signature=_sealed(seal, block.get("signature")))
            for block in blocks
            if block.get("thinking")
        ]
    text = getattr(message, "reasoning_content", None)
    return [ThinkingPart(text=text)] if text else []


def _sealed(seal: str, signature: str | None) -> str | None:
    return f"{seal}{signature}" if signature else None

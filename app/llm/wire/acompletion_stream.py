"""A stream on its way through LiteLLM: the chunks that it is given, and what it makes of them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, parts_of
from app.llm.messages import ThinkingPart
from app.llm.types import FinishReason, LLMProvider
from app.llm.wire.answers import Answer, Call
from app.llm.wire.exchange import BrokenOff, Exchange, UnusableReply
from app.llm.wire.http import Posted
from app.llm.wire.lines import Framing, Lines, ServerSentEvents
from app.llm.wire.mending import mended_chunk
from app.llm.wire.parsing import FILTERED, FLAGGED
from app.llm.wire.telling import Telling

SIGNATURE_MARK = "__thought__"
"""Between a tool-call id and the thought signature that LiteLLM packs into it."""


class LibraryReader:
    """Puts together what LiteLLM has read of chunks; as `readers.Heard`, whose counts `MendedStream` keeps."""

    def __init__(self, exchange: Exchange) -> None:
        self.chunks = 0
        self.finished = False
        self._exchange = exchange
        self._telling = Telling()
        self._said: list[Delta] = []
        self._calls: list[Call] = []
        self._empty = True
        self._finish: str = FinishReason.STOP.value

    def add(self, chunk: Any) -> list[Delta]:  # litellm.ModelResponseStream
        """Return what one chunk adds; one that is None or without choices adds nothing."""
        if chunk is None or not chunk.choices:
            return []
        choice, deltas = chunk.choices[0], list[Delta]()
        self._empty = False
        self._finish = choice.finish_reason or self._finish
        if thought := getattr(choice.delta, "reasoning_content", None):
            deltas.append(ThinkingDelta(thought, _signature(choice.delta)))
            self._said += deltas
        if text := choice.delta.content:
            self._said.append(TextDelta(text))
            deltas += self._telling.text(text, tagged=False)
        for call in map(tool_call, choice.delta.tool_calls or ()):
            self._calls.append(call)
            deltas += self._telling.call(call)
        return deltas

    def answer(self) -> Answer | None:
        """Return the answer; as `readers.Heard.answer`."""
        if not self.chunks:
            raise UnusableReply("the answer is empty")
        if not self.finished:
            raise BrokenOff("the stream ended before the answer did")
        if self._empty:
            return None
        return Answer(
            text="".join(each.text for each in self._said if isinstance(each, TextDelta)),
            thoughts=[part for part in parts_of(self._said) if isinstance(part, ThinkingPart)],
            calls=self._calls,
            finish=FILTERED if self._exchange.finish in FLAGGED else self._finish,  # even beside a call
        )


class MendedStream(httpx.AsyncByteStream):
    """The body of a streamed answer as LiteLLM can read it, chunk by chunk."""

    def __init__(
        self, provider: LLMProvider, posted: Posted, exchange: Exchange, reader: LibraryReader
    ) -> None:
        self._provider = provider
        self._posted = posted
        self._exchange = exchange
        self._reader = reader
        self._framing: Framing = Lines() if provider is LLMProvider.OLLAMA else ServerSentEvents()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._posted:
            for event in self._framing.cut(piece):
                yield self._mended(event)
            if self._reader.finished:
                for event in self._framing.cut(await self._posted.last()):
                    yield self._mended(event)
                break
        for event in self._framing.rest():
            yield self._mended(event)

    def _mended(self, event: bytes) -> bytes:
        ollama, reader = self._provider is LLMProvider.OLLAMA, self._reader
        if ollama and reader.finished:
            return b""
        try:
            chunk, ends = mended_chunk(self._provider, event, self._exchange)
        except UnusableReply as error:
            self._exchange.failure = error  # for LiteLLM dresses it up
            raise
        reader.chunks += 1
        reader.finished |= ends
        return chunk + b"\n" if ollama else b"data: " + chunk + b"\n\n"


def tool_call(call: Any) -> Call:  # litellm.ChatCompletionMessageToolCall, or the delta of one
    """Return a tool call, unchecked. Its id and index are not looked at: the providers send each call whole."""
    _, _, signature = (call.id or "").partition(SIGNATURE_MARK)
    return Call(name=call.function.name, arguments=call.function.arguments, signature=signature)


def _signature(delta: Any) -> str | None:  # litellm.Delta
    """Return the signature of thoughts; one that comes with other parts may be theirs."""
    if delta.content or delta.tool_calls:
        return None
    signatures = (getattr(delta, "provider_specific_fields", None) or {}).get("thought_signatures")
    return signatures[-1] if signatures else None

"""A stream on its way through LiteLLM: the chunks that it is given, and what it makes of them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, parts_of
from app.llm.messages import ThinkingPart
from app.llm.providers.openai_messages import SEALED_BY_ANTHROPIC
from app.llm.types import FinishReason, WireFormat
from app.llm.wire.answers import Answer, Call
from app.llm.wire.exchange import BrokenOff, Exchange, Refused, UnusableReply
from app.llm.wire.http import Posted
from app.llm.wire.lines import Framing, Lines, ServerSentEvents
from app.llm.wire.mending import mended_chunk
from app.llm.wire.openai import DONE, REFUSAL
from app.llm.wire.parsing import FILTERED, FLAGGED, LENGTH, thought_first
from app.llm.wire.telling import Telling

SIGNATURE_MARK = "__thought__"
"""Between a tool-call id and the thought signature that LiteLLM packs into it."""

IN_PIECES = frozenset({WireFormat.OPENAI, WireFormat.ANTHROPIC})
"""Who sends tool calls piece by piece."""


class LibraryReader:
    """Puts together what LiteLLM has read of chunks; as `readers.Heard`, whose counts `MendedStream` keeps."""

    def __init__(self, wire: WireFormat, exchange: Exchange) -> None:
        self.chunks = 0
        self.finished = False
        self._wire = wire
        self._exchange = exchange
        self._telling = Telling()
        self._said: list[Delta] = []
        self._calls: list[Call] = []
        self._open: _OpenCall | None = None
        self._empty = True
        self._finish: str = FinishReason.STOP.value

    def add(self, chunk: Any) -> list[Delta]:  # litellm.ModelResponseStream, or what stands for a blank line
        """Return what one chunk adds; one that is None or without choices adds nothing."""
        choices = getattr(chunk, "choices", None)
        if not choices:
            return []
        choice, deltas = choices[0], list[Delta]()
        self._empty = False
        self._finish = choice.finish_reason or self._finish
        signature = _signature(choice.delta)
        thought = getattr(choice.delta, "reasoning_content", None) or ""
        if thought or signature:
            deltas.append(ThinkingDelta(thought, signature))
            self._said += deltas
        if text := choice.delta.content:
            self._said.append(TextDelta(text))
            deltas += self._telling.text(text, tagged=self._wire is WireFormat.OPENAI)
        for call in choice.delta.tool_calls or ():
            deltas += self._piece(call) if self._wire in IN_PIECES else self._called(tool_call(call))
        return [*deltas, *self._ended()] if choice.finish_reason else deltas

    def answer(self) -> Answer | None:
        """Return the answer; as `readers.Heard.answer`."""
        if not self.chunks:
            raise UnusableReply("the answer is empty")
        if not self.finished:
            raise BrokenOff("the stream ended before the answer did")
        if self._empty:
            return None
        thoughts = [part for part in parts_of(self._said) if isinstance(part, ThinkingPart)]
        text = "".join(each.text for each in self._said if isinstance(each, TextDelta))
        if self._wire is WireFormat.OPENAI and not thoughts:
            thought, text = thought_first(text)
            thoughts = [ThinkingPart(text=thought)] if thought else []
        flagged = self._exchange.finish in FLAGGED or self._exchange.finish == REFUSAL  # even beside a call
        return Answer(
            text=text, thoughts=thoughts, calls=self._calls, finish=FILTERED if flagged else self._finish
        )

    def _piece(self, piece: Any) -> list[Delta]:
        """Put a piece to the call that it belongs to; a call is told when it is whole."""
        said = piece.function
        if self._open is not None and self._open.goes_on(piece):
            self._open.arguments.append(said.arguments or "")
            return []
        before = self._whole()
        self._open = _OpenCall(piece.index, piece.id, said.name, [said.arguments or ""])
        return before

    def _whole(self, *, cut: bool = False) -> list[Delta]:
        open_call, self._open = self._open, None
        if open_call is None:
            return []
        call = Call(name=open_call.name, arguments="".join(open_call.arguments))
        return self._called(cut_off(call) if cut else call)

    def _called(self, call: Call) -> list[Delta]:
        self._calls.append(call)
        return self._telling.call(call)

    def _ended(self) -> list[Delta]:
        return [*self._telling.end(), *self._whole(cut=self._finish == LENGTH)]


class _OpenCall:
    """A tool call of which more may come."""

    def __init__(self, index: int, call_id: str | None, name: str | None, arguments: list[str]) -> None:
        self.name = name
        self.arguments = arguments
        self._index = index
        self._id = call_id

    def goes_on(self, piece: Any) -> bool:
        """Return whether a piece is of this call: some servers give all calls the same index, and new ids."""
        return piece.index == self._index and piece.id in {None, "", self._id}


class MendedStream(httpx.AsyncByteStream):
    """The body of a streamed answer as LiteLLM can read it, chunk by chunk."""

    def __init__(self, wire: WireFormat, posted: Posted, exchange: Exchange, reader: LibraryReader) -> None:
        self._wire = wire
        self._posted = posted
        self._exchange = exchange
        self._reader = reader
        self._framing: Framing = Lines() if wire is WireFormat.OLLAMA else ServerSentEvents()

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
        ollama, reader = self._wire is WireFormat.OLLAMA, self._reader
        if (ollama and reader.finished) or (self._wire is WireFormat.OPENAI and event == DONE):
            return b""
        if reader.finished and self._wire in IN_PIECES and not self._is_usable(event):
            return b""  # the answer is complete: what follows it takes nothing away
        try:
            chunk, ends = mended_chunk(self._wire, event, self._exchange)
        except UnusableReply as error:
            self._exchange.failure = error  # for LiteLLM dresses it up
            raise
        reader.chunks += 1
        reader.finished |= ends
        return chunk + b"\n" if ollama else b"data: " + chunk + b"\n\n"

    def _is_usable(self, event: bytes) -> bool:
        try:
            mended_chunk(self._wire, event, Exchange(max_bytes=0, on_send=_nothing_is_sent))
        except (Refused, UnusableReply):
            return False
        return True


def _nothing_is_sent() -> None:
    """Stand for the telling of a request where none leaves."""


def tool_call(
    call: Any,
) -> Call:  # litellm.ChatCompletionMessageToolCall, or the delta of one that comes whole
    """Return a tool call, unchecked. Its id and index are not looked at."""
    _, _, signature = (call.id or "").partition(SIGNATURE_MARK)
    return Call(name=call.function.name, arguments=call.function.arguments, signature=signature)


def cut_off(call: Call) -> Call:
    """Return the last call of an answer that ended at its length: one without arguments may have had some to come."""
    return call._replace(whole=call.arguments not in {"", "{}"})


def _signature(delta: Any) -> str | None:  # litellm.Delta
    """Return the signature of thoughts; one that comes with other parts may be theirs."""
    if delta.content or delta.tool_calls:
        return None
    sealed = [block.get("signature") for block in getattr(delta, "thinking_blocks", None) or ()]
    if any(sealed):
        return f"{SEALED_BY_ANTHROPIC}{sealed[-1]}"
    signatures = (getattr(delta, "provider_specific_fields", None) or {}).get("thought_signatures")
    return signatures[-1] if signatures else None

"""Reads streamed answers of Ollama and Gemini: deltas chunk by chunk, and in the end the answer as if it had come whole.

What the chunks hold is put together into the one object that the provider would have sent without streaming, and that
is read by the rules of `parsing`. So the answer of a stream cannot differ from the answer to the same call.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NoReturn, Protocol

from app.llm.deltas import Delta, ThinkingDelta
from app.llm.wire.answers import Answer
from app.llm.wire.exchange import BrokenOff, Exchange, Refused, UnusableReply
from app.llm.wire.lines import Framing, Lines, ServerSentEvents
from app.llm.wire.parsing import (
    gemini_call,
    gemini_said,
    is_text,
    listed,
    ollama_call,
    ollama_said,
    signature_of,
)
from app.llm.wire.payloads import (
    Json,
    block_reason,
    checked_candidates,
    checked_message,
    exact_object,
    gemini_parts,
    quick_object,
)
from app.llm.wire.telling import Telling

_ERRORS = range(400, 600)
_ERROR_STATUS = 500  # what Ollama, whose errors name none, answers with before the first chunk


class Heard(Protocol):
    """What one streamed answer comes to, whoever reads its bytes."""

    chunks: int
    """How many have come; comments and blank lines are none."""
    finished: bool
    """Whether the one has come that ends the answer; what follows it may be missing."""

    def answer(self) -> Answer | None:
        """Return the answer; as `Lane.send`.

        Raises:
            BrokenOff: The end of it never came.
            UnusableReply: It is no answer.
        """
        ...


class Reader(Heard, Protocol):
    """Reads one streamed answer."""

    def take(self, data: bytes) -> Iterator[Delta]:
        """Yield what the next bytes add to the answer, as far as they can be used.

        Raises:
            Refused: The provider says that it failed; status and body stand in the exchange.
            UnusableReply: These are no chunks of an answer.
        """
        ...

    def rest(self) -> Iterator[Delta]:
        """Yield what is left after the last byte; raises as `take`."""
        ...


class _Chunks(ABC):
    """What both providers share: framing, errors within the stream, the end."""

    framing: ClassVar[type[Framing]]
    goes_on: ClassVar[bool]
    """Whether chunks may follow the one that ends the answer."""

    def __init__(self, exchange: Exchange) -> None:
        self.chunks = 0
        self.finished = False
        self._exchange = exchange
        self._framing = self.framing()
        self._telling = Telling()

    def take(self, data: bytes) -> Iterator[Delta]:
        """Yield what the next bytes add; as in `Reader`."""
        return self._read(self._framing.cut(data))

    def rest(self) -> Iterator[Delta]:
        """Yield what is left; as in `Reader`."""
        return self._read(self._framing.rest())

    def answer(self) -> Answer | None:
        """Return the answer; as in `Reader`."""
        if not self.chunks:
            raise UnusableReply("the answer is empty")
        if not self.finished:
            raise BrokenOff("the stream ended before the answer did")
        return self._whole()

    def _read(self, events: list[bytes]) -> Iterator[Delta]:
        for event in events:
            if self.finished and not self.goes_on:
                break
            self.chunks += 1
            payload = quick_object(event)
            if payload.get("error") is not None and not self.finished:
                refuse(payload["error"], event, self._exchange)
            yield from self._chunk(payload, event)

    @abstractmethod
    def _chunk(self, payload: Json, event: bytes) -> list[Delta]: ...

    @abstractmethod
    def _whole(self) -> Answer | None: ...


def refuse(error: object, event: bytes, exchange: Exchange, status: int | None = None) -> NoReturn:
    """Raise what a provider says in the middle of a stream, under the status that it would have had before it."""
    code = status or (error.get("code") if isinstance(error, dict) else None)
    exchange.status = code if isinstance(code, int) and code in _ERRORS else _ERROR_STATUS
    exchange.body = event
    raise Refused(exchange.status)


class OllamaReader(_Chunks):
    """NDJSON of `/api/chat`. Each chunk brings its tool calls whole, whatever their ids and indexes say."""

    framing = Lines
    goes_on = False

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._texts: list[str] = []
        self._thoughts: list[str] | None = None
        self._calls: list[Json] = []
        self._last: Json = {}

    def _chunk(self, payload: Json, event: bytes) -> list[Delta]:
        message = checked_message(payload)
        if message.get("tool_calls"):
            message = checked_message(exact_object(event))  # arguments may hold an integer of any size
        deltas: list[Delta] = []
        if "thinking" in message:
            deltas += self._thought(message["thinking"])
        if message["content"]:
            self._texts.append(message["content"])
            deltas += self._telling.text(message["content"], tagged=self._thoughts is None)
        for call in listed(message.get("tool_calls") or []):
            self._calls.append(call)
            deltas += self._telling.call(ollama_call(call))
        if payload.get("done") is True:
            self.finished, self._last = True, payload
            deltas += self._telling.end()
        return deltas

    def _thought(self, thought: object) -> list[Delta]:
        if not isinstance(thought, str | None):
            raise UnusableReply("the answer's thoughts are not a text")
        self._thoughts = self._thoughts or []
        if not thought:
            return []
        self._thoughts.append(thought)
        return [ThinkingDelta(thought)]

    def _whole(self) -> Answer:
        message: Json = {"content": "".join(self._texts)}
        if self._thoughts is not None:
            message["thinking"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        return ollama_said({**self._last, "message": message}, self._exchange)


class GeminiReader(_Chunks):
    """Server-sent events of `:streamGenerateContent?alt=sse`; only the first candidate counts, as without streaming."""

    framing = ServerSentEvents
    goes_on = True

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._parts: list[Json] = []
        self._texts: list[str] = []
        self._seal: Json = {}
        self._rest: Json = {}
        self._candidate: Json = {}

    def _chunk(self, payload: Json, event: bytes) -> list[Delta]:
        candidates = checked_candidates(payload)
        if any("functionCall" in part for each in candidates for part in gemini_parts(each)):
            candidates = checked_candidates(exact_object(event))  # as above
        self._rest |= {
            name: payload[name] for name in ("usageMetadata", "promptFeedback") if payload.get(name)
        }
        self.finished |= bool(block_reason(payload))
        said = [each for each in candidates if "content" in each or "finishReason" in each]
        return self._said(said[0]) if said else []

    def _said(self, candidate: Json) -> list[Delta]:
        self._candidate["content"] = {"parts": self._parts}
        deltas: list[Delta] = []
        for part in gemini_parts(candidate):
            if part.get("functionCall") is not None:
                self._close()
                self._parts.append(part)
                deltas += self._telling.call(gemini_call(part))
            elif is_text(part):
                deltas += self._text(part)
        if candidate.get("finishReason"):
            self._candidate["finishReason"] = candidate["finishReason"]
            self.finished = True
        return deltas

    def _text(self, part: Json) -> list[Delta]:
        text, thought, signature = part["text"], part.get("thought") is True, signature_of(part)
        if self._seal.get("thought") is not thought:
            self._close()
            self._seal = {"thought": thought}
        if signature:
            self._seal["thoughtSignature"] = signature
        self._texts.append(text)
        return [ThinkingDelta(text, signature)] if thought else self._telling.text(text, tagged=False)

    def _close(self) -> None:
        """End a part: what follows is of another kind."""
        if self._texts:
            self._parts.append({"text": "".join(self._texts), **self._seal})
        self._texts, self._seal = [], {}

    def _whole(self) -> Answer | None:
        self._close()
        candidates = [self._candidate] if self._candidate else []
        return gemini_said({**self._rest, "candidates": candidates}, self._exchange)

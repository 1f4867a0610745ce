"""A live stream of ours as PydanticAI's: its events as the deltas arrive, and in the end the answer of the ledger."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import JsonValue
from pydantic_ai.messages import ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import ModelRequestParameters, StreamedResponse

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, parts_of
from app.llm.errors import LLMCancelled
from app.llm.messages import ToolCallPart
from app.llm.pydanticai.answers import model_response, tool_call
from app.llm.pydanticai.spans import name_answer, request_span
from app.llm.streams import LLMStream
from app.llm.types import LLMResponse


class LiveStreamedResponse(StreamedResponse):
    """What an agent iterates over while a provider answers; leaving `request_stream` ends the call."""

    def __init__(
        self,
        params: ModelRequestParameters,
        *,
        stream: LLMStream,
        first: Delta | LLMResponse,
        told: Callable[[], AbstractContextManager[None]],
        step: Mapping[str, JsonValue],
    ) -> None:
        """Go on with `stream` after `first`; `told` says its errors in PydanticAI's words, `step` is for metadata."""
        super().__init__(params)
        self._stream = stream
        self._first = first
        self._told = told
        self._step = step
        self._heard: list[Delta] = []
        self._final: ModelResponse | None = None
        self._began_at = datetime.now(UTC)
        self._span = request_span()

    @property
    def model_name(self) -> str:
        """The model that answers."""
        return self._stream.answering.model if self._stream.answering else ""

    @property
    def provider_name(self) -> str | None:
        """The provider that answers."""
        return self._stream.answering.provider.value if self._stream.answering else None

    @property
    def provider_url(self) -> None:
        """None, as in whole answers: the ledger knows candidates."""
        return

    @property
    def timestamp(self) -> datetime:
        """When it began."""
        return self._began_at

    async def close_stream(self) -> None:
        """End the call, and with it the provider's connection."""
        await self._stream.aclose()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        """Return what `cancel()` makes of a read that is under way, which then just ends."""
        return (LLMCancelled,)

    def get(self) -> ModelResponse:
        """Return what has arrived, and after the end the answer with the parts that the ledger holds."""
        said, final = super().get(), self._final
        return said if final is None else replace(said, parts=final.parts)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        item: Delta | LLMResponse | None = self._first
        while item is not None:
            if isinstance(item, LLMResponse):
                self._end(item)
            else:
                self._heard.append(item)
                for event in self._events(item):
                    yield event
            with self._told():
                item = await anext(self._stream, None)

    def _events(self, delta: Delta) -> list[ModelResponseStreamEvent]:
        manager = self._parts_manager
        if isinstance(delta, TextDelta):
            return list(manager.handle_text_delta(vendor_part_id=None, content=delta.text))
        if isinstance(delta, ThinkingDelta):
            return list(
                manager.handle_thinking_delta(
                    vendor_part_id=None,
                    content=delta.text,
                    signature=delta.signature,
                    provider_name=self.provider_name,
                )
            )
        called = [part for part in parts_of([delta]) if isinstance(part, ToolCallPart)]
        parts = [tool_call(part, self.provider_name or "") for part in called]
        return [manager.handle_part(vendor_part_id=None, part=part) for part in parts]

    def _end(self, response: LLMResponse) -> None:
        """Take over what only the end tells; parts only where the deltas do not make them.

        A FallbackModel has written its own attempts and notes by then: they stay, as with a whole answer.
        """
        final = model_response(response, self._step)
        name_answer(self._span, final)
        self._usage = final.usage
        self.finish_reason = final.finish_reason
        self.metadata = {**(self.metadata or {}), **(final.metadata or {})}
        self.failed_attempts = [*(self.failed_attempts or ()), *(final.failed_attempts or ())] or None
        self._final = None if parts_of(self._heard) == response.parts else final

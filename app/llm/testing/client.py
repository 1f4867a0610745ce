"""A scripted client behind the service's port, for tests that need no sockets."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from app.llm.candidates import Candidate
from app.llm.deltas import Delta
from app.llm.errors import LLMError
from app.llm.messages import TextPart
from app.llm.ports import Listener, ProviderReply
from app.llm.types import FinishReason, LLMRequest, TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Deltas, as far as somebody listens, and what comes of them."""

    deltas: tuple[Delta, ...]
    then: ProviderReply | LLMError | None = None
    """None is an answer that never ends."""


Scripted = ProviderReply | LLMError | Told | Callable[[LLMRequest, Candidate], ProviderReply]


def text_reply(text: str, *, input_tokens: int | None = 3, output_tokens: int | None = 5) -> ProviderReply:
    """Return a complete answer of one text part."""
    return ProviderReply(
        parts=(TextPart(text=text),),
        finish_reason=FinishReason.STOP,
        usage=TokenUsage(input_tokens=input_tokens, output_tokens=output_tokens),
    )


@dataclass(slots=True)
class ScriptedClient:
    """Answers from a script, then with the ordinal of the send; records whom it was sent to."""

    script: list[Scripted] = field(default_factory=list)
    sent: list[tuple[Candidate, LLMRequest]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """While it is there and not set, sends wait after they were counted."""
    closed: bool = False

    @property
    def sends(self) -> int:
        """Sends so far."""
        return len(self.sent)

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,  # noqa: ARG002  # the port's signature
        workspace_id: str,  # noqa: ARG002  # the port's signature
        timeout_s: float,
        on_send: Callable[[float], None],
        listener: Listener | None = None,
    ) -> ProviderReply:
        """Give the next scripted outcome, within `timeout_s` seconds."""
        on_send(0.0)
        self.sent.append((candidate, request))
        if self.gate is not None:
            async with asyncio.timeout(timeout_s):
                await self.gate.wait()
        outcome = self.script.pop(0) if self.script else text_reply(f"answer {self.sends}")
        if isinstance(outcome, Told):
            outcome = await _told(outcome, listener)
        if isinstance(outcome, LLMError):
            raise outcome
        return outcome(request, candidate) if callable(outcome) else outcome

    async def warm_up(self, *, timeout_s: float | None = None) -> None:  # the port's signature
        """Nothing is to be loaded."""

    async def close(self) -> None:
        """Note it."""
        self.closed = True


async def _told(told: Told, listener: Listener | None) -> ProviderReply | LLMError:
    if listener is not None:
        for delta in told.deltas:
            await listener.on_delta(delta)
    while told.then is None:
        await asyncio.Event().wait()
    return told.then

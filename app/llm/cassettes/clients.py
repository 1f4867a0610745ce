"""Two ways to a cassette behind the port of the service: one listens to providers, the other one takes their place."""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from app.llm.candidates import Candidate
from app.llm.cassettes.lines import Asked, Interaction, Outcome, Redact, kept
from app.llm.cassettes.tapes import Playing, Recording
from app.llm.deltas import Delta, Parts, TextDelta, ThinkingDelta, deltas_of, parts_of
from app.llm.errors import LLMProviderError, LLMTimeout
from app.llm.ports import ChatClient, Listener, ProviderReply
from app.llm.types import LLMRequest, ServedFrom

_WORDS = re.compile(r"\s*\S+|\s+")


class CassetteClient:
    """The `ChatClient` of the mode `replay`: it opens no socket, loads no library and waits for nothing."""

    def __init__(self, tape: Playing, redact: Redact) -> None:
        self._tape = tape
        self._redact = redact

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,  # noqa: ARG002  # the port's signature
        workspace_id: str,  # noqa: ARG002  # as above
        timeout_s: float,
        on_send: Callable[[float], None],
        listener: Listener | None = None,
    ) -> ProviderReply:
        """Return what was recorded: the n-th time that this is asked, the n-th answer.

        Raises:
            LLMProviderError: That was the answer.
            LLMCassetteMiss: There is none, or none is left.
        """
        interaction = self._tape.next(Asked.of(request, candidate, self._redact))
        on_send(0.0)
        return await _told(interaction, listener, left_s=timeout_s)

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Nothing is to be loaded."""

    async def close(self) -> None:
        """Nothing is open."""


class RecordingClient:
    """The `ChatClient` of the mode `record`: providers answer, and what they say is kept.

    The caller is given what is kept, as a replay gives it: without secrets, and to a listener once it is complete. So a
    test that passes while it is recorded passes ever after.
    """

    def __init__(
        self,
        live: ChatClient,
        tape: Recording,
        redact: Redact,
        passed_over: Callable[[LLMRequest, Candidate], Iterable[str]] = lambda _request, _candidate: (),
    ) -> None:
        """Take the way to the providers, and what says whom a request would have met if there had been a key."""
        self._passed_over = passed_over
        self._live = live
        self._tape = tape
        self._redact = redact

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,
        workspace_id: str,
        timeout_s: float,
        on_send: Callable[[float], None],
        listener: Listener | None = None,
    ) -> ProviderReply:
        """Return the candidate's answer, as in `ChatClient.send`; what was never sent is not recorded.

        Raises:
            LLMProviderError: As in `ChatClient.send`.
            OSError: The cassette cannot be written.
        """
        self._tape.pass_over(self._passed_over(request, candidate))
        call = _Call(Asked.of(request, candidate, self._redact), self._tape.place(), on_send)
        listening = None if listener is None else Listener(call.hear, listener.left_s)
        outcome: Outcome
        try:
            outcome = await self._live.send(
                request,
                candidate,
                run_id=run_id,
                workspace_id=workspace_id,
                timeout_s=timeout_s,
                on_send=call.begin,
                listener=listening,
            )
        except LLMProviderError as error:
            outcome = error
        except asyncio.CancelledError:
            self._keep(call, None)
            raise
        interaction = self._keep(call, outcome)
        return await _told(interaction, listener, left_s=timeout_s)

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Load what the first send would load, as in `ChatClient.warm_up`."""
        await self._live.warm_up(timeout_s=timeout_s)

    async def close(self) -> None:
        """Close what is open; idempotent."""
        await self._live.close()

    def _keep(self, call: "_Call", outcome: Outcome) -> Interaction:
        partial = () if isinstance(outcome, ProviderReply) else parts_of(call.heard)
        interaction = kept(call.asked, outcome, partial, self._redact)
        if call.sent:
            self._tape.add(call.place, interaction)
        return interaction


class _Call:
    """One send while it is recorded."""

    def __init__(self, asked: Asked, place: int, on_send: Callable[[float], None]) -> None:
        self.asked = asked
        self.place = place
        self.sent = False
        self.heard: list[Delta] = []
        self._on_send = on_send

    def begin(self, waited_ms: float) -> None:
        self._on_send(waited_ms)
        self.sent = True

    async def hear(self, delta: Delta) -> None:
        self.heard.append(delta)


async def _told(interaction: Interaction, listener: Listener | None, *, left_s: float) -> ProviderReply:
    """Return the answer, or raise the error; a listener is told word by word what there was of it.

    A call that was cancelled when it was recorded waits to be cancelled.
    """
    outcome = interaction.outcome
    if listener is not None:
        parts = outcome.parts if isinstance(outcome, ProviderReply) else interaction.partial
        for delta in _words_of(parts):
            await listener.on_delta(delta)
    if outcome is None:
        outcome = await _waited_in_vain(interaction.asked.candidate, left_s)
    if isinstance(outcome, LLMProviderError):
        raise outcome
    return outcome


async def _waited_in_vain(candidate: str, left_s: float) -> LLMTimeout:
    with suppress(TimeoutError):
        async with asyncio.timeout(left_s):
            await asyncio.Event().wait()
    provider, _, model = candidate.partition(":")
    return LLMTimeout(
        f"{candidate} has no answer: when this was recorded, the call was cancelled before there was one",
        provider=provider,
        model=model,
        possibly_paid=True,
        served_from=ServedFrom.CASSETTE.value,
    )


def _words_of(parts: Parts) -> Iterator[Delta]:
    """Yield the deltas of parts, each text in words: how a provider cut it changes from recording to recording."""
    for delta in deltas_of(parts):
        if isinstance(delta, TextDelta | ThinkingDelta):
            yield from (type(delta)(word) for word in _WORDS.findall(delta.text))
        else:
            yield delta

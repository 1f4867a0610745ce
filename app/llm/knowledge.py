"""What is known of the candidates by now: what the settings say, what their providers say, and what these refused."""

import asyncio
import math
from collections.abc import Sequence

from app.llm.candidates import Candidate, ModelFacts
from app.llm.errors import LLMProviderError
from app.llm.ports import Clock, Describer
from app.llm.providers import Catalog, known_caps
from app.llm.router import without
from app.llm.settings import LLMSettings
from app.llm.telemetry import (
    EVENT_BACKGROUND_FAULT,
    EVENT_LEARNED,
    EVENT_MODEL_MISSING,
    EVENT_NOT_DESCRIBED,
    Telemetry,
)
from app.llm.types import LLMProfile, LLMRequest

RETRY_S = 60.0
"""Seconds after which a provider that described nothing is asked again."""
MAX_MODELS = 256
"""Models about which is asked at most; callers may pin what they like."""


class Knowledge:
    """The catalog of this moment, shared by all views of a service; on one event loop.

    The strongest word on a model is its provider's refusal, then the settings, then what its provider says of it, then
    the table of the provider module. What is learned changes what a candidate can do, and of which weights its answers
    are: the digest of these joins its identity, so that answers of others are not served for its own. No request
    changes, and no call does that has its route.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: LLMSettings,
        *,
        clock: Clock,
        telemetry: Telemetry,
        describer: Describer | None = None,
    ) -> None:
        """Take what is known at start; `describer` asks for more, None asks nobody."""
        self.catalog = catalog
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._describer = describer
        self._said: dict[str, ModelFacts] = {}
        self._refused: dict[str, tuple[str, ...]] = {}
        self._next_s: dict[str, float] = {}
        self._missing: set[str] = set()
        self._first: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ready(self, request: LLMRequest, profile: LLMProfile, *, left_s: float) -> None:
        """Return once whom the request may go to has been described, or could not be, or after `left_s` seconds.

        Only the first inquiry about a model is waited for; it takes LLM_LEARN_TIMEOUT_S at most. It is repeated beside
        later calls.
        """
        if self._describer is None:
            return
        names = self._names(request, profile)
        now_s = self._clock.monotonic_s()
        due = [name for name in names if now_s >= self._next_s.get(name, -math.inf)]
        if due:
            self._inquire(self._describer, due, now_s)
        if self._first and (awaited := {self._first[name] for name in names if name in self._first}):
            await asyncio.wait(awaited, timeout=max(left_s, 0))

    def refused(self, candidate: Candidate, lacking: str) -> None:
        """Remember, until the process ends, what a candidate turned out not to support, in its provider's word."""
        words = self._refused.get(candidate.name, ())
        if lacking not in words:
            self._refused[candidate.name] = (*words, lacking)
            self._renew(candidate.name)

    async def close(self) -> None:
        """End what is being asked; idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._describer is not None:
            await self._describer.close()

    def _names(self, request: LLMRequest, profile: LLMProfile) -> tuple[str, ...]:
        listed = tuple([candidate.name for candidate in self.catalog.listed(profile)])
        if request.model is None:
            return listed
        return (request.model, *listed) if request.constraints.allow_fallback else (request.model,)

    def _inquire(self, describer: Describer, due: Sequence[str], now_s: float) -> None:
        asked: list[Candidate] = []
        new = {name for name in due if name not in self._next_s}
        for name in due:
            room = name in self._next_s or len(self._next_s) < MAX_MODELS
            candidate = self.catalog.pinned(name) if room else None
            if candidate is not None and describer.asks_about(candidate):
                asked.append(candidate)
            if room:
                self._next_s[name] = now_s + self._settings.learn_ttl_s if candidate in asked else math.inf
        if not asked:
            return
        task = asyncio.create_task(self._learn(describer, asked))
        self._tasks.add(task)
        self._first |= {each.name: task for each in asked if each.name in new}
        task.add_done_callback(self._ended)

    async def _learn(self, describer: Describer, asked: Sequence[Candidate]) -> None:
        said: dict[str, ModelFacts] = {}
        try:
            said.update(await describer.describe(asked))
        except LLMProviderError as error:
            self._telemetry.event(EVENT_NOT_DESCRIBED, error_message=error.message)
        else:
            self._tell_missing([each for each in asked if each.name not in said])
        for each in asked:
            if each.name in said:
                self._missing.discard(each.name)
                self._said[each.name] = said[each.name]
                self._renew(each.name)
            else:
                self._next_s[each.name] = self._clock.monotonic_s() + RETRY_S

    def _tell_missing(self, candidates: Sequence[Candidate]) -> None:
        for each in candidates:
            if each.name not in self._missing:
                self._missing.add(each.name)
                self._telemetry.event(
                    EVENT_MODEL_MISSING, level="warning", provider=each.provider, model=each.model
                )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._first = {name: first for name, first in self._first.items() if first is not task}
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._telemetry.event(EVENT_BACKGROUND_FAULT, level="error", error_message=type(fault).__name__)

    def _renew(self, name: str) -> None:
        """Make another catalog, if what is known says something else than the present one."""
        candidate, said = self.catalog.pinned(name), self._said.get(name)
        caps = known_caps(self._settings, candidate.provider, candidate.model, said)
        for word in self._refused.get(name, ()):
            caps = without(caps, word)
        then = self.catalog.with_caps(name, caps, weights=said.weights if said else None)
        if then.pinned(name) != candidate:
            self.catalog = then
            self._telemetry.event(EVENT_LEARNED, provider=candidate.provider, model=candidate.model)

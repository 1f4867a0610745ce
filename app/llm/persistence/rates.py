"""The meter that processes share: one row of the ledger's database for each provider, moved by one statement.

Without the database nothing is sent, as without a note of the send. Only the first in line of each process asks, so
a provider's row is as busy as its rate allows, whatever waits.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

from app.llm import telemetry as events
from app.llm.candidates import Candidate
from app.llm.errors import LLMError
from app.llm.pacing import MIN_WAIT_S, NEVER_ASKED, UNBOUND, Ahead, Quota, Told
from app.llm.persistence import statements_rates as sql
from app.llm.persistence.executor import Executor, Step, Steps
from app.llm.telemetry import Telemetry
from app.llm.types import LLMProvider


class SharedMeter:
    """The `Meter` of several processes."""

    def __init__(
        self, executor: Executor, quotas: Mapping[LLMProvider, Quota], *, telemetry: Telemetry
    ) -> None:
        self._executor = executor
        self._quotas = dict(quotas)
        self._telemetry = telemetry
        self._begun: set[asyncio.Future[Any]] = set()

    async def ask(self, candidate: Candidate, tokens: int) -> Told:
        """Take a place, if there is one now; who is cancelled meanwhile leaves none taken.

        Raises:
            LLMLedgerError: The database is away or locked.
        """
        asking = asyncio.ensure_future(self._executor.transaction(partial(self._take, candidate, tokens)))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._begin(self._undo(asking, candidate.provider, tokens))
            raise

    def ahead(self, provider: LLMProvider) -> Ahead:  # noqa: ARG002  # the protocol's signature
        """Return that nothing is known to be ahead: only the database knows."""
        return NEVER_ASKED

    def give_back(self, provider: LLMProvider, tokens: int, told: Told) -> None:
        """Give back what is still owed of a place, in the background."""
        values = {"id": provider.value, "at_s": told.at_s, **self._costs(provider, tokens)}
        self._write(Step(sql.GIVE_BACK, values, final=True))

    def correct(self, provider: LLMProvider, tokens: int) -> None:
        """Count so many tokens more, or fewer, in the background."""
        rate = self._quotas[provider].tokens
        if tokens and rate is not UNBOUND:
            moved = {"id": provider.value, "tokens_s": rate.cost_s(tokens)}
            self._write(Step(sql.CORRECT, moved, final=True))

    def hold(self, candidate: Candidate, for_s: float) -> None:
        """Tell the other processes, in the background."""
        self._write(Step(sql.HOLD, {"id": candidate.name, "for_s": for_s}, final=True))

    async def close(self) -> None:
        """Wait for what was begun; idempotent."""
        while self._begun:
            await asyncio.gather(*self._begun, return_exceptions=True)

    def _take(self, candidate: Candidate, tokens: int) -> Steps[Told]:
        quota = self._quotas[candidate.provider]
        values = {
            "id": candidate.provider.value,
            "candidate": candidate.name,
            "requests_lead_s": quota.requests.lead_s(1),
            "tokens_lead_s": quota.tokens.lead_s(tokens),
            **self._costs(candidate.provider, tokens),
        }
        row = (yield Step(sql.TAKE, values, final=True)).rows[0]
        wait_s = row["wait_s"]
        return Told(
            wait_s=max(wait_s, MIN_WAIT_S) if wait_s > 0 else 0.0,
            at_s=row["asked_at_s"],
            held_s=row["held_s"] if wait_s > 0 else 0.0,
        )

    def _costs(self, provider: LLMProvider, tokens: int) -> dict[str, float]:
        quota = self._quotas[provider]
        return {"requests_s": quota.requests.cost_s(1), "tokens_s": quota.tokens.cost_s(tokens)}

    async def _undo(self, asking: Awaitable[Told], provider: LLMProvider, tokens: int) -> None:
        told = await asking
        if not told.wait_s:
            self.give_back(provider, tokens, told)

    def _write(self, step: Step) -> None:
        def steps() -> Steps[None]:
            yield step

        self._begin(self._executor.transaction(steps))

    def _begin(self, work: Awaitable[object]) -> None:
        begun = asyncio.ensure_future(work)
        self._begun.add(begun)
        begun.add_done_callback(self._ended)

    def _ended(self, begun: asyncio.Future[Any]) -> None:
        self._begun.discard(begun)
        fault = None if begun.cancelled() else begun.exception()
        if fault is not None:
            said = str(fault) if isinstance(fault, LLMError) else type(fault).__name__
            self._telemetry.event(events.EVENT_BACKGROUND_FAULT, level="warning", error_message=said)

"""The sends of one run: strictly one after another, each noted before it happens and recorded after it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from app.llm.breaker import Breaker, Permit, left_alone
from app.llm.budgets import Holding
from app.llm.candidates import Candidate
from app.llm.deltas import Answering, Delta, Tell
from app.llm.errors import (
    LLMBudgetExceeded,
    LLMCancelled,
    LLMCassetteMiss,
    LLMError,
    LLMInternal,
    LLMOverRate,
    LLMProviderError,
    LLMTimeout,
)
from app.llm.ports import ChatClient, Clock, Listener, LLMRunRepo, NewRun, ProviderReply, StoredAnswer
from app.llm.pricing import FREE, Price, price_for
from app.llm.rates import NO_WAIT, Rates, Turn, tokens_of
from app.llm.responses import with_stable_id
from app.llm.retry import (
    SKIPPED,
    Again,
    RetryPolicy,
    Stop,
    StopReason,
    Verdict,
    acceptable_next,
    attempt_timeout_s,
    come_back_s,
    most_telling,
    turn_patience_s,
)
from app.llm.structured.judge import Judge
from app.llm.telemetry import Telemetry
from app.llm.types import UNKNOWN_USAGE, Attempt, LLMRequest

_Outcome = ProviderReply | LLMProviderError | asyncio.CancelledError


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of a call, on the monotonic clock."""

    clock: Clock
    total_s: float
    ends_at_s: float

    @classmethod
    def after(cls, clock: Clock, total_s: float) -> "Deadline":
        """Return the deadline `total_s` seconds from now."""
        return cls(clock=clock, total_s=total_s, ends_at_s=clock.monotonic_s() + total_s)

    def left_s(self) -> float:
        """Return the seconds until the end; negative when it has passed."""
        return self.ends_at_s - self.clock.monotonic_s()

    def spent_ms(self) -> float:
        """Return the milliseconds since the start."""
        return (self.total_s - self.left_s()) * 1000


class _Begun(NamedTuple):
    """A send that has left the queue."""

    at: datetime
    permit: Permit
    had_s: float
    """Seconds that the queue left of its time."""


@dataclass(slots=True, kw_only=True)
class _Send:
    """One send on its way: to its turn, through the queue for a slot, then to its candidate."""

    candidate: Candidate
    asked_at_s: float
    question: LLMRequest
    turn: Turn = NO_WAIT
    turn_ms: float = 0.0
    """How long it waited for its turn."""
    wait_told: bool = False
    timeout_s: float = 0.0
    """Seconds for the queue and the send together."""
    begun: _Begun | None = None


@dataclass(slots=True, kw_only=True)
class Sends:
    """Asks candidate after candidate until one answers or the policy says stop."""

    run: NewRun
    client: ChatClient
    repo: LLMRunRepo
    policy: RetryPolicy
    attempt_cap_s: float
    deadline: Deadline
    telemetry: Telemetry
    breaker: Breaker
    rates: Rates
    jitter: Callable[[], float]
    cached: Callable[[Candidate], Awaitable[StoredAnswer | None]]
    """The cached answer of a fallback candidate (of any, where answers are checked), looked up before its first send."""
    learn: Callable[[Candidate, str], None]
    """Told of a capability that a candidate turned out to lack, in the provider's word for it."""
    tell: Tell | None = None
    """Who is given the answer as it arrives."""
    heard: list[Delta] = field(default_factory=list)
    """What that was given so far. From the first delta on the call belongs to its candidate: an error is final."""
    attempts: list[Attempt] = field(default_factory=list)
    queue_wait_ms: float = 0.0
    judge: Judge = field(default_factory=Judge)
    """Says what a candidate is asked, and whether its reply counts."""
    holding: Holding | None = None
    """What the run holds of the budgets over its workspace."""

    async def until_answered(self) -> tuple[Candidate, ProviderReply | StoredAnswer]:
        """Return who answered, and what: a provider's reply, or the cached match of a fallback candidate.

        Raises:
            LLMProviderError: The last send's error, with `attempts` and the run id.
            LLMBudgetExceeded: Nothing was sent, and nobody who is left alone may be asked before the budget begins anew.
            LLMLedgerError: A further send could not be noted, so it did not happen.
            LLMFenced: Another run took over between two sends.
        """
        kept = self.run.route.kept
        position, tries, tries_here = 0, 0, 0
        told: LLMError | None = None
        while True:
            candidate = kept[position]
            looks = position or self.judge.check  # the first candidate's was looked up before the claim
            if looks and not tries_here and (match := await self.cached(candidate)) is not None:
                return candidate, match
            try:
                return candidate, await self._ask(candidate, to_come=len(kept) - position - 1)
            except (LLMProviderError, LLMBudgetExceeded) as failed:
                error = failed
            if SKIPPED not in error.facts:
                tries, tries_here = tries + 1, tries_here + 1
            told = most_telling(told, error)
            if "capability" in error.facts:
                self.learn(candidate, str(error.facts["capability"]))
            following = self._following(error, position)
            verdict = self._verdict(error, tries, tries_here, has_next=following is not None)
            names = {"provider": candidate.provider.value, "model": candidate.model}
            if isinstance(verdict, Again):
                self.telemetry.retried(**names)
                await self._rest(error, verdict.delay_s)
            elif isinstance(verdict, Stop) or following is None:
                raise self.final(told, come_back_s(told, error, verdict))
            else:
                self.telemetry.fell_back(**names)
                position, tries_here = following, 0

    def final(self, error: LLMError, retry_after_s: float | None = None) -> LLMError:
        """Return the error with what all sends of the run say together: whether they may be paid, and how they went."""
        error.possibly_paid = error.possibly_paid or any(attempt.possibly_paid for attempt in self.attempts)
        return error.with_facts(
            run_id=self.run.run_id,
            attempts=tuple(self.attempts),
            retry_after_s=retry_after_s,
            rejected=tuple(self.judge.rejected) or None,
        )

    def _verdict(self, error: LLMError, tries: int, tries_here: int, *, has_next: bool) -> Verdict:
        if self.heard:
            return Stop(reason=StopReason.FINAL, retry_after_s=error.retry_after_s)
        return self.policy.decide(
            error, sends_total=tries, sends_here=tries_here, left_s=self.deadline.left_s(),
            has_next=has_next, jitter=self.jitter(),
        )  # fmt: skip

    async def _rest(self, error: LLMError, delay_s: float) -> None:
        """Wait before the next send to the same candidate; one out of a cassette needs no rest."""
        await self.deadline.clock.sleep_s(0 if "served_from" in error.facts else delay_s)

    def _following(self, error: LLMError, position: int) -> int | None:
        kept = self.run.route.kept
        later = range(position + 1, len(kept))
        return next((i for i in later if acceptable_next(error, kept[position], kept[i])), None)

    async def _ask(self, candidate: Candidate, *, to_come: int) -> ProviderReply:
        """Send once, when it is this call's turn, unless the candidate's circuit is open: before the queues, or at their end."""
        request = self.run.request
        assert isinstance(request, LLMRequest)  # noqa: S101  # effects are not sent
        while True:
            if not self.breaker.admits(candidate.name):
                raise left_alone(candidate, self.breaker.closed_in_s(candidate.name))
            await self.client.warm_up(timeout_s=self.deadline.left_s())
            send = _Send(
                candidate=candidate,
                question=self.judge.question(request, candidate),
                asked_at_s=self.deadline.clock.monotonic_s(),
            )
            with NO_WAIT if self.rates.is_free(candidate) else await self._turn(send, to_come):
                try:
                    return await self._sent(send, to_come)
                except LLMOverRate:  # it asked to be left alone while this call waited for its slot
                    continue
                finally:
                    if send.turn_ms and not send.wait_told:
                        self._waited(send, send.turn_ms)

    async def _turn(self, send: "_Send", to_come: int) -> Turn:
        """Wait for the send's turn, holding nothing."""
        patience_s = turn_patience_s(
            total_s=self.deadline.total_s, left_s=self.deadline.left_s(), candidates_to_come=to_come
        )
        tokens = self.run.route.needs_of[send.candidate.provider].tokens
        try:
            send.turn = await self.rates.turn(send.candidate, tokens=tokens, patience_s=patience_s)
        except BaseException:
            self._waited(send, self._since_asked_ms(send))
            raise
        send.turn_ms = self._since_asked_ms(send)
        return send.turn

    async def _sent(self, send: "_Send", to_come: int) -> ProviderReply:
        candidate = send.candidate
        send.timeout_s = timeout_s = self._timeout_s(candidate, to_come)
        if self.attempts or self.holding:
            await self._note(candidate)
        try:
            reply = await self.client.send(
                send.question,
                candidate,
                run_id=self.run.run_id,
                workspace_id=self.run.workspace_id,
                timeout_s=timeout_s,
                on_send=lambda waited_ms: self._begin(send, waited_ms),
                **self._listened(candidate),
            )
        except (LLMProviderError, asyncio.CancelledError) as error:
            self._ended(send, error)
            raise
        except LLMCassetteMiss:  # nothing was sent
            raise
        except Exception as defect:  # even then a send that happened is recorded
            sent = send.begun is not None
            internal = LLMInternal(f"the client failed with {type(defect).__name__}", possibly_paid=sent)
            self._ended(send, internal)
            raise internal from defect
        refusal = self.judge.refusal(candidate, reply)
        self._ended(send, refusal or reply)
        if refusal is not None:
            raise refusal
        return reply

    async def _note(self, candidate: Candidate) -> None:
        """Tell the ledger of a further send, and of one that takes more than the run holds.

        Raises:
            LLMBudgetExceeded: It does not fit; a cheaper candidate may.
        """
        more = self.holding.missing(candidate, self.attempts) if self.holding else None
        if not self.attempts and more is None:
            return
        try:
            await self.repo.note_send(self.run.run_id, len(self.attempts) + 1, more)
        except LLMBudgetExceeded as refused:
            self.telemetry.budget_exceeded(refused)
            refused.fallback = True
            raise refused.with_facts(**{SKIPPED: True}) from None
        if self.holding and more is not None:
            self.holding.add(more)

    def _listened(self, candidate: Candidate) -> dict[str, Any]:
        if self.tell is None:
            return {}
        tell, prompt = self.tell, self.run.prompt_sha256

        async def on_delta(delta: Delta) -> None:
            """Pass a delta on; it counts as heard even if nobody takes it any more."""
            if not self.heard:
                await tell(Answering(candidate.provider, candidate.model))
            delta = with_stable_id(delta, prompt)
            self.heard.append(delta)
            await tell(delta)

        return {"listener": Listener(on_delta, self.deadline.left_s())}

    def _timeout_s(self, candidate: Candidate, to_come: int) -> float:
        timeout_s = attempt_timeout_s(
            attempt_cap_s=self.attempt_cap_s,
            total_s=self.deadline.total_s,
            left_s=self.deadline.left_s(),
            candidates_to_come=to_come,
        )
        if timeout_s <= 0:
            raise LLMTimeout(
                f"the call's {self.deadline.total_s:g} s were over before {candidate.name} was asked"
            )
        return timeout_s

    def _begin(self, send: "_Send", waited_ms: float) -> None:
        """Let a send that has its slot go; while it waited, others may have found the provider dead, or busy."""
        name = send.candidate.name
        self._waited(send, send.turn_ms + waited_ms)
        self.rates.refuse_held(send.candidate)
        permit = self.breaker.begin(name)
        if permit is None:
            raise left_alone(send.candidate, self.breaker.closed_in_s(name))
        send.turn.leaves()
        send.begun = _Begun(self.deadline.clock.now(), permit, send.timeout_s - waited_ms / 1000)

    def _waited(self, send: "_Send", waited_ms: float) -> None:
        send.wait_told = True
        self.queue_wait_ms += waited_ms
        self.telemetry.waited(waited_ms, provider=send.candidate.provider.value)

    def _ended(self, send: "_Send", outcome: _Outcome) -> None:
        """Record a send that began, and tell the breaker; one that never did had nothing but its wait."""
        begun = send.begun
        if self.heard and isinstance(outcome, LLMProviderError):
            outcome.possibly_paid = True
        if begun is None:
            if isinstance(outcome, LLMTimeout | asyncio.CancelledError):
                self._waited(send, self._since_asked_ms(send))
            return
        if send.turn is not NO_WAIT:
            send.turn.used(tokens_of(outcome))
        if wait_s := self.rates.heed(send.candidate, outcome):
            names = {"provider": send.candidate.provider.value, "model": send.candidate.model}
            self.telemetry.told_to_wait(wait_s, **names)
        self._record(send, begun.at, outcome)
        if isinstance(outcome, asyncio.CancelledError):
            self.breaker.withdraw(begun.permit)
        else:
            error = outcome if isinstance(outcome, LLMProviderError) else None
            self.breaker.report(begun.permit, error, had_s=begun.had_s)

    def _since_asked_ms(self, send: "_Send") -> float:
        return (self.deadline.clock.monotonic_s() - send.asked_at_s) * 1000

    def _record(self, send: "_Send", started_at: datetime, outcome: _Outcome) -> None:
        candidate, finished_at = send.candidate, self.deadline.clock.now()
        attempt = Attempt(
            ordinal=len(self.attempts) + 1,
            provider=candidate.provider,
            model=candidate.model,
            candidate_sha256=candidate.identity,
            started_at=started_at,
            finished_at=finished_at,
            latency_ms=(finished_at - started_at).total_seconds() * 1000,
            **_facts_of(outcome, price_for(candidate), started_at, with_sound=self.run.route.needs.audio),
        )
        self.attempts.append(attempt)
        reply = outcome if isinstance(outcome, ProviderReply) else None
        self.telemetry.attempt_ended(
            attempt, self.run, asked=send.question, reply=reply, streamed=self.tell is not None
        )


def _facts_of(outcome: _Outcome, price: Price, at: datetime, *, with_sound: bool) -> dict[str, Any]:
    """Return what an attempt says of how its send ended; one that is not known to be free may have cost its price."""
    if isinstance(outcome, ProviderReply):
        facts: dict[str, Any] = {
            "status": "SUCCEEDED",
            "http_status": outcome.http_status,
            "usage": outcome.usage,
        }
    elif isinstance(outcome, LLMProviderError):
        facts = {
            "status": "FAILED",
            "error_code": outcome.code,
            "usage": outcome.facts.get("usage", UNKNOWN_USAGE),
            "possibly_paid": outcome.possibly_paid,
            **{name: outcome.facts.get(name) for name in ("http_status", "retry_after_s")},
        }
        if not outcome.possibly_paid:
            return {**facts, "cost_usd": FREE, "price_version": price.version}
    else:
        facts = {
            "status": "CANCELLED",
            "error_code": LLMCancelled.code,
            "possibly_paid": True,
            "usage": UNKNOWN_USAGE,
        }
    facts["cost_usd"] = price.cost_usd(facts["usage"], at, with_sound=with_sound)
    facts["price_version"] = price.version
    return facts

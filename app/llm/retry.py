"""What happens after a failed send, as arithmetic: no clock, no I/O, so that every rule can be read off a table."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from app.llm.candidates import Candidate
from app.llm.errors import (
    LLMBadResponse,
    LLMBudgetExceeded,
    LLMContextExceeded,
    LLMError,
    LLMInvalidOutput,
)
from app.llm.settings import LLMSettings, RetryPossiblyPaid

SKIPPED = "skipped"
"""Fact of an error whose candidate was not even asked."""
MIN_ATTEMPT_S = 1.0
RESERVED_SHARE = 0.2
"""Part of a call's total time that is kept back for each candidate still to come."""

MAX_SENDS_OF_BAD_RESPONSE = 2
"""A model that answers garbage twice will answer it again."""


class StopReason(StrEnum):
    """Why no further send is made."""

    FINAL = "final"
    """The error allows neither a retry nor a fallback."""
    POSSIBLY_PAID = "possibly_paid"
    """`LLM_RETRY_POSSIBLY_PAID` forbids to pay a second time."""
    MAX_ATTEMPTS = "max_attempts"
    NO_CANDIDATE = "no_candidate"
    """The sends at this candidate are used up and no other may follow."""
    NO_TIME = "no_time"
    """The wait before the next send is longer than what is left of the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """The same candidate, after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class NextCandidate:
    """The next candidate, at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """No further send. `retry_after_s`: seconds after which a new call makes sense, where that is known."""

    reason: StopReason
    retry_after_s: float | None = None


Verdict = Again | NextCandidate | Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, how long, and at whose risk a call is repeated."""

    max_attempts: int
    """Sends of one call over all candidates."""
    attempts_per_candidate: int
    retry_possibly_paid: RetryPossiblyPaid
    fallback_on: tuple[str, ...] = ()
    """Codes of errors that normally end a call but fall back here."""
    base_backoff_s: float = 0.5
    max_backoff_s: float = 8.0

    @classmethod
    def from_settings(cls, settings: LLMSettings) -> Self:
        """Return the policy that the settings describe."""
        return cls(
            max_attempts=settings.max_attempts,
            attempts_per_candidate=settings.attempts_per_candidate,
            retry_possibly_paid=settings.retry_possibly_paid,
            fallback_on=settings.fallback_on,
        )

    def decide(
        self,
        error: LLMError,
        *,
        sends_total: int,
        sends_here: int,
        left_s: float,
        has_next: bool,
        jitter: float,
    ) -> Verdict:
        """Return what follows a failed send.

        Args:
            error: Why it failed; its `retryable`, `fallback` and `possibly_paid` are taken from the instance.
            sends_total: Sends of this call so far, the failed one included.
            sends_here: Those of them that went to this candidate.
            left_s: Seconds until the call's deadline.
            has_next: Whether a kept candidate follows that is `acceptable_next`.
            jitter: A random number from [0, 1).
        """
        room = sends_total < self.max_attempts
        repeat = self._may_repeat(error, sends_here)
        delay_s = self.delay_s(error, sends_here=sends_here, jitter=jitter)
        if room and repeat and delay_s < left_s:
            return Again(delay_s=delay_s)
        if room and has_next and left_s > 0 and self._may_fall_back(error):
            return NextCandidate()
        if not error.retryable and not self._falls_back(error):
            return Stop(reason=StopReason.FINAL, retry_after_s=error.retry_after_s)
        if room and (repeat or left_s <= 0):
            return Stop(reason=StopReason.NO_TIME, retry_after_s=delay_s if repeat else error.retry_after_s)
        return Stop(reason=self._why_not(error, room=room), retry_after_s=error.retry_after_s)

    def delay_s(self, error: LLMError, *, sends_here: int, jitter: float) -> float:
        """Return the seconds to wait before send `sends_here + 1`: what the provider asked for, else full jitter.

        None before a second question about an answer that came.

        Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        if error.retry_after_s is not None:
            return max(0.0, error.retry_after_s)
        if isinstance(error, LLMInvalidOutput):
            return 0.0
        doublings = min(sends_here - 1, 32)  # far beyond any cap; keeps the power a small number
        return jitter * min(self.max_backoff_s, self.base_backoff_s * 2.0**doublings)

    def _may_repeat(self, error: LLMError, sends_here: int) -> bool:
        if isinstance(
            error, LLMInvalidOutput
        ):  # another question, which the caller's `tries` asks for: no repetition
            return error.retryable and self.retry_possibly_paid is not RetryPossiblyPaid.NEVER
        limit = self.attempts_per_candidate
        if isinstance(error, LLMBadResponse):
            limit = min(limit, MAX_SENDS_OF_BAD_RESPONSE)
        safe = not error.possibly_paid or self.retry_possibly_paid is RetryPossiblyPaid.ALWAYS
        return error.retryable and safe and sends_here < limit

    def _may_fall_back(self, error: LLMError) -> bool:
        safe = not error.possibly_paid or self.retry_possibly_paid is not RetryPossiblyPaid.NEVER
        return safe and self._falls_back(error)

    def _falls_back(self, error: LLMError) -> bool:
        return error.fallback or error.code in self.fallback_on

    def _why_not(self, error: LLMError, *, room: bool) -> StopReason:
        if not room:
            return StopReason.MAX_ATTEMPTS
        risk = self.retry_possibly_paid
        forbidden = risk is RetryPossiblyPaid.NEVER or (
            error.retryable and risk is not RetryPossiblyPaid.ALWAYS
        )
        return StopReason.POSSIBLY_PAID if error.possibly_paid and forbidden else StopReason.NO_CANDIDATE


def acceptable_next(error: LLMError, failed: Candidate, candidate: Candidate) -> bool:
    """Return whether `candidate` can do better than `failed`: a prompt that did not fit needs a larger window."""
    if isinstance(error, LLMContextExceeded):
        return candidate.caps.max_context_tokens > failed.caps.max_context_tokens
    return True


def most_telling(told: LLMError | None, error: LLMError) -> LLMError:
    """Return which error is the call's so far: of the last send, or of who may be asked first where nothing was sent."""
    if told is None or SKIPPED not in error.facts:
        return error
    return error if SKIPPED in told.facts and _again_in_s(error) < _again_in_s(told) else told


def _again_in_s(error: LLMError) -> float:
    return float("inf") if error.retry_after_s is None else error.retry_after_s


def come_back_s(told: LLMError, error: LLMError, verdict: Verdict) -> float | None:
    """Return when a new call makes sense that ended with `error` and tells of `told`; None: as that says itself.

    A budget that refused a further send says nothing about those before it.
    """
    if SKIPPED in told.facts or isinstance(error, LLMBudgetExceeded) or not isinstance(verdict, Stop):
        return None
    return verdict.retry_after_s


def turn_patience_s(*, total_s: float, left_s: float, candidates_to_come: int) -> float:
    """Return the seconds that a send may wait for its turn, so that time is left for it and for those after it.

    Args:
        total_s: The whole call's time.
        left_s: What remains of it.
        candidates_to_come: Kept candidates after this one; each keeps back 20 % of `total_s`.
    """
    share_s = _share_s(total_s, left_s, candidates_to_come)
    return max(0.0, share_s - min(MIN_ATTEMPT_S, left_s / 2))


def attempt_timeout_s(
    *, attempt_cap_s: float, total_s: float, left_s: float, candidates_to_come: int
) -> float:
    """Return the seconds that one send may take, so that a slow candidate leaves time for those after it.

    Args:
        attempt_cap_s: Most that a send may ever take.
        total_s: The whole call's time.
        left_s: What remains of it.
        candidates_to_come: Kept candidates after this one; each keeps back 20 % of `total_s`.

    Returns:
        At least 1 s, yet never more than `attempt_cap_s` or `left_s`, and never less than 0.
    """
    share_s = _share_s(total_s, left_s, candidates_to_come)
    return max(0.0, min(attempt_cap_s, max(MIN_ATTEMPT_S, share_s), left_s))


def _share_s(total_s: float, left_s: float, candidates_to_come: int) -> float:
    return left_s - RESERVED_SHARE * total_s * candidates_to_come

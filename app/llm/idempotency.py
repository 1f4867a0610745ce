"""Claiming a run: win it, or get its answer, or say clearly who holds it.

Waiting is the same within and across processes: poll from 50 ms to 1 s, doubling, with jitter; a holder in this
process wakes its waiters at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from app.llm.errors import LLMAnswerNotStored, LLMKeyConflict, LLMKeyInProgress, LLMOutcomeUnknown
from app.llm.ports import (
    Abandoned,
    Conflict,
    FlightHeld,
    Hit,
    InProgress,
    KeyState,
    LLMRunRepo,
    NewRun,
    Replay,
    StoredAnswer,
    Won,
)
from app.llm.settings import LLMSettings, OnInProgress
from app.llm.types import LLMResponse

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPolicy:
    """What the settings say about waiting."""

    wait_for_key: bool
    lease_grace_s: float

    @classmethod
    def from_settings(cls, settings: LLMSettings) -> "ClaimPolicy":
        """Return the policy that the settings describe."""
        return cls(
            wait_for_key=settings.on_in_progress is OnInProgress.WAIT,
            lease_grace_s=settings.lease_grace_s,
        )


@dataclass(slots=True, kw_only=True)
class Claimer:
    """Claims one run, with all the waiting that may take."""

    repo: LLMRunRepo
    policy: ClaimPolicy
    left_s: Callable[[], float]
    """Seconds until the call's deadline."""
    reserve_s: float
    """A follower of a flight goes on alone while it still has this much time: one attempt's."""
    jitter: Callable[[], float]
    """Random numbers from [0, 1)."""

    async def claim(self, run: NewRun, answer: StoredAnswer | None = None) -> Won | Replay | Hit:
        """Return the won run, or the answer that makes sending needless.

        Raises:
            LLMKeyConflict: The key belongs to another request.
            LLMKeyInProgress: Another call holds the key, and waiting is off or took too long.
            LLMOutcomeUnknown: The key's owner died and takeovers are refused.
            LLMLedgerError: Nothing was claimed.
        """
        pause_s = FIRST_PAUSE_S
        if answer is not None:
            run = replace(run, flight_slot=None)  # there is nothing to send, so nobody has to wait
        while True:
            run = replace(run, lease_s=max(0.0, self.left_s()) + self.policy.lease_grace_s)
            outcome = await self._claim_once(run, answer)
            if isinstance(outcome, Won | Replay | Hit):
                return outcome
            if isinstance(outcome, InProgress):
                self._check_wait_for_key(outcome)
            elif self.left_s() <= self.reserve_s + pause_s:
                run = replace(run, flight_slot=None)
                continue
            wait_s = min(pause_s * (0.5 + self.jitter()), max(0.0, self.left_s()))
            status = await self.repo.wait_finished(outcome.run_id, wait_s)
            if isinstance(outcome, FlightHeld) and status == "SUCCEEDED":
                run = replace(
                    run, flight_slot=None
                )  # its answer serves us inside the next claim, or we go alone
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _claim_once(
        self, run: NewRun, answer: StoredAnswer | None
    ) -> Won | Replay | Hit | InProgress | FlightHeld:
        if answer is None:
            outcome = await self.repo.create_started(run)
        else:
            outcome = await self.repo.save_result_for_idempotency_key(run, answer)
        if isinstance(outcome, Conflict | Abandoned):
            raise refusal(outcome)
        return outcome

    def _check_wait_for_key(self, held: InProgress) -> None:
        if not self.policy.wait_for_key or self.repo.inline or self.left_s() <= 0:
            raise LLMKeyInProgress(
                f"run {held.run_id} holds this key for {held.lease_left_s:.0f} s at most: call again then, set "
                f"LLM_ON_IN_PROGRESS=wait, or free the key with `signalbox runs release {held.run_id}` if its process is dead",
                run_id=held.run_id,
                retry_after_s=round(held.lease_left_s, 3),
            )


def refusal(state: Conflict | Abandoned) -> LLMKeyConflict | LLMOutcomeUnknown:
    """Return the error of a key that cannot be had."""
    if isinstance(state, Conflict):
        return LLMKeyConflict(
            f"this key belongs to run {state.run_id} of another request: use another key for another request",
            run_id=state.run_id,
        )
    return LLMOutcomeUnknown(
        f"the process of run {state.run_id} died; its outcome is unknown, it may have been paid. To execute again: "
        f"force_new_execution=True, or `signalbox runs release {state.run_id}`",
        run_id=state.run_id,
    )


def replayed(state: KeyState) -> LLMResponse | None:
    """Return the answer that a key holds; None when there is none yet.

    Raises:
        LLMKeyConflict: The key belongs to another request.
        LLMOutcomeUnknown: The key's owner died and takeovers are refused.
        LLMAnswerNotStored: The key was executed, only hashes were kept.
    """
    if isinstance(state, Conflict | Abandoned):
        raise refusal(state)
    return answer_of(state.answer) if isinstance(state, Replay) else None


def answer_of(stored: StoredAnswer) -> LLMResponse:
    """Return a stored answer.

    Raises:
        LLMAnswerNotStored: Only its hashes were kept.
    """
    if stored.response is None:
        raise LLMAnswerNotStored(
            f"run {stored.run_id} executed this key already, and its answer was not stored "
            "(LLM_STORE_PAYLOADS=hash, or pruned)",
            run_id=stored.run_id,
        )
    return stored.response

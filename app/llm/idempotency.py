"""Claiming a run: win it, or get its answer, or say clearly who holds it.

Waiting is the same within and across processes: look at the holder's row every 50 ms to 1 s, doubling, with jitter;
a holder in this process wakes its waiters at once. Looking is a read, a claim is a write transaction: those who wait
claim again only when that can win.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from app.llm.errors import LLMAnswerNotStored, LLMKeyConflict, LLMKeyInProgress, LLMOutcomeUnknown
from app.llm.ports import (
    Abandoned,
    Conflict,
    Effect,
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
from app.llm.types import LLMRequest, LLMResponse

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
CLAIM_AGAIN_S = 5.0
"""Seconds after which a waiter claims again in any case: its holder's row may be gone."""


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

    def lease_s(self, left_s: float) -> float:
        """Return the seconds that a run may hold its key: until its deadline, and a grace to settle in."""
        return max(0.0, left_s) + self.lease_grace_s


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
    pause_s: float = FIRST_PAUSE_S
    """Seconds between two looks; grows."""

    async def claim(self, run: NewRun, answer: StoredAnswer | None = None) -> Won | Replay | Hit:
        """Return the won run, or the answer that makes sending needless.

        Raises:
            LLMKeyConflict: The key belongs to another request.
            LLMKeyInProgress: Another call holds the key, and waiting is off or took too long.
            LLMOutcomeUnknown: The key's owner died and takeovers are refused.
            LLMLedgerError: Nothing was claimed.
        """
        while True:
            outcome = await self._claim_once(run, answer)
            if isinstance(outcome, Won | Replay | Hit):
                return outcome
            if isinstance(outcome, InProgress):
                self._check_wait_for_key(outcome)
                ended = await self._outlasted(outcome, reserve_s=0.0)
                if ended == "SUCCEEDED" and (replay := await self._replay(run)) is not None:
                    return replay
                run = self._again(run)
            else:
                ended = await self._outlasted(outcome, reserve_s=self.reserve_s)
                # its answer serves us inside the next claim; else we go alone, as we do when the time is up
                alone = ended == "SUCCEEDED" or self.left_s() <= self.reserve_s
                run = self._again(run, alone=alone)

    async def _outlasted(self, held: InProgress | FlightHeld, *, reserve_s: float) -> str | None:
        """Look at the holder until it has ended, and return how; None when a claim is due all the same.

        That is when its lease can be over, when only `reserve_s` of the call's time is left, and now and then.
        """
        asked_at_s = self.left_s()
        patience_s = min(held.lease_left_s, CLAIM_AGAIN_S)
        while (spare_s := self.left_s() - reserve_s) > 0:
            wait_s = min(self.pause_s * (0.5 + self.jitter()), spare_s)
            status = await self.repo.wait_finished(held.run_id, wait_s)
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
            if status is not None or asked_at_s - self.left_s() >= patience_s:
                return status
        return None

    async def _replay(self, run: NewRun) -> Replay | None:
        if run.idempotency_key is None or run.force:
            return None
        state = await self.repo.get_by_idempotency_key(
            run.workspace_id, run.idempotency_key, run.request_sha256
        )
        return state if isinstance(state, Replay) else None

    def _again(self, run: NewRun, *, alone: bool = False) -> NewRun:
        if isinstance(run.request, Effect):  # its lease is renewed, whatever time its caller has left
            return run
        left_s = self.left_s()
        lease_s = self.policy.lease_s(left_s)
        return replace(run, lease_s=lease_s, left_s=left_s, flight_slot=None if alone else run.flight_slot)

    async def _claim_once(
        self, run: NewRun, answer: StoredAnswer | None
    ) -> Won | Replay | Hit | InProgress | FlightHeld:
        if answer is None:
            outcome = await self.repo.create_started(run)
        else:
            outcome = await self.repo.save_result_for_idempotency_key(run, answer)
        if isinstance(outcome, Conflict | Abandoned):
            raise refusal(outcome, run.request)
        return outcome

    def _check_wait_for_key(self, held: InProgress) -> None:
        if not self.policy.wait_for_key or self.repo.inline or self.left_s() <= 0:
            raise LLMKeyInProgress(
                f"run {held.run_id} holds this key for {held.lease_left_s:.0f} s at most: call again then, set "
                f"LLM_ON_IN_PROGRESS=wait, or free the key with `signalbox runs release {held.run_id}` if its process is dead",
                run_id=held.run_id,
                retry_after_s=round(held.lease_left_s, 3),
            )


def refusal(
    state: Conflict | Abandoned, asked: LLMRequest | Effect | None = None
) -> LLMKeyConflict | LLMOutcomeUnknown:
    """Return the error of a key that cannot be had, in the words of a call or of the effect that was `asked` for."""
    if isinstance(state, Conflict):
        return LLMKeyConflict(
            f"this key belongs to run {state.run_id} of another request: use another key for another request",
            run_id=state.run_id,
        )
    if isinstance(asked, Effect):
        return LLMOutcomeUnknown(
            f"run {state.run_id} of {asked.name} began and told no result: its process died, or it was cancelled, or what "
            "it returned could not be recorded; its outcome is unknown, it may have been done. To do it again: "
            f"`signalbox runs release {state.run_id}`",
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
        raise _not_stored(stored)
    return stored.response


def result_of(stored: StoredAnswer) -> str:
    """Return what an effect returned, as JSON.

    Raises:
        LLMAnswerNotStored: As above.
    """
    if stored.result is None:
        raise _not_stored(stored)
    return stored.result


def _not_stored(stored: StoredAnswer) -> LLMAnswerNotStored:
    return LLMAnswerNotStored(
        f"run {stored.run_id} executed this key already, and its answer was not stored "
        "(LLM_STORE_PAYLOADS=hash, or pruned)",
        run_id=stored.run_id,
    )

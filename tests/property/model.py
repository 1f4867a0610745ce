"""What the ledger should do, as a page of Python: rows in a dict, no SQL, no clock."""

from dataclasses import dataclass, field
from typing import Literal

LIVE, ANSWERED, DEAD = "STARTED", "SUCCEEDED", "ABANDONED"
Ending = Literal["SUCCEEDED", "FAILED", "CANCELLED"]
Told = tuple[object, ...]
"""A kind of outcome and what it says, as `told` in the walk writes the real one."""


@dataclass
class Run:
    """One row, as far as the protocol is concerned."""

    id: str
    workspace: str
    key: str | None
    asked: str
    owner: str
    flight: str | None = None
    slot: str | None = None
    status: str = LIVE
    execution: int = 1
    supersedes: str | None = None
    noted: int = 1
    late: bool = False
    answer: str | None = None
    sends: int = 0
    """Attempt rows."""
    lease_over: bool = False
    expired: bool = False
    aged: bool = False

    def die(self) -> None:
        self.status, self.slot, self.flight, self.aged = DEAD, None, None, False


@dataclass
class Model:
    """All rows; each method does what one transaction should do, and returns what it should say."""

    runs: dict[str, Run] = field(default_factory=dict)

    def holder(self, workspace: str, key: str | None) -> Run | None:
        found = (run for run in self.runs.values() if (run.workspace, run.slot) == (workspace, key))
        return next(found, None) if key is not None else None

    def claim(self, new: Run, *, force: bool, refuse: bool) -> Told:
        """Look first, change afterwards: a refusal of any kind leaves every row as it was."""
        holder = self.holder(new.workspace, new.key)
        leader = next((run for run in self.runs.values() if run.flight and run.flight == new.flight), None)
        if holder is not None and (refusal := self._refusal(holder, new, force=force, refuse=refuse)):
            return refusal
        if leader is not None and leader is not holder:
            if not leader.lease_over:
                return ("FlightHeld", leader.id)
            leader.flight = None
            if leader.slot is None:
                leader.die()
        if holder is not None:
            holder.slot = None
            if holder.status == LIVE:
                holder.die()
            new.supersedes, new.execution = holder.id, holder.execution + 1
        new.slot = new.key
        self.runs[new.id] = new
        return ("Won", new.id, new.execution, new.supersedes)

    @staticmethod
    def _refusal(holder: Run, new: Run, *, force: bool, refuse: bool) -> Told | None:
        if holder.asked != new.asked:
            return ("Conflict", holder.id)
        if force:
            return None
        if holder.status == ANSWERED:
            return None if holder.expired else ("Replay", holder.id, holder.answer)
        if not holder.lease_over:
            return ("InProgress", holder.id)
        return ("Abandoned", holder.id) if refuse else None

    def note(self, run_id: str, owner: str, sends: int) -> Told:
        run = self.runs.get(run_id)
        if run is None or run.status != LIVE or run.owner != owner:
            return ("LLMFenced",)
        run.noted = sends
        return ("None",)

    def finish(self, run: Run, owner: str, ending: Ending, answer: str | None, sends: int) -> Told:
        """`run` is what its owner remembers; the row may be gone, or be another's in all but name."""
        row = self.runs.get(run.id)
        if row is None or row.owner != owner:
            return ("Finished", False, False, None, None)
        if row.status == LIVE:
            row.status, row.flight, row.answer, row.sends = ending, None, answer, sends
            row.slot = row.slot if ending == ANSWERED else None
            return ("Finished", True, False, None, None)
        if row.status != DEAD:
            return ("Finished", row.status == ending, False, None, None)
        if not row.late:
            row.late, row.sends, row.answer = True, sends, answer
        return self._late(row)

    def _late(self, row: Run) -> Told:
        if row.key is None:
            return ("Finished", True, False, None, None)
        holder = self.holder(row.workspace, row.key)
        if holder is None or holder.asked != row.asked:
            return ("Finished", True, True, None, None)
        winner = (holder.id, holder.answer) if holder.status == ANSWERED else None
        return ("Finished", True, True, winner, holder.id)

    def release(self, run_id: str) -> bool:
        run = self.runs.get(run_id)
        if run is None or run.status != LIVE:
            return False
        run.die()
        return True

    def prune(self, *, keys: bool, payloads_only: bool) -> set[str]:
        """Return the runs that change or go."""
        old = [run for run in self.runs.values() if run.status != LIVE and run.aged]
        if payloads_only:
            for run in old:
                run.answer = None
            return {run.id for run in old}
        gone = {run.id for run in old if keys or run.slot is None or run.expired}
        self.runs = {name: run for name, run in self.runs.items() if name not in gone}
        return gone

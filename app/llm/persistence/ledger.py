"""The protocol: at most one live run per key, told as generators of statements that somebody else executes.

Nothing here does I/O, reads a clock or knows a driver. Each function is one transaction.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from app.llm.budgets import Reservation
from app.llm.errors import LLMFenced, LLMLedgerBusy, LLMLedgerUnavailable
from app.llm.fingerprint import FINGERPRINT_VERSION
from app.llm.persistence import budgets
from app.llm.persistence import statements as sql
from app.llm.persistence.codec import PLAIN, Codec, object_json, stored_answer
from app.llm.persistence.executor import Result, Step, Steps
from app.llm.persistence.models import ABANDONED, STARTED, SUCCEEDED
from app.llm.persistence.settlement import Settlement, saved_by
from app.llm.ports import (
    Abandoned,
    ClaimOutcome,
    Conflict,
    Finished,
    FlightHeld,
    Hit,
    InProgress,
    KeyState,
    NewRun,
    Replay,
    StoredAnswer,
    Won,
)
from app.llm.types import ServedFrom

ROUNDS = 3
"""Times that a claim starts over because the holder vanished under it."""
NOTED_AT_ONCE = 100
"""Runs that one statement looks at."""
UNPLACED = (
    "the ledger has no run for this outcome: the row is gone, or somebody else's, or ended otherwise; was the database "
    "replaced or restored?"
)
"""What `Finished(persisted=False)` means where the database answered."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """What the settings say about keys, the cache, and how texts are kept."""

    owner: str
    cache_ttl_s: float
    key_ttl_s: float | None
    refuse_abandoned: bool
    codec: Codec = PLAIN
    memory_bytes: int = 0
    """Of answers that the process keeps at hand for a moment; 0: none."""


@dataclass(frozen=True, slots=True)
class _Free:
    """The key may be taken from its holder, by this statement."""

    how: Literal["take_over", "release", "free_expired", "free_answered"]


Verdict = Replay | Conflict | InProgress | Abandoned | _Free


def judge(holder: Row, request_sha256: str, rules: ClaimRules, *, force: bool) -> Verdict:
    """Say what a key's holder means for a request. Pure.

    Raises:
        LLMLedgerUnavailable: It has an answer, which cannot be read.
    """
    same_version = holder["fingerprint_version"] == FINGERPRINT_VERSION
    if same_version and holder["request_sha256"] != request_sha256:
        return Conflict(run_id=str(holder["id"]))
    if holder["status"] == SUCCEEDED:
        return _judge_answered(holder, rules, force=force)
    return _judge_live(holder, force=force, refuse_abandoned=rules.refuse_abandoned)


def _judge_answered(holder: Row, rules: ClaimRules, *, force: bool) -> Verdict:
    if force:
        return _Free("free_answered")
    if holder["expires_left_s"] is not None and holder["expires_left_s"] <= 0:
        return _Free("free_expired")
    answer = stored_answer(holder, ServedFrom.REPLAY, rules.codec, left_s=holder["expires_left_s"])
    return Replay(answer=answer)


def _judge_live(holder: Row, *, force: bool, refuse_abandoned: bool) -> Verdict:
    if force:
        return _Free("release")
    if holder["lease_left_s"] > 0:
        return InProgress(run_id=str(holder["id"]), lease_left_s=holder["lease_left_s"])
    return Abandoned(run_id=str(holder["id"])) if refuse_abandoned else _Free("take_over")


_FREEING = {
    "take_over": sql.TAKE_OVER,
    "release": sql.RELEASE,
    "free_expired": sql.FREE_EXPIRED,
    "free_answered": sql.FREE_ANSWERED,
}


def key_holder(workspace_id: str, key: str) -> Step:
    """Return the look-up of a key."""
    return Step(sql.KEY_HOLDER, {"workspace_id": workspace_id, "key": key}, brief=True)


def request_of(workspace_id: str, run_id: str) -> Step:
    """Return the look-up of the stored request of a run."""
    return Step(sql.REQUEST_OF, {"workspace_id": workspace_id, "id": run_id}, brief=True)


def run_state(run_id: str) -> Step:
    """Return the look-up of a run's status and owner."""
    return Step(sql.RUN_STATE, {"id": run_id}, brief=True)


def key_state(result: Result, request_sha256: str, rules: ClaimRules) -> KeyState:
    """Say what a look-up of a key means; None when the key is free or may be taken."""
    if result.first is None:
        return None
    state = judge(result.first, request_sha256, rules, force=False)
    return None if isinstance(state, _Free) else state


def find_cached(workspace_id: str, prompt_sha256: str, candidates: Sequence[str], rules: ClaimRules) -> Step:
    """Return the look-up of the freshest servable answer of each candidate, of one at least."""
    values: dict[str, Any] = {f"candidate_{place}": name for place, name in enumerate(candidates)}
    values |= {
        "workspace_id": workspace_id, "prompt_sha256": prompt_sha256, "minus_ttl_s": -rules.cache_ttl_s,
    }  # fmt: skip
    return Step(sql.find_cached(len(candidates)), values, brief=True)


def cached_answers(result: Result, rules: ClaimRules) -> dict[str, StoredAnswer]:
    """Return found answers by candidate identity; one that cannot be read is no hit."""
    found = {}
    for row in result.rows:
        if row["bytes"] is None:
            continue
        with suppress(LLMLedgerUnavailable):
            found[str(row["candidate_sha256"])] = stored_answer(
                row, ServedFrom.CACHE, rules.codec, left_s=rules.cache_ttl_s - row["age_s"]
            )
    return found


def claim(run: NewRun, rules: ClaimRules, answer: StoredAnswer | None = None) -> Steps[ClaimOutcome]:
    """Insert the run, or say who holds its key or its flight; with `answer`, the new row is a hit row.

    Raises:
        LLMBudgetExceeded: Its reservation does not fit.
        LLMLedgerBusy: The holder changed in every round.
    """
    won = Won(run_id=run.run_id)
    for _ in range(ROUNDS):
        # no look at the cache follows, and none at a budget
        alone = answer is None and not run.cache_candidates and run.reservation is None
        inserted = yield _insert(run, rules, won, final=alone)
        if inserted.rowcount:
            return (yield from _after_insert(run, rules, won, answer))
        holder = (
            (yield key_holder(run.workspace_id, run.idempotency_key)).first if run.idempotency_key else None
        )
        state = judge(holder, run.request_sha256, rules, force=run.force) if holder else None
        if state is not None and not isinstance(state, _Free):
            return state
        if (held := (yield from _flight(run.flight_slot, holder))) is not None:
            return held  # before the key is freed: a run that has to wait fences nobody
        if holder is not None and state is not None:
            freed = yield Step(_FREEING[state.how], {"id": holder["id"]})
            if freed.rowcount == 1:
                if state.how in {"take_over", "release"} and holder["reserved_tokens"] is not None:
                    yield from budgets.abandoned(str(holder["id"]))
                won = Won(
                    run_id=run.run_id,
                    execution=holder["execution"] + 1,
                    supersedes=str(holder["id"]),
                    from_dead=state.how == "take_over",
                )
    raise LLMLedgerBusy(
        f"the holder of the key changed {ROUNDS} times during one claim; call again",
        run_id=won.supersedes,
        retry_after_s=0.1,
    )


def _insert(
    run: NewRun,
    rules: ClaimRules,
    won: Won | None,
    *,
    final: bool = False,
) -> Step:
    """Return the insertion of a run, with what it wins by it; None: nothing, as the row is one that has ended."""
    values = _run_values(run, rules)
    if won is None:
        values |= {"idem_slot": None, "flight_slot": None}
    else:
        values |= {
            "idem_slot": run.idempotency_key, "flight_slot": run.flight_slot, "supersedes": won.supersedes,
            "execution": won.execution,
        }  # fmt: skip
    return Step(sql.INSERT_RUN, values, final=final)


def _run_values(run: NewRun, rules: ClaimRules) -> dict[str, Any]:
    (provider, model, identity), held = run.first, run.reservation
    return {
        "id": run.run_id, "workspace_id": run.workspace_id, "pipeline_run_id": run.pipeline_run_id,
        "stage": run.stage, "idempotency_key": run.idempotency_key, "prompt_sha256": run.prompt_sha256,
        "request_sha256": run.request_sha256, "candidate_sha256": identity,
        "fingerprint_version": FINGERPRINT_VERSION, "profile": str(run.profile), "provider": provider, "model": model,
        "cache_mode": run.cache_mode.value, "execution": 1, "supersedes": None, "owner": rules.owner,
        "sends_noted": 1 if run.route.kept else 0, "route": run.route.route.as_json,
        "needs": run.route.needs.model_dump_json(), "metadata": object_json(run.metadata), "lease_s": run.lease_s,
        "reserved_tokens": None if held is None else held.tokens,
        "reserved_cost_usd": None if held is None else held.usd,
        "trace_id": run.trace_id,
    }  # fmt: skip


def _after_insert(
    run: NewRun, rules: ClaimRules, won: Won, answer: StoredAnswer | None
) -> Steps[ClaimOutcome]:
    if answer is None and run.cache_candidates:
        found = cached_answers(
            (yield find_cached(run.workspace_id, run.prompt_sha256, run.cache_candidates, rules)), rules
        )
        answer = next((found[name] for name in run.cache_candidates if name in found), None)
    if answer is None or answer.response is None:
        if run.reservation is not None:
            yield from budgets.reserve(run.run_id, run.reservation)
        return won
    # the texts first: once they are touched, no prune can take them before this row refers to them
    yield Step(sql.TOUCH_PAYLOADS, {"workspace_id": run.workspace_id, "source_run_id": answer.run_id})
    yield Step(sql.TURN_INTO_HIT, _hit_values(run, rules, answer))
    return Hit(run_id=run.run_id, answer=answer)


def record_hits(hits: Sequence[tuple[NewRun, StoredAnswer]], rules: ClaimRules) -> Steps[None]:
    """Write the rows of hits without a key: they claim nothing, so each is one row, finished from the start."""
    sources = sorted({(run.workspace_id, answer.run_id) for run, answer in hits})
    # the texts first, as above
    yield Step(
        sql.TOUCH_PAYLOADS,
        [{"workspace_id": workspace, "source_run_id": source} for workspace, source in sources],
    )
    yield Step(
        sql.INSERT_HIT, [_run_values(run, rules) | _hit_values(run, rules, answer) for run, answer in hits]
    )


def _hit_values(run: NewRun, rules: ClaimRules, answer: StoredAnswer) -> dict[str, Any]:
    response = answer.response
    assert response is not None  # noqa: S101  # the caller looked
    return {
        "id": run.run_id, "owner": rules.owner, "source_run_id": answer.run_id,
        "provider": response.provider.value, "model": response.model, "candidate_sha256": answer.candidate_sha256,
        "finish_reason": response.finish_reason.value,
        **saved_by(run, response), "expires_s": rules.key_ttl_s if run.idempotency_key else None,
    }  # fmt: skip


def _flight(slot: str | None, holder: Row | None) -> Steps[FlightHeld | None]:
    if slot is None:
        return None
    leader = (yield Step(sql.FLIGHT_HOLDER, {"flight_slot": slot})).first
    if leader is None or (holder is not None and leader["id"] == holder["id"]):
        return None
    if leader["lease_left_s"] > 0:
        return FlightHeld(run_id=str(leader["id"]), lease_left_s=leader["lease_left_s"])
    # its owner is dead: a key of its own stays with it until its own callers come, a run without one is over
    freed = yield Step(sql.FREE_FLIGHT if leader["idem_slot"] else sql.TAKE_OVER, {"id": leader["id"]})
    if freed.rowcount and not leader["idem_slot"] and leader["reserved_tokens"] is not None:
        yield from budgets.abandoned(str(leader["id"]))
    return None


def note_send(run_id: str, owner: str, sends: int, more: Reservation | None = None) -> Steps[None]:
    """Commit that send number `sends` may happen, with what it takes beyond what the run holds.

    Raises:
        LLMBudgetExceeded: That does not fit; the send must not happen.
        LLMFenced: The run is no longer ours; there must be no further send.
    """
    noted = yield Step(sql.NOTE_SENDS, {"id": run_id, "owner": owner, "sends": sends}, final=more is None)
    if noted.rowcount != 1:
        raise LLMFenced("another run took this one's key over; nothing more was sent", run_id=run_id)
    if more is not None:
        yield from budgets.raised(run_id, more)


def renew(run_id: str, owner: str, lease_s: float) -> Steps[bool]:
    """Move the end of a lease; False when the run is no longer ours."""
    renewed = yield Step(sql.RENEW, {"id": run_id, "owner": owner, "lease_s": lease_s}, final=True)
    return renewed.rowcount == 1


def finish(settlement: Settlement, codec: Codec = PLAIN) -> Steps[Finished]:
    """Settle a run with its attempts and payloads; harmless when it was settled before, or taken over.

    `codec` reads the answer of the run that took over.
    """
    run, charge = settlement.run, settlement.charge
    texts = _stored(settlement)
    how = sql.FINISH_ANSWERED if run["status"] == SUCCEEDED else sql.FINISH_UNANSWERED
    done = yield Step(how, run, then=texts, final=charge is None)
    if done.rowcount == 1:
        if charge is not None:
            yield from budgets.settled(settlement.workspace_id, run["id"], charge)
        return Finished()
    state = (yield run_state(run["id"])).first
    if state is None or state["owner"] != run["owner"]:
        return Finished(persisted=False)
    if state["status"] != ABANDONED:
        return Finished(
            persisted=state["status"] == run["status"]
        )  # the acknowledgement was lost, not the work
    late = {name: run[name] for name in (*sql.ACCOUNTING, "id", "owner")}
    told = yield Step(sql.RECORD_LATE, late, then=texts)
    if told.rowcount and charge is not None:
        yield from budgets.corrected(settlement.workspace_id, run["id"], charge)
    yield from note_changes([run["id"]])
    if settlement.key is None:
        return Finished()  # no key, so nobody else was promised this run's answer
    holder = (yield key_holder(settlement.workspace_id, settlement.key)).first
    return _fenced(holder, settlement, codec)


def _fenced(holder: Row | None, settlement: Settlement, codec: Codec) -> Finished:
    if holder is None or holder["request_sha256"] != settlement.request_sha256:
        return Finished(fenced=True)
    if holder["status"] == STARTED:
        return Finished(fenced=True, successor_run_id=str(holder["id"]))
    try:
        winner = stored_answer(holder, ServedFrom.REPLAY, codec)
    except LLMLedgerUnavailable:  # the own accounting is written all the same
        winner = StoredAnswer(
            run_id=str(holder["id"]),
            candidate_sha256=holder["candidate_sha256"],
            request_sha256=holder["request_sha256"],
            response=None,
        )
    return Finished(fenced=True, winner=winner, successor_run_id=str(holder["id"]))


def _stored(settlement: Settlement) -> tuple[Step, ...]:
    """Return what a run leaves beside its row: its attempts and its texts."""
    # the texts in one order everywhere, or two finishes could wait for each other
    texts = sorted(settlement.payloads, key=lambda row: str(row["sha256"]))
    steps = (
        Step(sql.INSERT_ATTEMPT, settlement.attempts),
        Step(sql.PUT_PAYLOAD, texts),
    )
    return tuple(step for step in steps if step.params)


def insert_and_finish(run: NewRun, rules: ClaimRules, settlement: Settlement) -> Steps[None]:
    """Write a run that never claimed anything, as one settled row."""
    yield _insert(run, rules, None)
    yield from finish(settlement, rules.codec)


def release(run_id: str, workspace_id: str | None = None) -> Steps[bool]:
    """Declare the owner of a STARTED run dead and free its key; None is the operator, who may with every run."""
    if workspace_id is None:
        released = yield Step(sql.RELEASE, {"id": run_id})
    else:
        released = yield Step(sql.RELEASE_OWN, {"id": run_id, "workspace_id": workspace_id})
    if released.rowcount != 1:
        return False
    yield from budgets.abandoned(run_id)
    return True


def add_replays(counts: Mapping[str, int]) -> Steps[None]:
    """Add up how often answers were replayed."""
    yield Step(
        sql.ADD_REPLAYS,
        [{"id": run_id, "count": count} for run_id, count in sorted(counts.items())],
    )
    yield from note_changes(sorted(counts))


def note_changes(run_ids: Sequence[str]) -> Steps[None]:
    """Note that something of ended runs has changed which reports count."""
    for start in range(0, len(run_ids), NOTED_AT_ONCE):
        part = list(run_ids[start : start + NOTED_AT_ONCE])
        part += part[-1:] * (NOTED_AT_ONCE - len(part))  # a statement of one length, which is compiled once
        yield Step(sql.NOTE_CHANGES, {"ids": part})

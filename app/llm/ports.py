"""The seams of the layer: what the service needs of a provider client and of a ledger, as Protocols only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pydantic import JsonValue

from app.llm.budgets import BudgetBook, Reservation
from app.llm.candidates import Candidate, ModelFacts, RouteDecision
from app.llm.deltas import OnDelta, Parts
from app.llm.errors import LLMError
from app.llm.types import Attempt, CacheMode, FinishReason, LLMRequest, LLMResponse, ServedFrom, TokenUsage


class Clock(Protocol):
    """Time, injected: policies and waits never read it themselves."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary start; never goes backwards."""
        ...

    def now(self) -> datetime:
        """Return the wall clock as an aware UTC datetime."""
        ...

    async def sleep_s(self, seconds: float) -> None:
        """Wait."""
        ...


class IdFactory(Protocol):
    """Makes ids of 36 characters at most that sort by time."""

    def __call__(self) -> str:
        """Return a new id."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderReply:
    """One usable answer of one provider, normalised; `parts` hold deterministic tool-call ids."""

    parts: Parts
    """As in `LLMResponse.parts`."""
    finish_reason: FinishReason
    usage: TokenUsage
    http_status: int | None = 200
    served_from: ServedFrom = ServedFrom.LIVE
    """`LIVE`, or `CASSETTE` if it was said to somebody else, before."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is given an answer as it arrives, one delta after another."""

    on_delta: OnDelta
    left_s: float
    """Seconds from now for the whole stream; they take the place of the send's time with the first delta."""


class ChatClient(Protocol):
    """Sends one attempt to one candidate; never retries, never falls back."""

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
        """Return the candidate's answer.

        Args:
            request: Already `as_sent_to` the candidate's provider.
            candidate: Whom to ask.
            run_id: For whom; named to others while they wait for the slot that this send holds.
            workspace_id: Whose run it is; only calls of the same workspace are told its id.
            timeout_s: Seconds for queueing and the send together; loading a client library, once, is not counted.
            on_send: Called once, right before the request is written, with the milliseconds that were spent waiting
                for a slot. Where it was not called, nothing was sent; an LLMProviderError that it raises is raised,
                and nothing is sent.
            listener: Who is given the answer as it arrives; None asks for the whole at once.

        Raises:
            LLMProviderError: With `provider`, `model`, and `http_status`, `retry_after_s`, `usage` where known; one out
                of a cassette says so in `served_from`.
            LLMCassetteMiss: Nobody may be asked, and no answer is recorded.
        """
        ...

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Load what the first send would load; idempotent.

        Raises:
            LLMTimeout: It was not loaded within `timeout_s` seconds; the loading goes on.
            LLMInternal: It cannot be loaded.
        """
        ...

    async def close(self) -> None:
        """Close what is open; idempotent."""
        ...


TOOL = "tool"
"""Stands on the row of an effect where a call has its provider and its profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Work that leaves traces elsewhere, named by its key: a tool's run, the e-mail of a stage."""

    name: str
    arguments: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """Everything that is known of a run before its first send, or before its work begins."""

    run_id: str
    workspace_id: str
    request: LLMRequest | Effect
    profile: str
    """An `LLMProfile`, or `TOOL`."""
    route: RouteDecision
    prompt_sha256: str
    request_sha256: str
    lease_s: float
    """Seconds from now, by the database's clock, until another call may take the key over."""
    left_s: float | None = None
    """Seconds from now until the call's deadline, beyond which nothing is waited for; None: it has none."""
    pipeline_run_id: str | None = None
    stage: str | None = None
    idempotency_key: str | None = None
    flight_slot: str | None = None
    cache_mode: CacheMode = CacheMode.USE
    cache_candidates: tuple[str, ...] = ()
    """Candidate identities whose cached answer would be served now, in order; empty: the claim looks for none."""
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    force: bool = False
    reservation: Reservation | None = None
    """What it takes of the budgets over its workspace; None where there are none."""
    trace_id: str | None = None
    """32 hex digits, of the trace in which it came about."""

    @property
    def first(self) -> tuple[str | None, str | None, str | None]:
        """Provider, model and candidate identity of who is asked first; of an effect `TOOL` and its name."""
        if isinstance(self.request, Effect):
            return TOOL, self.request.name, None
        if not self.route.kept:
            return None, None, None
        first = self.route.kept[0]
        return first.provider.value, first.model, first.identity


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """An answer out of the ledger. `response` and `result` are None when only hashes were kept."""

    run_id: str
    candidate_sha256: str | None
    request_sha256: str
    response: LLMResponse | None
    result: str | None = None
    """What an effect returned, as JSON."""
    left_s: float | None = field(default=None, compare=False)
    """Seconds, from the look-up that found it, for which it may be served; None: for ever."""
    size_bytes: int = field(default=0, compare=False)
    """About what it takes in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Won:
    """The claim is ours: send. `supersedes` is the run that had the key before, if any, `from_dead` whether its owner died."""

    run_id: str
    execution: int = 1
    supersedes: str | None = None
    from_dead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The key has an answer."""

    answer: StoredAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """The cache has an answer; the new row (`run_id`) was written as its hit row."""

    run_id: str
    answer: StoredAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """The key belongs to another request."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InProgress:
    """Another call holds the key for at most `lease_left_s` seconds more."""

    run_id: str
    lease_left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """The key's owner let its lease run out and takeovers are refused."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightHeld:
    """Another call works on the same fingerprint."""

    run_id: str
    lease_left_s: float


ClaimOutcome = Won | Replay | Hit | Conflict | InProgress | Abandoned | FlightHeld
KeyState = Replay | Conflict | InProgress | Abandoned | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """How a run ended well. `source_run_id` names the cached run whose answer was served after failed sends."""

    response: LLMResponse
    candidate_sha256: str
    attempts: Sequence[Attempt]
    queue_wait_ms: float
    source_run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How an effect ended well."""

    result: str
    """What it returned, as JSON."""
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a run ended badly, by an error or by cancellation."""

    error: LLMError
    attempts: Sequence[Attempt]
    queue_wait_ms: float
    latency_ms: float
    partial: Parts = ()
    """What had arrived of the answer of the last attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What settling did. `persisted=False`: the answer is in a file of the spool, or nowhere."""

    persisted: bool = True
    fenced: bool = False
    winner: StoredAnswer | None = None
    """Of a fenced run: the answer of the run that took over, if it has one."""
    successor_run_id: str | None = None


class Describer(Protocol):
    """Asks providers what their models can do."""

    def asks_about(self, candidate: Candidate) -> bool:
        """Return whether its provider describes its models, and may be asked."""
        ...

    async def describe(self, candidates: Sequence[Candidate]) -> Mapping[str, ModelFacts]:
        """Return what is said of these models, by `provider:model`; one that is not there is left out.

        Raises:
            LLMProviderError: Nothing was said, or not in time.
        """
        ...

    async def close(self) -> None:
        """Close what is open; idempotent."""
        ...


class LLMRunRepo(BudgetBook, Protocol):
    """The ledger. Every method is one transaction (or one savepoint of the caller's, in the joined binding)."""

    inline: bool
    """True for the joined binding: no background work, no waiting on other runs, no flight slots."""

    async def get_by_idempotency_key(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        """Return what the key holds now; None when it is free or may be taken over."""
        ...

    async def get_cached(
        self, workspace_id: str, prompt_sha256: str, candidates: Sequence[str]
    ) -> Mapping[str, StoredAnswer]:
        """Return the freshest servable answer of each candidate identity that has one."""
        ...

    async def create_started(self, run: NewRun) -> ClaimOutcome:
        """Claim: insert the row, or say who holds the key or the flight.

        Raises:
            LLMBudgetExceeded: Its reservation does not fit; likewise.
            LLMLedgerError: Nothing was claimed; nothing may be sent.
        """
        ...

    async def save_result_for_idempotency_key(self, run: NewRun, answer: StoredAnswer) -> ClaimOutcome:
        """Claim with the answer already known: the row is a hit row from the start."""
        ...

    async def record_hit(self, run: NewRun, answer: StoredAnswer) -> None:
        """Write the row of a hit without a key; may return before it is written."""
        ...

    async def record_failed(self, run: NewRun, error: LLMError) -> None:
        """Write a FAILED row for a run that never got to a claim (no candidate)."""
        ...

    async def note_send(self, run_id: str, sends: int, more: Reservation | None = None) -> None:
        """Commit that send number `sends` may happen, with what it takes beyond the run's reservation.

        Without it there is no such send.
        """
        ...

    async def renew(self, run: NewRun) -> bool:
        """Let the lease of a STARTED run be over `run.lease_s` seconds from now; False when it is no longer ours."""
        ...

    async def abandon(self, run: NewRun) -> None:
        """Let the lease of a STARTED run be over, as if its owner had died: nobody knows whether its work was done.

        Never raises for database faults: the lease then ends by itself.
        """
        ...

    async def asked(self, workspace_id: str, run_id: str) -> LLMRequest | Effect | None:
        """Return what a run of the workspace was about; None where that is not stored, or not yet.

        Raises:
            LLMLedgerError: It cannot be read, here or now.
        """
        ...

    async def mark_succeeded(self, run: NewRun, success: Success) -> Finished:
        """Settle a run that has its answer; never raises for database faults (the answer is spooled)."""
        ...

    async def mark_done(self, run: NewRun, done: Done) -> Finished:
        """Settle an effect whose work is done, likewise."""
        ...

    async def mark_failed(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run that has none."""
        ...

    async def mark_cancelled(self, run: NewRun, failure: Failure) -> Finished:
        """Settle a run whose caller is gone."""
        ...

    async def wait_finished(self, run_id: str, timeout_s: float) -> str | None:
        """Wait at most `timeout_s` for a run to leave STARTED; return its status, None while STARTED or unknown."""
        ...

    def count_replay(self, run_id: str) -> None:
        """Add one to the run's `replayed_count`, some time soon."""
        ...

    async def release(self, run_id: str, workspace_id: str) -> bool:
        """Declare a STARTED run's owner dead and free its key; False when the workspace has no such run."""
        ...

    async def drain(self) -> None:
        """Wait for background transitions; idempotent."""
        ...

    async def close(self) -> None:
        """Drain, then close what is open; idempotent."""
        ...

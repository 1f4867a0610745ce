"""Every way a call can fail, as one tree whose classes say what may be done about it.

LLMError
├── LLMContractError              the caller's side: nothing was sent for this call
│   ├── LLMSettingsError          a setting is wrong; names the variable
│   ├── LLMInvalidRequest         a request that no candidate could ever serve
│   ├── LLMSchemaMismatch         a JSON schema that a candidate cannot be told in full, and must
│   ├── LLMWorkspaceMissing       no source names a workspace
│   ├── LLMWorkspaceConflict      two sources name different workspaces
│   ├── LLMNoCandidate            every candidate was excluded; the reasons are attached
│   ├── LLMKeyConflict            the key belongs to another request
│   ├── LLMKeyInProgress          another call holds the key now
│   ├── LLMKeyUnavailable         a key was given but runs are not persisted
│   ├── LLMAnswerNotStored        the key was executed, only hashes were kept
│   ├── LLMBudgetExceeded         the workspace has spent what it may in this day or month
│   ├── LLMCassetteMiss           a cassette has no answer to this request; nothing was sent
│   └── LLMOutcomeUnknown         the owner of the key died and the settings forbid a takeover
├── LLMProviderError              a provider answered badly or not at all
│   ├── LLMUnavailable            refused, reset, 5xx
│   ├── LLMTimeout                no complete answer in time
│   ├── LLMRateLimited            429
│   │   └── LLMOverRate           it would be one too many now; nothing was sent
│   ├── LLMQueueFull              too many calls wait for a slot already; nothing was sent
│   ├── LLMBadRequest             400-class: the request itself is refused
│   ├── LLMContextExceeded        the prompt does not fit
│   ├── LLMCapability             the model cannot do what was asked (tools, thinking)
│   ├── LLMAuth                   401, 403, wrong key
│   ├── LLMModelNotFound          404
│   ├── LLMContentFiltered        the answer or the prompt was filtered
│   ├── LLMBadResponse            a 200 that cannot be used
│   ├── LLMInvalidOutput          an answer that the caller's check refused
│   ├── LLMInternal               a defect of the client library or of ours
│   └── LLMUnknown                anything else
├── LLMCancelled                  the caller went away; recorded on the row, raised to readers of a closed stream
├── LLMEffectFailed               the work of an effect raised; recorded on the row, never raised
├── LLMFenced                     another run took the key over; the own answer is attached
└── LLMLedgerError                the database side
    ├── LLMLedgerBusy             the lock was not to be had in time
    ├── LLMLedgerUnavailable      the database cannot be reached: nothing was sent
    └── LLMLedgerSchema           tables are missing, too old or too new

Two attributes decide what the service does next: `retryable` (the same candidate again) and `fallback` (the next
one). `possibly_paid` says that the provider may have done, and charged, the work.
"""

from typing import Any, ClassVar, Self

Fact = Any  # a JSON value, or a tuple of attempts


class LLMError(Exception):
    """The root. `code` is stable and stored on the row; `facts` are the keyword facts it was raised with.

    The three attributes are those of the class unless one failure is known to differ.
    """

    code: ClassVar[str] = "error"
    retryable: bool = False
    fallback: bool = False
    possibly_paid: bool = False

    def __init__(self, message: str, **facts: Fact) -> None:
        super().__init__(message)
        self.facts: dict[str, Fact] = {name: value for name, value in facts.items() if value is not None}
        if "possibly_paid" in self.facts:
            self.possibly_paid = bool(self.facts["possibly_paid"])

    @property
    def message(self) -> str:
        """What went wrong and what to do, in one line, free of secrets."""
        return str(self.args[0])

    @property
    def run_id(self) -> str | None:
        """The row of the run that failed, or that holds the key."""
        return self.facts.get("run_id")

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which a new try makes sense, where that is known."""
        return self.facts.get("retry_after_s")

    @property
    def attempts(self) -> tuple[Any, ...]:
        """The sends of the run (`Attempt`), in order."""
        return tuple(self.facts.get("attempts", ()))

    def with_facts(self, **facts: Fact) -> Self:
        """Add facts that only a floor above knows (the run id, the attempts) and return the same error."""
        self.facts.update({name: value for name, value in facts.items() if value is not None})
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message), self.__dict__


def _rebuild(cls: type[LLMError], message: str) -> LLMError:
    return cls(message)


class LLMContractError(LLMError):
    """The caller's side of the contract is broken; nothing was sent for this call."""

    code = "contract"


class LLMSettingsError(LLMContractError):
    """A setting is wrong: `variable`, and what would be right."""

    code = "settings"


class LLMInvalidRequest(LLMContractError):
    """No candidate could ever serve this request."""

    code = "invalid_request"


class LLMSchemaMismatch(LLMContractError):
    """A candidate cannot be told a JSON schema in full, and LLM_SCHEMA_MISMATCH is `error`."""

    code = "schema_mismatch"


class LLMWorkspaceMissing(LLMContractError):
    """No source names a workspace."""

    code = "workspace_missing"


class LLMWorkspaceConflict(LLMContractError):
    """Two sources name different workspaces, runs or stages."""

    code = "workspace_conflict"


class LLMNoCandidate(LLMContractError):
    """Every candidate was excluded: `route` holds the reasons."""

    code = "no_candidate"


class LLMKeyConflict(LLMContractError):
    """The key belongs to a run of another request: `run_id`."""

    code = "key_conflict"


class LLMKeyInProgress(LLMContractError):
    """Another call holds the key: `run_id`, `retry_after_s` (what is left of its lease)."""

    code = "key_in_progress"


class LLMKeyUnavailable(LLMContractError):
    """A key needs persisted runs."""

    code = "key_unavailable"


class LLMAnswerNotStored(LLMContractError):
    """The key was executed (`run_id`), but only hashes of the answer were kept."""

    code = "answer_not_stored"


class LLMBudgetExceeded(LLMContractError):
    """A send does not fit under a budget of its workspace: `per`, `period`, `measure`, `limit`, `spent`, `reserved`, `needed`, `begins_anew_at`, `retry_after_s`. Candidates that cost nothing are not held back by dollars."""

    code = "budget_exceeded"


class LLMCassetteMiss(LLMContractError):
    """A cassette (`cassette`) has no answer to this request, or none that is left: `nearest` is the recorded request that is most like it, `line` its line, `path` where they differ first."""

    code = "cassette_miss"


class LLMOutcomeUnknown(LLMContractError):
    """The owner of the key died, or work that is run once was cut off (`run_id`); whether it was paid, or done, is unknown, and the settings forbid a takeover."""

    code = "outcome_unknown"
    possibly_paid = True


class LLMProviderError(LLMError):
    """A provider answered badly or not at all: `provider`, `model`, `http_status` where there was one."""

    code = "provider"


class LLMUnavailable(LLMProviderError):
    """Refused, reset, or a 5xx. Possibly paid unless the connection was refused."""

    code = "unavailable"
    retryable = True
    fallback = True


class LLMTimeout(LLMProviderError):
    """No complete answer in time."""

    code = "timeout"
    retryable = True
    fallback = True


class LLMRateLimited(LLMProviderError):
    """429: `retry_after_s` where the provider said so."""

    code = "rate_limited"
    retryable = True
    fallback = True


class LLMOverRate(LLMRateLimited):
    """The provider may not be asked yet, by its rates or its own word: `retry_after_s` says when. Nothing was sent."""

    code = "over_rate"
    retryable = False


class LLMQueueFull(LLMProviderError):
    """Too many calls wait for this provider: `run_ids` of the workspace and `others` hold its slots. Nothing was sent."""

    code = "queue_full"
    fallback = True


class LLMBadRequest(LLMProviderError):
    """The provider refuses the request itself; another candidate would be sent the same mistake."""

    code = "bad_request"


class LLMContextExceeded(LLMProviderError):
    """The prompt does not fit; only a candidate with a larger window may be tried."""

    code = "context_exceeded"
    fallback = True


class LLMCapability(LLMProviderError):
    """The model cannot do what was asked, whatever the matrix says."""

    code = "capability"
    fallback = True


class LLMAuth(LLMProviderError):
    """The credentials are missing or refused."""

    code = "auth"


class LLMModelNotFound(LLMProviderError):
    """The provider does not know the model."""

    code = "model_not_found"


class LLMContentFiltered(LLMProviderError):
    """The prompt or the answer was filtered."""

    code = "content_filtered"
    possibly_paid = True


class LLMBadResponse(LLMProviderError):
    """A 200 that cannot be used: garbage, empty, wrong shape."""

    code = "bad_response"
    retryable = True
    fallback = True
    possibly_paid = True


class LLMInvalidOutput(LLMProviderError):
    """Answers came, none passed the caller's check: `rejected` holds each of them and what is wrong with it."""

    code = "invalid_output"
    retryable = True
    fallback = True
    possibly_paid = True

    @property
    def rejected(self) -> tuple[Any, ...]:
        """The answers that did not pass (`Rejected`), in order, over all candidates."""
        return tuple(self.facts.get("rejected", ()))


class LLMInternal(LLMProviderError):
    """A defect of the client library or of this package."""

    code = "internal"


class LLMUnknown(LLMProviderError):
    """A failure that no rule knows."""

    code = "unknown"
    possibly_paid = True


class LLMCancelled(LLMError):
    """The caller went away; it sees its own CancelledError. Raised where a stream is read that somebody else closed."""

    code = "cancelled"


class LLMEffectFailed(LLMError):
    """The work of an effect raised. It stands on the row; the caller itself sees what the work raised."""

    code = "effect_failed"


class LLMFenced(LLMError):
    """Another run took the key over while this one worked: `run_id`, `answer` (this run's own, paid answer)."""

    code = "fenced"
    possibly_paid = True


class LLMLedgerError(LLMError):
    """The database side."""

    code = "ledger"


class LLMLedgerBusy(LLMLedgerError):
    """The lock was not to be had in time: `retry_after_s`."""

    code = "ledger_busy"


class LLMLedgerUnavailable(LLMLedgerError):
    """The database cannot be reached. Before a call: nothing was sent."""

    code = "ledger_unavailable"


class LLMLedgerSchema(LLMLedgerError):
    """Tables are missing, too old or too new; the message says what to run."""

    code = "ledger_schema"

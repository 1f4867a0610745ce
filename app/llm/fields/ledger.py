"""The settings of the ledger: what is recorded, for how long, and how it is found again."""

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from app.llm.endpoints import payload_keys
from app.llm.fields import Fields


class CacheMatch(StrEnum):
    """`first`: serve a candidate's match when it would be sent to; `any`: serve the first match in route order."""

    FIRST = "first"
    ANY = "any"


class StorePayloads(StrEnum):
    """`full` keeps requests and answers; `hash` keeps their hashes only."""

    FULL = "full"
    HASH = "hash"


class OnAbandoned(StrEnum):
    """What a call does with the key of a dead owner."""

    RETRY = "retry"
    REFUSE = "refuse"


class OnInProgress(StrEnum):
    """What a call does while another one holds its key."""

    ERROR = "error"
    WAIT = "wait"


class LedgerFields(Fields):
    """What is recorded of each call."""

    # -- ledger
    persist_runs: bool = True
    """Whether runs are recorded. Without it there are no keys, and the cache lives in this process only."""
    database_url: SecretStr = SecretStr("sqlite+aiosqlite:///signalbox.db")
    """The ledger's database: `sqlite+aiosqlite:///FILE` or `postgresql+asyncpg://USER:PASSWORD@HOST/NAME`."""
    auto_migrate: bool | None = None
    """Whether start-up creates or upgrades the tables. Unset: yes for SQLite, no for PostgreSQL."""
    ledger_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Seconds that one ledger transaction may wait for its lock or connection."""
    lease_grace_s: float = Field(default=15.0, gt=0, le=3600)
    """Seconds that a run keeps its key beyond its deadline, or a tool beyond its last sign of life; at least twice LLM_FINISH_BUDGET_S."""
    finish_budget_s: float = Field(default=5.0, gt=0, le=600)
    """Seconds spent on writing a paid answer before it goes to the spool."""
    spool_dir: Path | None = None
    """Directory, on a local disk, for answers that the database could not take. Unset: beside the SQLite file, else the user's state directory."""
    cache_enabled: bool = False
    """Whether equal prompts are answered from earlier runs."""
    cache_ttl_s: float = Field(default=86_400.0, gt=0)
    """Seconds that an answer may serve as a hit."""
    cache_match: CacheMatch = CacheMatch.FIRST
    """Which match is served: `first` (of the candidate that would be sent to) or `any` (first in route order)."""
    memory_cache_bytes: int = Field(default=32 * 2**20, ge=0, le=2**40)
    """Bytes of answers that are kept in memory for a second after a look-up found them, for bursts. 0: none."""
    idempotency_ttl_s: float | None = Field(default=None, gt=0)
    """Seconds that a key keeps its answer. Unset: for ever."""
    store_payloads: StorePayloads = StorePayloads.FULL
    """What is kept of requests and answers: `full`, or `hash` (then nothing can be replayed)."""
    payload_key: SecretStr | None = None
    """Encrypts stored requests and answers, in the database and the spool: base64 of 32 bytes, as `openssl rand -base64 32` makes it. Several, separated by commas: the first encrypts, all decrypt. Needs the extra `crypto`."""
    on_abandoned: OnAbandoned = OnAbandoned.RETRY
    """A key whose owner died, or whose work was cut off (`llm.once`, tools): `retry` (take it over) or `refuse`."""
    on_in_progress: OnInProgress = OnInProgress.ERROR
    """A key that another call holds: `error`, or `wait` for its answer."""
    default_workspace: str | None = None
    """Workspace of calls that name none, for programs with one tenant."""

    @field_validator("payload_key")
    @classmethod
    def _payload_keys_have_their_length(cls, value: SecretStr | None) -> SecretStr | None:
        payload_keys(value)
        return value

    @model_validator(mode="after")
    def _ledger_fits_together(self) -> Self:
        if self.lease_grace_s < 2 * self.finish_budget_s:
            raise ValueError(
                f"LLM_LEASE_GRACE_S={self.lease_grace_s:g}: must be at least twice LLM_FINISH_BUDGET_S"
                f"={self.finish_budget_s:g}, or a slow finish loses its key"
            )
        if self.cache_enabled and self.store_payloads is StorePayloads.HASH:
            raise ValueError(
                "LLM_CACHE_ENABLED=true: needs LLM_STORE_PAYLOADS=full, not hash: a hash cannot be served"
            )
        return self

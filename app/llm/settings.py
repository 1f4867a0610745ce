"""Every setting of the routing layer, with its unit; a wrong value is refused at start, by its variable's name."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from app.llm.endpoints import NO_KEY, has_good_port, header_pairs, items_of, passwords_of, payload_keys
from app.llm.environment import refuse_empty, refuse_misspelt
from app.llm.errors import LLMSettingsError
from app.llm.schemas import SchemaMismatch
from app.llm.types import LLMProfile, LLMProvider, checked_model

PREFIX = "LLM_"

_USER_OF_URL = re.compile(r"(://).*@")  # greedy: a password may hold any character, even one more "@"
FALLBACK_CODES = ("auth", "model_not_found", "content_filtered")

CommaList = Annotated[tuple[str, ...], NoDecode]


class RouterPolicy(StrEnum):
    """How the list of a profile is ordered; the last two are stable sorts of it."""

    AS_LISTED = "as_listed"
    LOCAL_FIRST = "local_first"
    CLOUD_FIRST = "cloud_first"


class RetryPossiblyPaid(StrEnum):
    """When a send that may have been paid may be repeated."""

    NEVER = "never"
    FALLBACK_ONLY = "fallback_only"
    ALWAYS = "always"


class LiteLLMLane(StrEnum):
    """How much of LiteLLM a call goes through."""

    DIALECT = "dialect"
    ACOMPLETION = "acompletion"


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


class LLMSettings(BaseSettings):
    """Settings from `LLM_` variables or a `.env` file in the working directory.

    The string below a field is its meaning; the settings table of the README is made from it.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    # -- routing
    default_profile: LLMProfile = LLMProfile.BALANCED
    """Profile of a request that names none."""
    profile_fast: CommaList = ("ollama", "gemini")
    """Candidates of the profile `fast`, in order: `provider:model`, or a bare provider for its configured model."""
    profile_balanced: CommaList = ("ollama", "gemini")
    """Candidates of the profile `balanced`."""
    profile_advanced: CommaList = ("ollama", "gemini")
    """Candidates of the profile `advanced`."""
    router_policy: RouterPolicy = RouterPolicy.AS_LISTED
    """Order of the candidates: `as_listed`, or a stable sort of the list: `local_first`, `cloud_first`."""
    fallback_on: CommaList = ()
    """Errors that normally end a call but may fall back here: any of `auth`, `model_not_found`, `content_filtered`."""
    schema_mismatch: SchemaMismatch = SchemaMismatch.SIMPLIFY
    """A JSON schema that a candidate cannot be told in full: `simplify` (send what it can be told), `route` (exclude the candidate), `error` (refuse the call)."""
    fallback_to_cloud: bool = True
    """Whether a prompt that a local candidate failed on may go to a cloud candidate."""
    local_only: bool = False
    """Whether prompts must stay on the hosts of LLM_LOCAL_HOSTS."""
    local_hosts: CommaList = ("localhost", "127.0.0.1", "::1")
    """Hosts of an API base that count as local. Ollama's `-cloud` models never do."""

    # -- providers
    ollama_api_base: str = "http://localhost:11434"
    """Root of the Ollama server, without `/api`."""
    ollama_model: str = "llama3.2"
    """Model of a bare `ollama` in a profile."""
    ollama_num_ctx: int = Field(default=8192, ge=256, le=10_000_000)
    """Context window that is asked for, in tokens. Always sent: Ollama cuts longer prompts silently."""
    ollama_keep_alive: str | None = None
    """How long Ollama keeps the model loaded, e.g. `5m`, `-1` for ever. Unset: the server's default."""
    ollama_api_key: SecretStr | None = None
    """Bearer token for a reverse proxy in front of Ollama."""
    ollama_headers: SecretStr | None = None
    """Further headers for that proxy, as `Name: value` pairs separated by `;`."""
    gemini_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LLM_GEMINI_API_KEY", "GEMINI_API_KEY", "gemini_api_key")
    )
    """Key of the Gemini API; `GEMINI_API_KEY` is read too. Without it Gemini candidates are excluded."""
    gemini_model: str = "gemini-2.5-flash"
    """Model of a bare `gemini` in a profile."""
    gemini_api_base: str = "https://generativelanguage.googleapis.com/v1beta"
    """Root of the Gemini API; ends in `/v1beta`."""
    ca_bundle: Path | None = None
    """File of CA certificates for HTTPS, for company proxies. Unset: SSL_CERT_FILE, else the system's."""

    litellm_lane: LiteLLMLane = LiteLLMLane.DIALECT
    """How calls to Ollama and Gemini leave: `dialect` (LiteLLM writes the request, the rest is ours, at a fraction of the cost) or `acompletion` (all of LiteLLM)."""

    # -- limits
    concurrency_limit: int = Field(default=64, ge=1)
    """Sends in flight at once, over all providers."""
    ollama_concurrency_limit: int = Field(default=8, ge=1)
    """Sends in flight at once to Ollama."""
    gemini_concurrency_limit: int = Field(default=32, ge=1)
    """Sends in flight at once to Gemini."""
    queue_limit: int = Field(default=1000, ge=0)
    """Calls that may wait for a slot of one provider; the next one is refused at once, or falls back."""
    default_timeout_s: float = Field(default=120.0, gt=0, le=86_400)
    """Seconds for a whole call that names no timeout: queueing, every send, every wait."""
    attempt_timeout_s: float = Field(default=60.0, gt=0, le=86_400)
    """Seconds for one send at most; for a stream, until its first delta."""
    stream_idle_timeout_s: float = Field(default=60.0, gt=0, le=86_400)
    """Seconds between two chunks of a streamed answer, after which it fails."""
    max_attempts: int = Field(default=4, ge=1, le=100)
    """Sends of one call over all candidates."""
    attempts_per_candidate: int = Field(default=2, ge=1, le=100)
    """Sends of one call to the same candidate."""
    retry_possibly_paid: RetryPossiblyPaid = RetryPossiblyPaid.FALLBACK_ONLY
    """Whether a send that may have been paid is repeated: `never`, `fallback_only` (at another candidate), `always`."""

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
    log_content: bool = False
    """Whether log events may carry prompts and answers (redacted)."""

    @field_validator(
        "profile_fast", "profile_balanced", "profile_advanced", "fallback_on", "local_hosts", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(item.strip() for item in value.split(",") if item.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("profile_fast", "profile_balanced", "profile_advanced")
    @classmethod
    def _known_providers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one candidate, e.g. ollama,gemini")
        for item in value:
            provider, colon, model = item.partition(":")
            if provider not in set(LLMProvider) or (colon and not model):
                raise ValueError(
                    f"{item!r} is not `provider:model` or a provider of {', '.join(LLMProvider)}"
                )
            if colon:
                checked_model(item)
        return value

    @field_validator("fallback_on")
    @classmethod
    def _known_codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [item for item in value if item not in FALLBACK_CODES]:
            raise ValueError(f"{wrong[0]!r} is not one of {', '.join(FALLBACK_CODES)}")
        return value

    @field_validator("ollama_api_base", "gemini_api_base")
    @classmethod
    def _base_is_a_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.username or parts.password:
            raise ValueError("must not hold a user or password: use LLM_OLLAMA_API_KEY or LLM_OLLAMA_HEADERS")
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or parts.query
            or not has_good_port(parts)
        ):
            raise ValueError("must be a URL such as http://localhost:11434, without a query")
        return value.rstrip("/")

    @field_validator("ollama_model", "gemini_model")
    @classmethod
    def _model_is_a_name(cls, value: str, info: ValidationInfo) -> str:
        provider = str(info.field_name).removesuffix("_model")
        return checked_model(f"{provider}:{value}").partition(":")[2]

    @field_validator("gemini_api_base")
    @classmethod
    def _base_has_version(cls, value: str) -> str:
        if not value.endswith("/v1beta"):
            raise ValueError("must end in /v1beta")
        return value

    @field_validator("ollama_headers")
    @classmethod
    def _headers_are_pairs(cls, value: SecretStr | None) -> SecretStr | None:
        header_pairs(value)
        return value

    @field_validator("payload_key")
    @classmethod
    def _payload_keys_have_their_length(cls, value: SecretStr | None) -> SecretStr | None:
        payload_keys(value)
        return value

    @field_validator("ca_bundle")
    @classmethod
    def _bundle_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("no such file")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
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

    def profile(self, profile: LLMProfile) -> tuple[str, ...]:
        """Return the listed candidates of a profile as `provider:model`."""
        listed: tuple[str, ...] = getattr(self, f"profile_{LLMProfile(profile)}")
        defaults = {LLMProvider.OLLAMA: self.ollama_model, LLMProvider.GEMINI: self.gemini_model}
        return tuple(
            dict.fromkeys(item if ":" in item else f"{item}:{defaults[LLMProvider(item)]}" for item in listed)
        )

    def secrets(self) -> tuple[str, ...]:
        """Return every configured value that must show nowhere, for the redactor."""
        values = [value for value in vars(self).values() if isinstance(value, SecretStr)]
        secrets = {value.get_secret_value() for value in values if value is not self.database_url}
        for header in header_pairs(self.ollama_headers).values():
            secrets |= {header, header.rpartition(" ")[2]}  # without the scheme: Bearer, Basic
        secrets.update(items_of(self.payload_key))
        secrets |= passwords_of(self.database_url.get_secret_value())
        return tuple(secrets)


class _Isolated(LLMSettings):
    """Settings of nothing but the given values: neither environment nor `.env` is read."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the given values only."""
        return (init_settings,)


def isolated_settings(**values: Any) -> LLMSettings:
    """Return settings of the given values and the defaults, whatever the environment says.

    Raises:
        LLMSettingsError: As `load_settings`.
    """
    return _checked(_Isolated, values)


def load_settings(**values: Any) -> LLMSettings:  # whatever a field takes
    """Read the settings once; `values` (by field name) beat the environment, which beats `.env`.

    Raises:
        LLMSettingsError: One line for each wrong value: variable, value (masked if secret), what would be right.
    """
    known = [f"{PREFIX}{name.upper()}" for name in LLMSettings.model_fields]
    refuse_misspelt(os.environ, prefix=PREFIX, known=known)
    env_file = values.get("_env_file", LLMSettings.model_config["env_file"])
    refuse_empty("LLM_PAYLOAD_KEY", NO_KEY, settings=LLMSettings, env_file=env_file)
    return _checked(LLMSettings, values)


def _checked(kind: type[LLMSettings], values: dict[str, Any]) -> LLMSettings:
    try:
        return kind(**values)
    except ValidationError as error:
        text = "; ".join(_explain(fault) for fault in error.errors(include_url=False))
    raise LLMSettingsError(text)  # here, without pydantic's error behind it, which holds the values


def _explain(fault: Any) -> str:  # pydantic's ErrorDetails
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    name = str(fault["loc"][0])
    field = name.lower().removeprefix(PREFIX.lower())
    annotation = str(LLMSettings.model_fields[field].annotation) if field in LLMSettings.model_fields else ""
    shown = (
        "********" if "Secret" in annotation else _USER_OF_URL.sub(r"\1********@", repr(fault.get("input")))
    )
    variable = name if name.isupper() else f"{PREFIX}{name.upper()}"
    return f"{variable}={shown}: {message}"

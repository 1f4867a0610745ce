"""Every setting of the routing layer, with its unit; a wrong value is refused at start, by its variable's name."""

import os
import re
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from app.llm.endpoints import NO_KEY, header_pairs, items_of, passwords_of
from app.llm.environment import refuse_empty, refuse_misspelt
from app.llm.errors import LLMSettingsError
from app.llm.fields import PREFIX, CommaList
from app.llm.fields.anthropic import AnthropicFields
from app.llm.fields.budgets import BudgetFields
from app.llm.fields.cassette import CassetteFields, LLMMode
from app.llm.fields.gemini import GeminiFields
from app.llm.fields.groq import GroqFields
from app.llm.fields.ledger import CacheMatch, LedgerFields, OnAbandoned, OnInProgress, StorePayloads
from app.llm.fields.ollama import OllamaFields
from app.llm.fields.openai import OpenAIFields
from app.llm.fields.own import known_providers, own_fields
from app.llm.fields.rates import RateFields
from app.llm.fields.routing_file import RoutingFileFields
from app.llm.fields.telemetry import LogFormat, TelemetryFields
from app.llm.routing_file import Origins
from app.llm.schemas import SchemaMismatch
from app.llm.types import LLMProfile, checked_model

__all__ = [
    "FALLBACK_CODES",
    "PREFIX",
    "CacheMatch",
    "LLMMode",
    "LLMSettings",
    "LiteLLMLane",
    "LogFormat",
    "OnAbandoned",
    "OnInProgress",
    "RetryPossiblyPaid",
    "RouterPolicy",
    "StorePayloads",
    "isolated_settings",
    "load_settings",
]

_USER_OF_URL = re.compile(r"(://).*@")  # greedy: a password may hold any character, even one more "@"
FALLBACK_CODES = ("auth", "model_not_found", "content_filtered")


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


class LLMSettings(
    RoutingFileFields,
    OllamaFields,
    GeminiFields,
    OpenAIFields,
    AnthropicFields,
    GroqFields,
    BudgetFields,
    RateFields,
    LedgerFields,
    TelemetryFields,
    CassetteFields,
):
    """Settings from `LLM_` variables, a `.env` file in the working directory, or the routing file that they name."""

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
    ca_bundle: Path | None = None
    """File of CA certificates for HTTPS, for company proxies. Unset: SSL_CERT_FILE, else the system's."""
    litellm_lane: LiteLLMLane = LiteLLMLane.DIALECT
    """How calls to Ollama and Gemini leave (to all others as `acompletion`): `dialect` (LiteLLM writes the request, the rest is ours, at a fraction of the cost) or `acompletion` (all of LiteLLM)."""

    # -- limits
    concurrency_limit: int = Field(default=64, ge=1)
    """Sends in flight at once, over all providers."""
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

    # -- log
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
            if provider not in known_providers() or (colon and not model):
                raise ValueError(
                    f"{item!r} is not `provider:model` or a provider of {', '.join(known_providers())}"
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

    @field_validator("ca_bundle")
    @classmethod
    def _bundle_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("no such file")
        return value

    def profile(self, profile: LLMProfile) -> tuple[str, ...]:
        """Return the listed candidates of a profile as `provider:model`."""
        listed: tuple[str, ...] = getattr(self, f"profile_{LLMProfile(profile)}")
        return tuple(
            dict.fromkeys(
                item if ":" in item else f"{item}:{getattr(self, f'{item}_model')}" for item in listed
            )
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
    return _checked(_with_own(_Isolated), values)


def load_settings(**values: Any) -> LLMSettings:  # whatever a field takes
    """Read the settings once; `values` (by field name) beat the environment, which beats `.env`, which beats the routing file.

    Raises:
        LLMSettingsError: For each wrong value: its variable or its line in the file, the value (masked if secret), and
            what would be right.
    """
    kind = _with_own(LLMSettings)
    known = [f"{PREFIX}{name.upper()}" for name in kind.model_fields]
    refuse_misspelt(os.environ, prefix=PREFIX, known=known)
    env_file = values.get("_env_file", LLMSettings.model_config["env_file"])
    refuse_empty("LLM_PAYLOAD_KEY", NO_KEY, settings=LLMSettings, env_file=env_file)
    return _checked(kind, values)


@cache
def _with_own(kind: type[LLMSettings]) -> type[LLMSettings]:
    """Return the class with the fields of providers of a user's own."""
    own = own_fields()
    return type(kind.__name__, (kind, *own), {"__module__": kind.__module__}) if own else kind


def _checked(kind: type[LLMSettings], values: dict[str, Any]) -> LLMSettings:
    try:
        return kind(**values)
    except ValidationError as error:
        origins = Origins.of(kind, values, kind.read_file)
        text = "; ".join(_explain(fault, kind, origins) for fault in error.errors(include_url=False))
    raise LLMSettingsError(text)  # here, without pydantic's error behind it, which holds the values


def _explain(fault: Any, kind: type[LLMSettings], origins: Origins) -> str:  # pydantic's ErrorDetails
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    name, *within = map(str, fault["loc"])
    field = name.lower().removeprefix(PREFIX.lower())
    annotation = str(kind.model_fields[field].annotation) if field in kind.model_fields else ""
    origin = origins.origin(field, *within)
    text = repr(fault.get("input") if origin.text is None else origin.text)
    shown = "********" if "Secret" in annotation else _USER_OF_URL.sub(r"\1********@", text)
    variable = name if name.isupper() else f"{PREFIX}{name.upper()}"
    place = "".join((variable, *(f"[{each}]" for each in within))) if origin.text is None else origin.name
    return f"{place}={shown}: {message}"

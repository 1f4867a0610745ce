"""The settings that a routing file is about: where it is, whom it switches off, and what it says of models and stages."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource

from app.llm.fields import CommaList, Fields
from app.llm.fields.budgets import Budget
from app.llm.routing_file import RoutingFileSource
from app.llm.routing_file.source import Variable
from app.llm.routing_file.values import FileValues, Known, read_values
from app.llm.types import LLMProfile, checked_model

_LIMIT = "_concurrency_limit"
"""The end of a field that every provider has, one of a user's own too."""


class ModelOverrides(BaseModel):
    """What the operator knows of one model better than any table; None leaves it as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    num_ctx: int | None = Field(default=None, ge=256, le=10_000_000)
    """Window that is asked for with every call, in tokens; it takes the place of the provider's own setting."""
    max_context_tokens: int | None = Field(default=None, gt=0)
    supports_tools: bool | None = None
    supports_forced_tool_choice: bool | None = None
    supports_json: bool | None = None
    supports_json_schema: bool | None = None
    supports_vision: bool | None = None
    supports_documents: bool | None = None
    supports_audio: bool | None = None
    supports_video: bool | None = None

    def caps(self) -> dict[str, Any]:
        """Return what is said of the caps, by their fields."""
        return self.model_dump(exclude={"num_ctx"}, exclude_none=True)


class RoutingFileFields(Fields):
    """What a routing file adds to the settings; each can be a variable as well."""

    # -- routing file
    config_file: Path | None = None
    """A routing file, YAML or TOML. Variables and `.env` beat it, it beats the defaults."""
    providers_off: CommaList = ()
    """Providers that are never asked, whatever the profiles list."""
    model_overrides: Annotated[
        dict[Annotated[str, AfterValidator(checked_model)], ModelOverrides], NoDecode
    ] = Field(default={})
    """What is known better of single models, as JSON: `{"ollama:qwen3:8b": {"num_ctx": 16384, "supports_vision": false}}`."""
    stage_profiles: Annotated[dict[str, LLMProfile], NoDecode] = Field(default={})
    """Profile of each stage, for requests that name none: `query_routing=fast,tool_calling=advanced`."""
    fallback: str | None = None
    """Candidate that every profile tries last: `provider:model`, or a bare provider for its configured model."""

    # -- learning
    learn_timeout_s: float = Field(default=2.0, ge=0, le=60)
    """Seconds that Ollama has to say what its models are and can do (`/api/tags`, `/api/show`); the first call to a model waits for it. 0: it is not asked."""
    learn_ttl_s: float = Field(default=3600.0, gt=0)
    """Seconds after which it is asked again, beside a call. A model that was pulled anew is known by then, and cached answers of its old weights are served no more."""

    @field_validator("providers_off", mode="before")
    @classmethod
    def _list_of_providers(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("providers_off")
    @classmethod
    def _providers_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for provider in value:
            cls._check_provider(provider)
        return value

    @field_validator("model_overrides", mode="before")
    @classmethod
    def _models_are_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None

    @field_validator("model_overrides")
    @classmethod
    def _models_are_candidates(cls, value: dict[str, ModelOverrides]) -> dict[str, ModelOverrides]:
        for name, said in value.items():
            provider = cls._check_provider(name.partition(":")[0])
            has_window = f"{provider}_num_ctx" in cls.model_fields
            if said.num_ctx is not None and not has_window:
                raise ValueError(f"{name}: {provider} takes no num_ctx: write max_context_tokens")
            if said.max_context_tokens is not None and has_window:
                raise ValueError(f"{name}: the window of {provider} is what is asked for: write num_ctx")
        return value

    @field_validator("stage_profiles", mode="before")
    @classmethod
    def _stages_are_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [item.partition("=") for item in value.split(",") if item.strip()]
        if wrong := [stage for stage, equals, profile in pairs if not equals or not stage.strip()]:
            raise ValueError(f"{wrong[0]!r} is no `stage=profile`")
        return {stage.strip(): profile.strip() for stage, _, profile in pairs}

    @field_validator("fallback")
    @classmethod
    def _fallback_is_a_candidate(cls, value: str | None) -> str | None:
        if value is None:
            return None
        provider, colon, _ = value.partition(":")
        cls._check_provider(provider)
        return checked_model(value) if colon else value

    @model_validator(mode="after")
    def _fallback_is_on(self) -> Self:
        if self.fallback and self.fallback.partition(":")[0] in self.providers_off:
            raise ValueError(f"LLM_FALLBACK={self.fallback}: its provider is off (LLM_PROVIDERS_OFF)")
        return self

    def num_ctx_of(self, provider: str, model: str) -> int:
        """Return the window that is asked for with every call to a model, in tokens."""
        said = self.model_overrides.get(f"{provider}:{model}")
        own: int = getattr(self, f"{provider}_num_ctx")
        return own if said is None or said.num_ctx is None else said.num_ctx

    def fallback_name(self) -> str | None:
        """Return the fallback as `provider:model`."""
        if self.fallback is None or ":" in self.fallback:
            return self.fallback
        return f"{self.fallback}:{getattr(self, f'{self.fallback}_model')}"

    @classmethod
    def providers_known(cls) -> tuple[str, ...]:
        """Return the providers that have settings, and can be switched on and off."""
        return tuple(name.removesuffix(_LIMIT) for name in cls.model_fields if name.endswith(_LIMIT))

    @classmethod
    def _check_provider(cls, name: str) -> str:
        if name not in cls.providers_known():
            raise ValueError(f"{name!r} is no provider of {', '.join(cls.providers_known())}")
        return name

    @classmethod
    def read_file(cls, path: Path, variable: Variable) -> FileValues:
        """Return what a routing file says.

        Raises:
            LLMSettingsError: As `read_values`.
        """
        known = Known(
            fields=cls.model_fields,
            overrides=ModelOverrides.model_fields,
            budgets=Budget.model_fields,
            providers=cls.providers_known(),
            variable=variable,
        )
        return read_values(path, known)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the routing file below the environment."""
        file = RoutingFileSource(settings_cls, dotenv_settings, cls.read_file)
        return init_settings, env_settings, dotenv_settings, file, file_secret_settings

"""Candidates and decisions: the immutable snapshots that the router reads, and what it makes of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import attrgetter

from pydantic import Field, JsonValue

from app.llm.messages import Frozen
from app.llm.schemas import Dialects, Loss
from app.llm.types import LLMProfile, LLMProvider


class ProviderCaps(Frozen):
    """What a candidate can do. `assumed` marks a model that only has its provider's defaults."""

    supports_tools: bool
    supports_forced_tool_choice: bool
    supports_json: bool
    supports_json_schema: bool
    supports_vision: bool
    supports_documents: bool = False
    supports_audio: bool = False
    supports_video: bool = False
    max_context_tokens: int = Field(gt=0)
    schemas: Dialects | None = None
    """How it is told of schemas; None where nothing of a schema is lost."""
    preferred_for_profiles: tuple[LLMProfile, ...] = ()
    assumed: bool = True


class ModelFacts(Frozen):
    """What a provider says of one of its models; None where it says nothing."""

    context_tokens: int | None = None
    tools: bool | None = None
    vision: bool | None = None
    weights: str | None = None
    """The digest of what the name stands for now; another one answers otherwise."""

    def applied(self, caps: ProviderCaps) -> ProviderCaps:
        """Return caps that agree with these facts; a window is never wider than what is asked for."""
        said = {"supports_tools": self.tools, "supports_vision": self.vision}
        window = min(self.context_tokens or caps.max_context_tokens, caps.max_context_tokens)
        known = {name: able for name, able in said.items() if able is not None}
        return caps.model_copy(
            update={**known, "max_context_tokens": window, "assumed": caps.assumed and not known}
        )


class Candidate(Frozen):
    """A provider:model pair that the router may use, as one immutable snapshot of what is known about it."""

    provider: LLMProvider
    model: str
    caps: ProviderCaps
    local: bool
    """Whether a prompt stays on hosts that `LLM_LOCAL_HOSTS` names."""
    usable: bool = True
    """False while its provider has no credentials."""
    enabled: bool = True
    """False where the settings switch its provider off."""
    identity: str
    """`candidate_sha256`: provider, model, API base, the options that our provider module adds, and the digest of the
    weights where that is known."""

    @cached_property
    def name(self) -> str:
        """`provider:model`."""
        return f"{self.provider}:{self.model}"


class RouteReason(StrEnum):
    """Why a candidate was kept or excluded; machine-readable."""

    PINNED = "pinned"
    LISTED = "listed"
    LOCAL_FIRST = "local_first"
    CLOUD_FIRST = "cloud_first"
    FALLBACK = "fallback"
    NO_TOOLS = "no_tools"
    NO_FORCED_TOOL_CHOICE = "no_forced_tool_choice"
    NO_JSON = "no_json"
    NO_JSON_SCHEMA = "no_json_schema"
    NO_VISION = "no_vision"
    NO_DOCUMENTS = "no_documents"
    NO_AUDIO = "no_audio"
    NO_VIDEO = "no_video"
    SCHEMA_MISMATCH = "schema_mismatch"
    CONTEXT_TOO_SMALL = "context_too_small"
    LOCAL_ONLY = "local_only"
    NO_CLOUD_FALLBACK = "no_cloud_fallback"
    NO_CREDENTIALS = "no_credentials"
    PROVIDER_OFF = "provider_off"
    PROVIDER_NOT_ALLOWED = "provider_not_allowed"
    NOT_IN_PROFILE = "not_in_profile"
    NOT_PINNED = "not_pinned"
    FALLBACK_NOT_ALLOWED = "fallback_not_allowed"
    BUDGET = "budget"


class Needs(Frozen):
    """What a request demands of a candidate; token figures are conservative estimates."""

    tools: bool = False
    forced_tool_choice: bool = False
    json_object: bool = False
    json_schema: bool = False
    vision: bool = False
    documents: bool = False
    audio: bool = False
    video: bool = False
    losses: tuple[Loss, ...] = ()
    """What its schemas would lose in each dialect, if that matters."""
    input_tokens_estimate: int = 0
    output_tokens_reserved: int = 0

    @property
    def skills(self) -> tuple[bool, ...]:
        """Whether each of `SKILLS` is needed."""
        return _skills_of(self)

    def lost_by(self, caps: ProviderCaps) -> Loss | None:
        """Return what is lost first of the schemas on their way to such a candidate."""
        return next((loss for loss in self.losses if caps.schemas and loss.dialect in caps.schemas), None)

    @property
    def tokens(self) -> int:
        """The window that prompt and answer need together."""
        return self.input_tokens_estimate + self.output_tokens_reserved


SKILLS = (
    *("tools", "forced_tool_choice", "json_object", "json_schema"),
    *("vision", "documents", "audio", "video"),
)
"""The fields of `Needs` that a candidate satisfies or not, however long the prompt is."""
_skills_of = attrgetter(*SKILLS)


class RouteEntry(Frozen):
    """One candidate of a decision."""

    candidate: Candidate
    kept: bool
    reason: RouteReason
    detail: dict[str, JsonValue] = Field(default_factory=dict)
    """Facts behind the reason: `estimate`, `limit` for a context that is too small, for instance."""

    def summary(self) -> dict[str, JsonValue]:
        """Return the entry as it is stored on the row: names and reasons, no snapshot."""
        entry: dict[str, JsonValue] = {
            "provider": self.candidate.provider.value,
            "model": self.candidate.model,
            "kept": self.kept,
            "reason": self.reason.value,
        }
        if self.candidate.caps.assumed:
            entry["assumed"] = True
        return {**entry, **({"detail": dict(self.detail)} if self.detail else {})}


@dataclass(frozen=True)
class Route:
    """The ordered candidates: kept ones in the order of sending, then the excluded ones. Requests may share one."""

    entries: tuple[RouteEntry, ...]

    @cached_property
    def kept(self) -> tuple[Candidate, ...]:
        """The candidates to send to, in order."""
        return tuple(entry.candidate for entry in self.entries if entry.kept)

    @cached_property
    def as_json(self) -> str:
        """The summary as it is stored on the row."""
        return json.dumps(self.summaries, separators=(",", ":"))

    @cached_property
    def summaries(self) -> tuple[dict[str, JsonValue], ...]:
        """What `RouteDecision.summary` copies."""
        return tuple(entry.summary() for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDecision:
    """What was decided for one request: its route, and what it needs of the candidates of each provider."""

    profile: LLMProfile
    route: Route
    needs_of: Mapping[LLMProvider | None, Needs]
    """None stands for every provider that is not named."""

    @property
    def entries(self) -> tuple[RouteEntry, ...]:
        """Every candidate with its reason."""
        return self.route.entries

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """The candidates to send to, in order."""
        return self.route.kept

    @property
    def needs(self) -> Needs:
        """What the first candidate must do (variants may ask different things of different providers)."""
        return self.needs_of[self.entries[0].candidate.provider] if self.entries else Needs()

    def summary(self) -> list[dict[str, JsonValue]]:
        """Return the decision as it is stored on the row."""
        return [dict(entry) for entry in self.route.summaries]

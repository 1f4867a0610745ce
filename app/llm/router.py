"""Decides which candidates a request may be sent to, in which order and why: pure, so a decision can be replayed."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Self

from pydantic import JsonValue

from app.llm.candidates import (
    SKILLS,
    Candidate,
    Needs,
    ProviderCaps,
    Route,
    RouteDecision,
    RouteEntry,
    RouteReason,
)
from app.llm.errors import LLMNoCandidate, LLMSchemaMismatch
from app.llm.needs import NeedsByProvider, needs_by_provider
from app.llm.providers import PROVIDERS, Catalog
from app.llm.schemas import Loss, SchemaMismatch
from app.llm.settings import LLMSettings, RouterPolicy
from app.llm.types import LLMConstraints, LLMProfile, LLMProvider, LLMRequest

PROVIDER_CAPABILITIES: Mapping[LLMProvider, ProviderCaps] = MappingProxyType(
    {  # model_construct: the defaults alone, no environment is read
        provider: facts.caps(LLMSettings.model_construct(), "a-model-in-no-table")
        for provider, facts in PROVIDERS.items()
    }
)
"""What a model that no table knows is assumed to do; each provider module holds the table of the known ones."""

ROUTES_KEPT = 512
"""Most routes that are remembered; a program asks for a handful."""

EVERYBODY_WELL: Mapping[str, bool] = MappingProxyType({})

_REASONS = {
    RouterPolicy.AS_LISTED: RouteReason.LISTED,
    RouterPolicy.LOCAL_FIRST: RouteReason.LOCAL_FIRST,
    RouterPolicy.CLOUD_FIRST: RouteReason.CLOUD_FIRST,
}
_NOT_CONSIDERED = frozenset({RouteReason.NOT_PINNED, RouteReason.NOT_IN_PROFILE})

_AFTER_THE_WINDOW = frozenset({RouteReason.FALLBACK_NOT_ALLOWED, RouteReason.NO_CLOUD_FALLBACK})
"""Reasons that are given only to a candidate whose window is large enough."""

_SKILLS = (
    ("tools", "supports_tools", RouteReason.NO_TOOLS),
    ("forced_tool_choice", "supports_forced_tool_choice", RouteReason.NO_FORCED_TOOL_CHOICE),
    ("json_object", "supports_json", RouteReason.NO_JSON),
    ("json_schema", "supports_json_schema", RouteReason.NO_JSON_SCHEMA),
    ("vision", "supports_vision", RouteReason.NO_VISION),
    ("documents", "supports_documents", RouteReason.NO_DOCUMENTS),
    ("audio", "supports_audio", RouteReason.NO_AUDIO),
    ("video", "supports_video", RouteReason.NO_VIDEO),
)
"""What `Needs` asks, the field of `ProviderCaps` that answers it, and the reason when it says no."""

_WORDS: Mapping[RouteReason, str] = {
    RouteReason.PROVIDER_NOT_ALLOWED: "not among constraints.providers",
    RouteReason.PROVIDER_OFF: "switched off (LLM_PROVIDERS_OFF, or providers in LLM_CONFIG_FILE)",
    RouteReason.NO_CREDENTIALS: "no credentials (set LLM_{provider}_API_KEY)",
    RouteReason.LOCAL_ONLY: "not local, and LLM_LOCAL_ONLY or constraints.local_only keeps prompts local"
    " (name its host in LLM_LOCAL_HOSTS if it is yours)",
    RouteReason.NO_TOOLS: "cannot call tools (list a model that can)",
    RouteReason.NO_FORCED_TOOL_CHOICE: "cannot be forced to call a tool (use tool_choice='auto')",
    RouteReason.NO_JSON: "cannot be held to JSON",
    RouteReason.NO_JSON_SCHEMA: "cannot be held to a JSON schema (use json_object, or list a model that can)",
    RouteReason.NO_VISION: "cannot see images (list a model that can)",
    RouteReason.NO_DOCUMENTS: "cannot read PDF files (list a model that can, or send their text)",
    RouteReason.NO_AUDIO: "cannot hear audio (list a model that can)",
    RouteReason.NO_VIDEO: "cannot watch video (list a model that can)",
    RouteReason.SCHEMA_MISMATCH: "cannot be told {keyword!r} at #{path} of {schema}, {losses} losses in all"
    " (leave it out of the schema, or set LLM_SCHEMA_MISMATCH=simplify)",
    RouteReason.CONTEXT_TOO_SMALL: "about {estimate} tokens plus {reserved} for the answer exceed its window"
    " of {limit} (shorten the prompt, lower max_output_tokens, or widen the window)",
    RouteReason.FALLBACK_NOT_ALLOWED: "would be a fallback, which constraints.allow_fallback forbids",
    RouteReason.NO_CLOUD_FALLBACK: "would be a fallback to the cloud, which LLM_FALLBACK_TO_CLOUD forbids",
    RouteReason.BUDGET: "needs {needed}, and {left} are left of the budget of this {per} (LLM_BUDGETS)",
    RouteReason.NOT_PINNED: "another model is pinned (set constraints.allow_fallback)",
    RouteReason.NOT_IN_PROFILE: "not in the profile (add it to LLM_PROFILE_{profile})",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRouter:
    """Orders the candidates of a profile and excludes the unfit ones, each with its reason."""

    default_profile: LLMProfile = LLMProfile.BALANCED
    policy: RouterPolicy = RouterPolicy.AS_LISTED
    local_only: bool = False
    fallback_to_cloud: bool = True
    schema_mismatch: SchemaMismatch = SchemaMismatch.SIMPLIFY
    stages: Mapping[str, LLMProfile] = field(default_factory=dict, compare=False)
    """Profiles of stages; no part of what a remembered route depends on, for that knows its profile."""

    @classmethod
    def from_settings(cls, settings: LLMSettings) -> Self:
        """Return the router that the settings describe."""
        return cls(
            default_profile=settings.default_profile,
            policy=settings.router_policy,
            local_only=settings.local_only,
            fallback_to_cloud=settings.fallback_to_cloud,
            schema_mismatch=settings.schema_mismatch,
            stages=settings.stage_profiles,
        )

    def route(
        self,
        request: LLMRequest,
        constraints: LLMConstraints | None = None,
        *,
        caps: Catalog,
        health: Mapping[str, bool] = EVERYBODY_WELL,
        stage: str | None = None,
    ) -> RouteDecision:
        """Return the candidates to send to, in order, then the excluded ones. Equal arguments, equal decision.

        Args:
            request: Its profile, or its stage's, or the default one, is the list. A pinned model replaces the list; it
                heads the list instead where a fallback is explicitly allowed.
            constraints: Further limits beside the request's own; the tighter of the two rules.
            caps: The candidates, and what each can do.
            health: False for a `provider:model` that is known to be down. It is asked after the healthy ones, never
                dropped; where `fallback_to_cloud` is off, no cloud candidate gets behind a local one that way.
            stage: The step of a workflow that it belongs to.

        Raises:
            LLMInvalidRequest: The pinned model names an unknown provider.
            LLMSchemaMismatch: A candidate that is kept cannot be told a schema in full, and the settings want it to.
        """
        limits = tightened(request.constraints, constraints)
        profile = self.profile_of(request, stage)
        whole_schemas = self.schema_mismatch is not SchemaMismatch.SIMPLIFY
        needs_of = needs_by_provider(request, whole_schemas=whole_schemas)
        asked = _Asked(
            profile=profile,
            model=request.model,
            local_only=limits.local_only,
            allow_fallback=limits.allow_fallback,
            providers=limits.providers,
            needs=tuple([(who, needs.skills, needs.losses) for who, needs in needs_of.items()]),
        )
        route, smallest_window = _route_of_short_prompts(self, caps, asked)
        if max([needs.tokens for needs in needs_of.values()]) > smallest_window:
            route = self._route(asked, needs_of, caps)
        if self.schema_mismatch is SchemaMismatch.ERROR:
            _refuse_losses(route, needs_of)
        if health:
            route = Route(self._healthy_first(route, health))
        return RouteDecision(profile=profile, route=route, needs_of=needs_of)

    def profile_of(self, request: LLMRequest, stage: str | None) -> LLMProfile:
        """Return the profile of a request: its own, else its stage's, else the default one."""
        of_stage = self.stages.get(stage) if stage else None
        return request.profile or of_stage or self.default_profile

    def _route(self, asked: "_Asked", needs_of: Mapping[LLMProvider | None, Needs], caps: Catalog) -> Route:
        kept: list[RouteEntry] = []
        excluded: list[RouteEntry] = []
        for candidate, reason in self._considered(asked, caps):
            needs = needs_of[candidate.provider]
            fault = reason if reason in _NOT_CONSIDERED else self._fault(candidate, needs, asked, kept)
            entry = RouteEntry(
                candidate=candidate,
                kept=fault is None,
                reason=fault or reason,
                detail=_detail(fault, candidate, needs),
            )
            (excluded if fault else kept).append(entry)
        return Route((*kept, *excluded))

    def select_provider(
        self,
        request: LLMRequest,
        constraints: LLMConstraints | None = None,
        *,
        caps: Catalog,
        health: Mapping[str, bool] = EVERYBODY_WELL,
    ) -> LLMProvider:
        """Return the provider that `route` would send to first.

        Raises:
            LLMNoCandidate: Every candidate is excluded; the message says why, and what to do.
            LLMInvalidRequest: As in `route`.
        """
        decision = self.route(request, constraints, caps=caps, health=health)
        if not decision.kept:
            raise no_candidate(decision)
        return decision.kept[0].provider

    def _considered(self, asked: "_Asked", caps: Catalog) -> Iterator[tuple[Candidate, RouteReason]]:
        """Yield every candidate once: the pinned one, those of the profile in the policy's order, all others."""
        reason = _REASONS[self.policy]
        pinned = None if asked.model is None else caps.pinned(asked.model)
        if pinned is not None:
            yield pinned, RouteReason.PINNED
            reason = reason if asked.allow_fallback else RouteReason.NOT_PINNED
        for candidates, why in (
            (self._in_order(caps.listed(asked.profile), caps.fallback), reason),
            (caps.unlisted(asked.profile), RouteReason.NOT_IN_PROFILE),
        ):
            for candidate in candidates:
                if candidate is not pinned:  # a listed candidate is pinned as the same object
                    last = candidate is caps.fallback and why not in _NOT_CONSIDERED
                    yield candidate, RouteReason.FALLBACK if last else why

    def _in_order(self, listed: tuple[Candidate, ...], last: Candidate | None) -> tuple[Candidate, ...]:
        if self.policy is RouterPolicy.AS_LISTED:
            return listed
        local_first = self.policy is RouterPolicy.LOCAL_FIRST
        return tuple(sorted(listed, key=lambda each: (each is last, each.local is not local_first)))

    def _fault(
        self, candidate: Candidate, needs: Needs, asked: "_Asked", kept: list[RouteEntry]
    ) -> RouteReason | None:
        """Return the first reason against a candidate that would come after `kept`."""
        return (
            self._forbidden(candidate, asked)
            or _unable(candidate.caps, needs)
            or self._at_a_loss(candidate.caps, needs)
            or _too_small(candidate.caps, needs)
            or self._no_fallback(candidate, asked, kept)
        )

    def _forbidden(self, candidate: Candidate, asked: "_Asked") -> RouteReason | None:
        if asked.providers is not None and candidate.provider not in asked.providers:
            return RouteReason.PROVIDER_NOT_ALLOWED
        if not candidate.enabled:
            return RouteReason.PROVIDER_OFF
        if not candidate.usable:
            return RouteReason.NO_CREDENTIALS
        if (self.local_only or asked.local_only) and not candidate.local:
            return RouteReason.LOCAL_ONLY
        return None

    def _at_a_loss(self, caps: ProviderCaps, needs: Needs) -> RouteReason | None:
        lost = self.schema_mismatch is SchemaMismatch.ROUTE and needs.lost_by(caps)
        return RouteReason.SCHEMA_MISMATCH if lost else None

    def _no_fallback(
        self, candidate: Candidate, asked: "_Asked", kept: list[RouteEntry]
    ) -> RouteReason | None:
        if kept and asked.allow_fallback is False:
            return RouteReason.FALLBACK_NOT_ALLOWED
        to_cloud = not self.fallback_to_cloud and not candidate.local
        if to_cloud and any(entry.candidate.local for entry in kept):
            return RouteReason.NO_CLOUD_FALLBACK
        return None

    def _healthy_first(self, route: Route, health: Mapping[str, bool]) -> tuple[RouteEntry, ...]:
        def rank(entry: RouteEntry) -> tuple[bool, bool, bool]:
            behind_the_cloud = entry.candidate.local and not self.fallback_to_cloud
            return entry.reason is RouteReason.FALLBACK, behind_the_cloud, "unhealthy" in entry.detail

        marked = (
            entry
            if health.get(entry.candidate.name, True)
            else entry.model_copy(update={"detail": {"unhealthy": True}})
            for entry in route.entries
            if entry.kept
        )
        return *sorted(marked, key=rank), *(entry for entry in route.entries if not entry.kept)


class _Asked(NamedTuple):
    """All of a request that a route depends on, but for its length."""

    profile: LLMProfile
    model: str | None
    local_only: bool | None
    allow_fallback: bool | None
    providers: tuple[LLMProvider, ...] | None
    needs: tuple[tuple[LLMProvider | None, tuple[bool, ...], tuple[Loss, ...]], ...]
    """Of everybody else, who is None, and of each provider that the request has a variant for: the skills that it needs,
    and what its schemas would lose."""


@lru_cache(maxsize=ROUTES_KEPT)
def _route_of_short_prompts(router: LLMRouter, caps: Catalog, asked: _Asked) -> tuple[Route, int]:
    """Return the route of a prompt that fits everywhere, and the tokens up to which any prompt has the same one."""
    needs_of = NeedsByProvider(
        {
            provider: Needs(**dict(zip(SKILLS, skills, strict=True)), losses=losses)
            for provider, skills, losses in asked.needs
        }
    )
    route = router._route(asked, needs_of, caps)  # noqa: SLF001  # its memory
    windows = (
        entry.candidate.caps.max_context_tokens
        for entry in route.entries
        if entry.kept or entry.reason in _AFTER_THE_WINDOW
    )
    return route, min(windows, default=sys.maxsize)


def no_candidate(decision: RouteDecision) -> LLMNoCandidate:
    """Return the error for a decision that kept nobody: each candidate, why not, and what to do about it."""

    def said(entry: RouteEntry) -> str:
        names = {"provider": entry.candidate.provider.upper(), "profile": decision.profile.upper()}
        return f"{entry.candidate.name}: {_WORDS[entry.reason].format(**names, **entry.detail)}"

    faults = "; ".join(said(entry) for entry in decision.entries)
    return LLMNoCandidate(
        f"no candidate of profile {decision.profile} can serve this request: {faults}",
        route=decision.summary(),
    )


LACKING: Mapping[str, str] = {
    "tools": "supports_tools",
    "tool": "supports_tools",
    "images": "supports_vision",
    "image": "supports_vision",
    "vision": "supports_vision",
}
"""Providers' words for a capability that is missing -> the field of the matrix."""


def without(caps: ProviderCaps, lacking: str) -> ProviderCaps:
    """Return caps without what a provider says its model lacks; the same caps when the word is not known."""
    field = LACKING.get(lacking.lower())
    return caps if field is None else caps.model_copy(update={field: False, "assumed": False})


def tightened(one: LLMConstraints, other: LLMConstraints | None) -> LLMConstraints:
    """Return the limits that keep both: local only if either says so, a fallback unless either forbids it.

    None says nothing, so the other one's word counts.
    """
    if other is None:
        return one
    providers = one.providers if other.providers is None else other.providers
    if one.providers is not None and other.providers is not None:
        providers = tuple(provider for provider in one.providers if provider in other.providers)
    return LLMConstraints(
        local_only=_ruling(one.local_only, other.local_only, tight=True),
        allow_fallback=_ruling(one.allow_fallback, other.allow_fallback, tight=False),
        providers=providers,
    )


def _ruling(*said: bool | None, tight: bool) -> bool | None:
    return tight if tight in said else next((word for word in said if word is not None), None)


def _unable(caps: ProviderCaps, needs: Needs) -> RouteReason | None:
    for asked, able, reason in _SKILLS:
        if getattr(needs, asked) and not getattr(caps, able):
            return reason
    return None


def _too_small(caps: ProviderCaps, needs: Needs) -> RouteReason | None:
    return RouteReason.CONTEXT_TOO_SMALL if needs.tokens > caps.max_context_tokens else None


def _refuse_losses(route: Route, needs_of: Mapping[LLMProvider | None, Needs]) -> None:
    for candidate in route.kept:
        if loss := needs_of[candidate.provider].lost_by(candidate.caps):
            told = _WORDS[RouteReason.SCHEMA_MISMATCH].format(**_lost(loss))
            raise LLMSchemaMismatch(
                f"{candidate.name} {told}", provider=candidate.provider, model=candidate.model, **_lost(loss)
            )


def _lost(loss: Loss) -> dict[str, JsonValue]:
    first = loss.misfits[0]
    return {
        "schema": loss.schema,
        "path": first.path,
        "keyword": first.keyword,
        "losses": len(loss.misfits),
    }


def _detail(fault: RouteReason | None, candidate: Candidate, needs: Needs) -> dict[str, JsonValue]:
    if fault is RouteReason.SCHEMA_MISMATCH and (loss := needs.lost_by(candidate.caps)):
        return _lost(loss)
    if fault is not RouteReason.CONTEXT_TOO_SMALL:
        return {}
    return {
        "estimate": needs.input_tokens_estimate,
        "reserved": needs.output_tokens_reserved,
        "limit": candidate.caps.max_context_tokens,
    }

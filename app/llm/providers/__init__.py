"""The catalog: every candidate that the settings name, as one immutable snapshot, so that routing is pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, Self

from app.llm.candidates import Candidate, ModelFacts, ProviderCaps
from app.llm.errors import LLMInvalidRequest
from app.llm.fingerprint import candidate_sha256
from app.llm.providers import gemini, ollama
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMProvider

NOTHING_LEARNED: Mapping[str, ProviderCaps] = MappingProxyType({})


class ProviderFacts(Protocol):
    """What each provider module says about its models, from the settings alone."""

    def api_base(self, settings: LLMSettings) -> str:
        """Return the root of its API."""
        ...

    def usable(self, settings: LLMSettings) -> bool:
        """Return whether it has the credentials that it needs."""
        ...

    def local(self, settings: LLMSettings, model: str) -> bool:
        """Return whether prompts for `model` stay on the hosts that count as local."""
        ...

    def caps(self, settings: LLMSettings, model: str) -> ProviderCaps:
        """Return what `model` can do; `assumed` if only the provider's defaults are known."""
        ...

    def identity_options(self, settings: LLMSettings, model: str) -> dict[str, Any]:
        """Return the options of ours that change what `model` answers."""
        ...


PROVIDERS: Mapping[LLMProvider, ProviderFacts] = MappingProxyType(
    {LLMProvider.OLLAMA: ollama, LLMProvider.GEMINI: gemini}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalog:
    """All candidates at one moment; what is learned later makes another catalog. Equal is only the same one."""

    all: tuple[Candidate, ...]
    """Every candidate of every profile once: profiles in the order of `LLMProfile`, each as it is listed."""
    fallback: Candidate | None
    """Who is tried last, whatever the profile; the last one of every list."""
    _settings: LLMSettings = field(repr=False)
    _listed: Mapping[LLMProfile, tuple[Candidate, ...]] = field(repr=False)
    _unlisted: Mapping[LLMProfile, tuple[Candidate, ...]] = field(repr=False)
    _by_name: Mapping[str, Candidate] = field(repr=False)
    _learned: Mapping[str, ProviderCaps] = field(repr=False)

    @classmethod
    def from_settings(
        cls, settings: LLMSettings, *, learned: Mapping[str, ProviderCaps] = NOTHING_LEARNED
    ) -> Self:
        """Return the catalog of these settings; `learned` caps, by `provider:model`, replace the known ones."""
        fallback = settings.fallback_name()
        names = {profile: _listed(settings, profile, fallback) for profile in LLMProfile}
        by_name = {
            name: _candidate(settings, name, learned)
            for name in dict.fromkeys(name for listed in names.values() for name in listed)
        }
        return cls(
            all=tuple(by_name.values()),
            fallback=by_name[fallback] if fallback else None,
            _settings=settings,
            _listed={profile: tuple(by_name[name] for name in listed) for profile, listed in names.items()},
            _unlisted={
                profile: tuple(candidate for name, candidate in by_name.items() if name not in listed)
                for profile, listed in names.items()
            },
            _by_name=by_name,
            _learned=dict(learned),
        )

    def listed(self, profile: LLMProfile) -> tuple[Candidate, ...]:
        """Return the candidates of a profile in the order of the settings, the fallback last."""
        return self._listed[profile]

    def unlisted(self, profile: LLMProfile) -> tuple[Candidate, ...]:
        """Return the candidates that only other profiles list, in the order of `all`."""
        return self._unlisted[profile]

    def pinned(self, name: str) -> Candidate:
        """Return the candidate called `provider:model`, whether a profile lists it or not.

        Raises:
            LLMInvalidRequest: `name` has another form, or names a provider that is not known.
        """
        return self._by_name.get(name) or _candidate(self._settings, name, self._learned)

    def with_caps(self, name: str, caps: ProviderCaps) -> Self:
        """Return a catalog in which the candidate called `name` can do what `caps` say; this one stays as it is."""
        return self.from_settings(self._settings, learned={**self._learned, name: caps})


def known_caps(
    settings: LLMSettings, provider: LLMProvider, model: str, facts: ModelFacts | None = None
) -> ProviderCaps:
    """Return what a model can do: by its provider's table, by its provider's own words, and above all by the settings."""
    caps, overrides = (
        PROVIDERS[provider].caps(settings, model),
        settings.model_overrides.get(f"{provider}:{model}"),
    )
    caps = facts.applied(caps) if facts else caps
    better = overrides.caps() if overrides else {}
    return caps.model_copy(update={**better, "assumed": False}) if better else caps


def _listed(settings: LLMSettings, profile: LLMProfile, fallback: str | None) -> tuple[str, ...]:
    listed = settings.profile(profile)
    return (*(name for name in listed if name != fallback), fallback) if fallback else listed


def _candidate(settings: LLMSettings, name: str, learned: Mapping[str, ProviderCaps]) -> Candidate:
    prefix, _, model = name.partition(":")
    if prefix not in set(LLMProvider) or not model:
        known = ", ".join(LLMProvider)
        raise LLMInvalidRequest(f"{name!r} names no candidate: write provider:model, provider one of {known}")
    provider = LLMProvider(prefix)
    facts = PROVIDERS[provider]
    return Candidate(
        provider=provider,
        model=model,
        caps=learned.get(name) or known_caps(settings, provider, model),
        local=facts.local(settings, model),
        usable=facts.usable(settings),
        enabled=provider not in settings.providers_off,
        identity=candidate_sha256(
            provider=provider,
            model=model,
            api_base=facts.api_base(settings),
            options=facts.identity_options(settings, model),
        ),
    )

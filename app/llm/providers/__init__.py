"""The catalog: every candidate that the settings name, as one immutable snapshot, so that routing is pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol, Self, runtime_checkable

from app.llm.candidates import Candidate, ModelFacts, ProviderCaps
from app.llm.errors import LLMInvalidRequest, LLMSettingsError
from app.llm.fields.own import own_providers
from app.llm.fingerprint import candidate_sha256
from app.llm.providers import anthropic, gemini, groq, ollama, openai
from app.llm.providers.listings import Inquiry, ListedModel
from app.llm.providers.own import OwnProvider
from app.llm.settings import LLMMode, LLMSettings
from app.llm.types import LLMProfile, LLMProvider, LLMRequest, WireFormat

__all__ = ["NOTHING_LEARNED", "PROVIDERS", "Catalog", "OwnProvider", "ProviderFacts", "known", "known_caps"]

NOTHING_LEARNED: Mapping[str, ProviderCaps] = MappingProxyType({})
NO_WEIGHTS: Mapping[str, str] = MappingProxyType({})


@runtime_checkable
class ProviderFacts(Protocol):
    """What each provider says about its models, from the settings alone: a module, or an instance of a user's class."""

    wire: WireFormat
    """Whose JSON it speaks."""

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

    def call_options(self, settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
        """Return one call in the words of `litellm.acompletion`."""
        ...

    def listing(self, settings: LLMSettings) -> Inquiry | None:
        """Return how it is asked which models it has, which must cost nothing; None if it cannot be asked."""
        ...

    def listed(self, answer: Any) -> tuple[ListedModel, ...]:
        """Return the models of such an answer.

        Raises:
            ValueError: It lists no models.
        """
        ...


PROVIDERS: Mapping[LLMProvider, ProviderFacts] = MappingProxyType(
    {
        LLMProvider.OLLAMA: ollama,
        LLMProvider.GEMINI: gemini,
        LLMProvider.OPENAI: openai,
        LLMProvider.ANTHROPIC: anthropic,
        LLMProvider.GROQ: groq,
    }
)
"""Those that come along."""


@cache
def known() -> Mapping[LLMProvider, ProviderFacts]:
    """Return all providers: those that come along, and those of a user's own.

    Raises:
        LLMSettingsError: A class of a user's own is no provider.
    """
    own: dict[LLMProvider, ProviderFacts] = {}
    for name, kind in own_providers().items():
        facts = kind()
        if not isinstance(facts, ProviderFacts):
            raise LLMSettingsError(
                f"the provider {name!r} lacks what `app.llm.providers.ProviderFacts` asks for"
            )
        own[LLMProvider(name)] = facts
    return MappingProxyType({**PROVIDERS, **own})


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
    _weights: Mapping[str, str] = field(repr=False)
    _without_key: Collection[str] = field(repr=False)

    @classmethod
    def from_settings(
        cls,
        settings: LLMSettings,
        *,
        learned: Mapping[str, ProviderCaps] = NOTHING_LEARNED,
        weights: Mapping[str, str] = NO_WEIGHTS,
        without_key: Collection[str] = (),
    ) -> Self:
        """Return the catalog of these settings.

        Args:
            settings: Whom they list.
            learned: Caps by `provider:model`, which replace the known ones.
            weights: Digests of weights, likewise, which join the identities.
            without_key: Providers that had no key when a cassette was recorded; only in the mode `replay`.
        """
        fallback = settings.fallback_name()
        names = {profile: _listed(settings, profile, fallback) for profile in LLMProfile}
        by_name = {
            name: _candidate(settings, name, learned, weights, without_key)
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
            _weights=dict(weights),
            _without_key=without_key,
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
        return self._by_name.get(name) or _candidate(
            self._settings, name, self._learned, self._weights, self._without_key
        )

    def passed_over(self, request: LLMRequest, candidate: Candidate) -> frozenset[str]:
        """Return the providers without a key in the lists that a request may have followed to a candidate."""
        if request.model and not request.constraints.allow_fallback:
            return frozenset()
        lists = [self.listed(each) for each in ([request.profile] if request.profile else LLMProfile)]
        followed = [listed for listed in lists if any(each.name == candidate.name for each in listed)]
        return frozenset(each.provider for listed in followed for each in listed if not each.usable)

    def with_caps(self, name: str, caps: ProviderCaps, *, weights: str | None = None) -> Self:
        """Return a catalog in which the candidate called `name` can do what `caps` say; this one stays as it is.

        Its identity is that of its `weights`; None leaves it as it is.
        """
        return self.from_settings(
            self._settings,
            learned={**self._learned, name: caps},
            weights={**self._weights, name: weights} if weights else self._weights,
            without_key=self._without_key,
        )


def known_caps(
    settings: LLMSettings, provider: LLMProvider, model: str, facts: ModelFacts | None = None
) -> ProviderCaps:
    """Return what a model can do: by its provider's table, by its provider's own words, and above all by the settings."""
    caps, overrides = (
        known()[provider].caps(settings, model),
        settings.model_overrides.get(f"{provider}:{model}"),
    )
    caps = facts.applied(caps) if facts else caps
    better = overrides.caps() if overrides else {}
    return caps.model_copy(update={**better, "assumed": False}) if better else caps


def _listed(settings: LLMSettings, profile: LLMProfile, fallback: str | None) -> tuple[str, ...]:
    listed = settings.profile(profile)
    return (*(name for name in listed if name != fallback), fallback) if fallback else listed


def _candidate(
    settings: LLMSettings,
    name: str,
    learned: Mapping[str, ProviderCaps],
    weights: Mapping[str, str],
    without_key: Collection[str],
) -> Candidate:
    prefix, _, model = name.partition(":")
    facts = next((facts for provider, facts in known().items() if provider == prefix), None)
    if facts is None or not model:
        names = ", ".join(known())
        raise LLMInvalidRequest(f"{name!r} names no candidate: write provider:model, provider one of {names}")
    provider = LLMProvider(prefix)
    # a cassette asks for no key
    usable = prefix not in without_key if settings.mode is LLMMode.REPLAY else facts.usable(settings)
    of_weights = {"weights": weights[name]} if name in weights else {}
    return Candidate(
        provider=provider,
        model=model,
        caps=learned.get(name) or known_caps(settings, provider, model),
        local=facts.local(settings, model),
        usable=usable,
        enabled=provider not in settings.providers_off,
        identity=candidate_sha256(
            provider=provider,
            model=model,
            api_base=facts.api_base(settings),
            options={**facts.identity_options(settings, model), **of_weights},
        ),
    )

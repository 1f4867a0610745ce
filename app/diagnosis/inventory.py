"""Which models there are: the candidates of the catalog with what they can do, and what each provider says it has."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.diagnosis.providers import Visit, why_unasked
from app.llm.candidates import Candidate, ModelFacts, ProviderCaps
from app.llm.providers import Catalog, known, known_caps
from app.llm.providers.listings import ListedModel
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMProvider
from app.llm.wire.inquiries import Inquiries

Presence = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One candidate, with what is known of it by now."""

    candidate: Candidate
    caps: ProviderCaps
    profiles: tuple[LLMProfile, ...]
    there: Presence
    """Whether its provider lists it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What one provider has."""

    provider: LLMProvider
    api_base: str
    models: Sequence[ListedModel] = ()
    unknown: str | None = None
    """Why that is not known."""
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)
    """What Ollama says of the candidates that it has, by their models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All of it."""

    candidates: Sequence[Listed]
    stocks: Sequence[Stock]


async def inventory(settings: LLMSettings, *, limit_s: float) -> Inventory:
    """Return the candidates and the models of their providers; nothing of it is paid, and a provider that is away is told."""
    catalog, inquiries = Catalog.from_settings(settings), Inquiries(settings)
    listed = dict.fromkeys(candidate.provider for candidate in catalog.all)
    others = [
        provider for provider in known() if provider not in listed and known()[provider].usable(settings)
    ]
    try:
        stocks = await asyncio.gather(
            *(_stock(settings, catalog, provider, inquiries, limit_s) for provider in (*listed, *others))
        )
    finally:
        await inquiries.close()
    by_provider = {stock.provider: stock for stock in stocks}
    return Inventory(
        candidates=[_listed(settings, catalog, each, by_provider[each.provider]) for each in catalog.all],
        stocks=stocks,
    )


async def _stock(
    settings: LLMSettings, catalog: Catalog, provider: LLMProvider, inquiries: Inquiries, limit_s: float
) -> Stock:
    own = [candidate for candidate in catalog.all if candidate.provider is provider]
    name = f"{provider}:{getattr(settings, f'{provider}_model')}"
    visit = Visit(settings=settings, provider=provider, candidates=own, inquiries=inquiries)
    base = known()[provider].api_base(settings)
    unasked = why_unasked(settings, provider, own or [catalog.pinned(name)])
    if unasked is not None:
        return Stock(provider=provider, api_base=base, unknown=unasked.said)
    try:
        async with asyncio.timeout(limit_s):
            answer = await visit.models()
            if answer.fault is not None:
                return Stock(provider=provider, api_base=base, unknown=answer.fault.said)
            models: Sequence[ListedModel] = answer.document
            return Stock(provider=provider, api_base=base, models=models, facts=await _facts(visit, models))
    except TimeoutError:
        return Stock(
            provider=provider, api_base=base, unknown=f"{base} has not answered within {limit_s:g} s"
        )


async def _facts(visit: Visit, models: Sequence[ListedModel]) -> dict[str, ModelFacts]:
    if visit.provider is not LLMProvider.OLLAMA:
        return {}
    names = {name for each in models for name in each.names}
    there = [candidate.model for candidate in visit.candidates if candidate.model in names]
    answers = {model: await visit.shown(model) for model in there}
    return {model: answer.document for model, answer in answers.items() if answer.fault is None}


def _listed(settings: LLMSettings, catalog: Catalog, candidate: Candidate, stock: Stock) -> Listed:
    there: Presence = "unknown"
    if stock.unknown is None:
        there = "yes" if any(candidate.model in each.names for each in stock.models) else "no"
    facts = stock.facts.get(candidate.model)
    return Listed(
        candidate=candidate,
        caps=known_caps(settings, candidate.provider, candidate.model, facts),
        profiles=tuple(profile for profile in LLMProfile if candidate in catalog.listed(profile)),
        there=there,
    )

"""Whether each provider can be reached, takes its key and has its models: asked by what costs nothing and runs nothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.diagnosis.findings import Finding, Probe, Tell
from app.llm.candidates import Candidate
from app.llm.providers import Catalog, known, ollama_says
from app.llm.providers.listings import Inquiry, ListedModel
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider
from app.llm.wire.exchange import GOOD, BrokenOff, Exchange, Unreachable, UnusableReply
from app.llm.wire.inquiries import Inquiries

_REFUSED = {401, 403}
_TOO_MANY = 429
_ELSEWHERE = {301, 302, 303, 307, 308, 404, 405}
_BROKEN = range(500, 600)
_WRONG_KEY = b"API key not valid"  # Gemini says it with status 400
_MAY_NOT_LIST = b"insufficient permissions"  # OpenAI of a key that may call and not list


@dataclass(frozen=True, slots=True, kw_only=True)
class Unasked:
    """Why a provider is not asked."""

    said: str
    remedy: str | None = None


def probes(settings: LLMSettings, catalog: Catalog, inquiries: Inquiries, limit_s: float) -> Iterator[Probe]:
    """Yield one probe for each provider that a profile lists."""
    for provider in dict.fromkeys(candidate.provider for candidate in catalog.all):
        own = [candidate for candidate in catalog.all if candidate.provider is provider]
        visit = Visit(settings=settings, provider=provider, candidates=own, inquiries=inquiries)
        unasked = why_unasked(settings, provider, own)
        yield Probe(
            subjects=(str(provider),) if unasked else visit.subjects,
            ask=partial(_tell_unasked, provider, unasked) if unasked else visit.look,
            limit_s=limit_s,
            remedy=visit.base_remedy,
        )


def why_unasked(settings: LLMSettings, provider: LLMProvider, own: Sequence[Candidate]) -> Unasked | None:
    """Return why a provider must not or cannot be asked; None if it can."""
    if provider in settings.providers_off:
        return Unasked(said="switched off (LLM_PROVIDERS_OFF)")
    if not known()[provider].usable(settings):
        return Unasked(
            said="no key: its candidates are passed over",
            remedy=f"set LLM_{provider.upper()}_API_KEY, or take {provider} out of the profiles",
        )
    if settings.local_only and not any(candidate.local for candidate in own):
        return Unasked(said="not asked: LLM_LOCAL_ONLY")
    if known()[provider].listing(settings) is None:
        return Unasked(said="not asked: it has no list of models")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one inquiry: a document, or what is wrong."""

    document: Any = None
    fault: Finding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One look at one provider."""

    settings: LLMSettings
    provider: LLMProvider
    candidates: Sequence[Candidate]
    inquiries: Inquiries

    @property
    def subjects(self) -> tuple[str, ...]:
        """The provider, its key if it has one, its candidates."""
        key = (self._key,) if self._has_key else ()
        return (str(self.provider), *key, *(candidate.name for candidate in self.candidates))

    @property
    def base_remedy(self) -> str:
        """What to do when it cannot be reached."""
        start = "start it (`ollama serve`)" if self.provider is LLMProvider.OLLAMA else "look at the network"
        return f"{start}, or correct {self._variable('API_BASE')}"

    async def look(self, tell: Tell) -> None:
        """Tell whether it answers, takes the key, and has what the profiles list."""
        version = await self._version()
        answer = version if version.fault else await self.models()
        if answer.fault is not None:
            if answer.fault.subject == self._key:
                tell(Finding.ok(str(self.provider), f"{self._base} answers"))
            tell(answer.fault)
            return
        tell(Finding.ok(str(self.provider), f"{self._base}{version.document or ''} answers"))
        if self._has_key:
            tell(Finding.ok(self._key, "it is accepted"))
        for candidate in self.candidates:
            tell(await self._model(candidate, answer.document))

    async def models(self) -> Answer:
        """Return the models that it lists (`ListedModel`)."""
        facts = known()[self.provider]
        inquiry = facts.listing(self.settings)
        if inquiry is None:
            return Answer(document=())
        answer = await self._asked(inquiry)
        if answer.fault is not None:
            return answer
        try:
            return Answer(document=facts.listed(answer.document))
        except ValueError as error:
            return Answer(fault=self._not_this_api(str(error)))

    async def shown(self, model: str) -> Answer:
        """Return what Ollama says of one of its models (`ModelFacts`)."""
        inquiry = ollama_says.inquiry(self.settings, self._base, ollama_says.SHOW)
        answer = await self._asked(inquiry, {"model": model})
        return answer if answer.fault else Answer(document=ollama_says.facts_of(answer.document))

    async def _version(self) -> Answer:
        if self.provider is not LLMProvider.OLLAMA:
            return Answer()
        inquiry = ollama_says.inquiry(self.settings, self._base, ollama_says.VERSION)
        answer = await self._asked(inquiry)
        if answer.fault is not None:
            return answer
        version = answer.document.get("version") if isinstance(answer.document, dict) else None
        if not isinstance(version, str):
            return Answer(fault=self._not_this_api("no version is in it"))
        return Answer(document=f", version {version},")

    async def _model(self, candidate: Candidate, listed: Sequence[ListedModel]) -> Finding:
        if self.settings.local_only and not candidate.local:
            return Finding.skipped(candidate.name, "not asked: LLM_LOCAL_ONLY")
        there = next((each for each in listed if candidate.model in each.names), None)
        if there is None:
            return Finding.fault(candidate.name, f"{self.provider} has no such model", self._other(candidate))
        if self.provider is LLMProvider.OLLAMA:
            shown = await self.shown(candidate.model)
            if shown.fault is not None:
                said, remedy = shown.fault.said, shown.fault.remedy
                return Finding.warning(candidate.name, f"it is there; {said}", remedy)
            return self._window(candidate, shown.document.context_tokens)
        window = f", window {there.context_tokens:,} tokens" if there.context_tokens else ""
        return Finding.ok(candidate.name, f"it is there{window}")

    def _window(self, candidate: Candidate, made_for: int | None) -> Finding:
        asked = self.settings.num_ctx_of("ollama", candidate.model)
        if made_for is None:
            return Finding.ok(candidate.name, f"it is there, window {asked:,} tokens")
        if asked > made_for:
            said = f"calls ask for a window of {asked:,} tokens, it was made for {made_for:,}"
            remedy = (
                f"set LLM_OLLAMA_NUM_CTX, or num_ctx of {candidate.name} in a routing file, to {made_for}"
            )
            return Finding.warning(candidate.name, said, remedy)
        return Finding.ok(candidate.name, f"it is there, window {asked:,} of {made_for:,} tokens")

    def _other(self, candidate: Candidate) -> str:
        if self.provider is LLMProvider.OLLAMA:
            return f"signalbox pull {candidate.model}"
        return f"`signalbox models` lists what it has: set {self._variable('MODEL')}, or correct the profile"

    async def _asked(self, inquiry: Inquiry, body: dict[str, str] | None = None) -> Answer:
        subject = str(self.provider)
        try:
            exchange = await self.inquiries.asked(self.provider, inquiry, body)
        except Unreachable as error:
            said = f"{self._base} cannot be reached: {error}"
            return Answer(fault=Finding.fault(subject, said, self.base_remedy))
        except (BrokenOff, UnusableReply) as error:
            return Answer(fault=self._not_this_api(str(error)))
        if exchange.status not in GOOD:
            return Answer(fault=self._refused(exchange))
        try:
            return Answer(document=json.loads(exchange.body))
        except ValueError:
            return Answer(fault=self._not_this_api("it is no JSON"))

    def _refused(self, exchange: Exchange) -> Finding:
        """Return what a status means. What the provider says with it is not shown: some repeat the key."""
        status, subject = exchange.status or 0, str(self.provider)
        if status in _REFUSED or _WRONG_KEY in exchange.body:
            return self._key_refused(status, may_call=_MAY_NOT_LIST in exchange.body)
        if status in _ELSEWHERE:
            return self._not_this_api(f"status {status}")
        if status == _TOO_MANY:
            return Finding.warning(
                subject, f"{self._base} has had too many requests ({status})", "try again later"
            )
        remedy = "try again later" if status in _BROKEN else self.base_remedy
        return Finding.fault(subject, f"{self._base} answered with status {status}", remedy)

    def _key_refused(self, status: int, *, may_call: bool) -> Finding:
        if not self._has_key:
            said = f"{self._base} wants credentials (status {status})"
            remedy = f"set {self._variable('API_KEY')}"
            return Finding.fault(str(self.provider), said, remedy)
        if may_call:
            said = f"it may not list models (status {status}); calls may be allowed all the same"
            return Finding.warning(self._key, said, "give the key the right to read models")
        remedy = f"set {self._variable('API_KEY')} to a key that is valid there"
        return Finding.fault(self._key, f"it is refused (status {status})", remedy)

    def _not_this_api(self, why: str) -> Finding:
        said = f"{self._base} answers, but not as {self.provider} does: {why}"
        return Finding.fault(
            str(self.provider), said, f"correct {self._variable('API_BASE')}, the root of the API"
        )

    @property
    def _base(self) -> str:
        return known()[self.provider].api_base(self.settings)

    @property
    def _key(self) -> str:
        return f"{self.provider} key"

    @property
    def _has_key(self) -> bool:
        return getattr(self.settings, f"{self.provider}_api_key", None) is not None

    def _variable(self, name: str) -> str:
        return f"LLM_{self.provider.upper()}_{name}"


async def _tell_unasked(provider: LLMProvider, unasked: Unasked, tell: Tell) -> None:
    if unasked.remedy:
        tell(Finding.warning(str(provider), unasked.said, unasked.remedy))
    else:
        tell(Finding.skipped(str(provider), unasked.said))

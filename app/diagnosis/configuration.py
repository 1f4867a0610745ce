"""What is wrong with settings that can be read: a ledger that cannot be, a profile that nobody serves, a secret in clear."""

from collections.abc import Iterator

from pydantic import SecretStr

from app.bootstrap import checked_url, payload_codec
from app.diagnosis.findings import Finding, Tell
from app.llm.candidates import Candidate
from app.llm.endpoints import passwords_of
from app.llm.errors import LLMSettingsError
from app.llm.messages import Message
from app.llm.providers import Catalog
from app.llm.router import LLMRouter, no_candidate
from app.llm.routing_file import Origins
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMRequest

SUBJECTS = ("settings", "routing")
REMEDY = "correct it where `signalbox config show` says that it comes from"


async def look(tell: Tell, settings: LLMSettings, origins: Origins, catalog: Catalog) -> None:
    """Tell how the settings are."""
    settings_subject, routing = SUBJECTS
    wrong = [*faults_of_the_ledger(settings)]
    doubts = [*warnings(settings, origins, catalog)]
    file = origins.file()
    if wrong:
        tell(Finding.fault(settings_subject, "; ".join(wrong), REMEDY))
    elif doubts:
        tell(Finding.warning(settings_subject, "; ".join(doubts)))
    else:
        tell(Finding.ok(settings_subject, f"they can be read; {file.path if file else 'no routing file'}"))
    if unserved := [*faults_of_routing(settings, catalog)]:
        tell(
            Finding.fault(
                routing, "; ".join(unserved), "list others in LLM_PROFILE_..., or give them their keys"
            )
        )
    else:
        tell(Finding.ok(routing, _in_short(catalog)))


def profiles(catalog: Catalog) -> str:
    """Return the candidates of each profile, in one line."""
    return "; ".join(f"{profile}: {_names(catalog.listed(profile))}" for profile in LLMProfile)


def faults_of_the_ledger(settings: LLMSettings) -> Iterator[str]:
    """Yield why the ledger's settings cannot work; nothing is opened."""
    for check in (checked_url, payload_codec) if settings.persist_runs else ():
        try:
            check(settings)
        except LLMSettingsError as fault:
            yield fault.message


def faults_of_routing(settings: LLMSettings, catalog: Catalog) -> Iterator[str]:
    """Yield the profiles that nobody can serve, and a fallback that cannot be asked."""
    router = LLMRouter.from_settings(settings)
    for profile in LLMProfile:
        decision = router.route(LLMRequest(messages=(Message.user("?"),), profile=profile), caps=catalog)
        if not decision.kept:
            yield no_candidate(decision).message
        fallback = catalog.fallback
        if fallback is not None and decision.kept and fallback not in decision.kept:
            entry = next(each for each in decision.entries if each.candidate is fallback)
            yield f"profile {profile}: the fallback {fallback.name} is never asked ({entry.reason})"


def warnings(settings: LLMSettings, origins: Origins, catalog: Catalog) -> Iterator[str]:
    """Yield what works and is doubtful: secrets in a file, and words on models that no profile lists."""
    yield from _clear_secrets(settings, origins)
    listed = {candidate.name for candidate in catalog.all}
    for name in settings.model_overrides:
        if name not in listed:
            yield f"models.{name}: no profile lists it, so it counts for pinned calls only"


def _clear_secrets(settings: LLMSettings, origins: Origins) -> Iterator[str]:
    for name in type(settings).model_fields:
        origin = origins.origin(name)
        value = getattr(settings, name)
        secret = isinstance(value, SecretStr) and (
            value is not settings.database_url or passwords_of(value.get_secret_value())
        )
        if secret and origin.source == "file" and not origin.refers:
            yield f"{origin.name} holds a secret as it is: write ${{NAME}}, and give it in a variable"


def _in_short(catalog: Catalog) -> str:
    """Return the candidates of each profile; profiles that list the same are named together."""
    alike: dict[str, list[str]] = {}
    for profile in LLMProfile:
        alike.setdefault(_names(catalog.listed(profile)), []).append(profile)
    return "; ".join(f"{', '.join(profiles)}: {names}" for names, profiles in alike.items())


def _names(candidates: tuple[Candidate, ...]) -> str:
    return ", ".join(candidate.name for candidate in candidates)

"""All that is looked at for `signalbox doctor`, as one list of findings in the order of the screen."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from app.bootstrap import checked_url
from app.diagnosis import configuration, database, files, library, providers
from app.diagnosis.files import FreeBytes
from app.diagnosis.findings import Finding, Probe, Tell, found
from app.llm.errors import LLMSettingsError
from app.llm.ports import Clock
from app.llm.providers import Catalog
from app.llm.redaction import Redactor
from app.llm.routing_file import Origins
from app.llm.settings import LLMSettings, load_settings
from app.llm.wire.inquiries import Inquiries

LIMIT_S = 5.0
"""Seconds that each look may take; that at LiteLLM, which is loaded for it, has more."""


async def examined(
    given: Mapping[str, Any], *, limit_s: float, clock: Clock, free: FreeBytes = files.free_bytes
) -> list[Finding]:
    """Return what is found out about everything that a call needs; nothing is changed, called or paid.

    Args:
        given: Settings (by field name) that beat all others.
        limit_s: Seconds that each look may take.
        clock: The clock of this process, with which the database's is compared.
        free: Says how much room a disk has.
    """
    try:
        settings = load_settings(**given)
        origins = Origins.of(type(settings), given, type(settings).read_file)
        catalog = Catalog.from_settings(settings)
    except LLMSettingsError as error:
        remedy = "correct it in the environment, in .env or in the routing file, as it says"
        return [
            Finding.fault(configuration.SUBJECTS[0], error.message, remedy),
            Finding.skipped("all else", "not looked at: the settings cannot be read"),
        ]
    inquiries = Inquiries(settings)
    probes = [
        Probe(
            subjects=configuration.SUBJECTS,
            ask=partial(configuration.look, settings=settings, origins=origins, catalog=catalog),
            limit_s=limit_s,
            remedy=configuration.REMEDY,
        ),
        *_of_the_ledger(settings, clock, free, limit_s),
        *providers.probes(settings, catalog, inquiries, limit_s),
    ]
    last = Probe(
        subjects=library.SUBJECTS,
        ask=partial(library.look, settings=settings),
        limit_s=max(limit_s, library.LOAD_S),
        remedy=library.remedy(),
    )
    try:  # loading LiteLLM takes the processor for seconds, which would count as theirs
        findings = [*await found(probes), *await found([last])]
    finally:
        await inquiries.close()
    return [_without_secrets(each, Redactor(secrets=settings.secrets())) for each in findings]


def _of_the_ledger(settings: LLMSettings, clock: Clock, free: FreeBytes, limit_s: float) -> Iterator[Probe]:
    unused = _why_no_ledger(settings)
    if unused is not None:
        yield Probe(
            subjects=("database",),
            ask=partial(_say, Finding.skipped("database", unused)),
            limit_s=limit_s,
            remedy=database.REMEDY,
        )
        return
    subjects: tuple[str, ...] = database.SUBJECTS
    places: tuple[str, ...] = files.SUBJECTS
    if settings.database_url.get_secret_value().startswith("sqlite"):
        places = (files.PERMISSIONS, *places)
    else:
        subjects = (*subjects, database.RIGHTS)
    yield Probe(
        subjects=subjects,
        ask=partial(database.look, settings=settings, clock=clock, limit_s=limit_s),
        limit_s=limit_s + 1,  # the database's own limit comes first, and says more
        remedy=database.REMEDY,
    )
    yield Probe(
        subjects=places,
        ask=partial(files.look, settings=settings, free=free),
        limit_s=limit_s,
        remedy=files.REMEDY,
    )


def _why_no_ledger(settings: LLMSettings) -> str | None:
    if not settings.persist_runs:
        return "not used: LLM_PERSIST_RUNS=false"
    try:
        checked_url(settings)
    except LLMSettingsError:
        return "not looked at: LLM_DATABASE_URL is no URL of one"
    return None


async def _say(finding: Finding, tell: Tell) -> None:
    tell(finding)


def _without_secrets(finding: Finding, redact: Redactor) -> Finding:
    remedy = None if finding.remedy is None else redact(finding.remedy)
    return replace(finding, said=redact(finding.said), remedy=remedy)

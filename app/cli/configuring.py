"""What `config` does once its options are read; loaded by it alone, because that takes time."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import SecretStr

from app.bootstrap import database_name
from app.diagnosis.configuration import faults_of_routing, faults_of_the_ledger, profiles, warnings
from app.llm.errors import LLMSettingsError
from app.llm.fields.routing_file import ModelOverrides
from app.llm.providers import Catalog
from app.llm.routing_file import Origin, Origins
from app.llm.settings import PREFIX, LLMSettings, load_settings

MASK = "********"
SECTIONS = {"model_overrides": "models", "stage_profiles": "stages"}
"""Settings that are shown one by one, under the section of a routing file that they stand in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """One setting."""

    name: str
    """Its variable; of a model or a stage, the key in the file."""
    value: str | None
    """As it may be shown; None for one that is unset."""
    origin: Origin

    @property
    def where(self) -> str:
        """The source, in words."""
        if self.origin.source == "file":
            return self.origin.name
        return f"{self.origin.source} {self.origin.name}".rstrip()

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        where = self.origin.name or None
        return {"name": self.name, "value": self.value, "source": self.origin.source, "where": where}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found."""

    faults: list[str]
    warnings: list[str]
    summary: str


def in_force(config: str | None) -> list[InForce]:
    """Return every setting, in the order of their names; models and stages one by one."""
    settings, origins = _loaded(config)
    return [each for name in sorted(type(settings).model_fields) for each in _shown(settings, origins, name)]


def checked(config: str | None) -> Checked:
    """Return what is wrong with settings that can be read.

    Raises:
        LLMSettingsError: They cannot be read.
    """
    settings, origins = _loaded(config)
    catalog, file = Catalog.from_settings(settings), origins.file()
    return Checked(
        faults=[*faults_of_the_ledger(settings), *faults_of_routing(settings, catalog)],
        warnings=[*warnings(settings, origins, catalog)],
        summary=f"{file.path if file else 'no routing file'}; {profiles(catalog)}",
    )


def _loaded(config: str | None) -> tuple[LLMSettings, Origins]:
    given = {"config_file": config} if config else {}
    settings = load_settings(**given)
    kind = type(settings)
    return settings, Origins.of(kind, given, kind.read_file)


def _shown(settings: LLMSettings, origins: Origins, name: str) -> Iterator[InForce]:
    value, origin = getattr(settings, name), origins.origin(name)
    if not isinstance(value, dict) or not value:
        yield InForce(
            name=f"{PREFIX}{name.upper()}",
            value=_text(value if value != {} else None, origin, settings),
            origin=origin,
        )
        return
    for key, said in value.items():
        inner = said.model_dump(exclude_none=True) if isinstance(said, ModelOverrides) else {"": said}
        for part, each in inner.items():
            loc = (name, key, part) if part else (name, key)
            whence = origins.origin(*loc)
            shown = ".".join((SECTIONS[name], *loc[1:]))
            yield InForce(name=shown, value=_text(each, whence, settings), origin=whence)


def _text(value: Any, origin: Origin, settings: LLMSettings) -> str | None:
    if value is settings.database_url:
        return _database(settings)
    if isinstance(value, SecretStr):
        return MASK
    if origin.refers:
        return origin.text
    return _plain(value)


def _plain(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value).removesuffix(".0")


def _database(settings: LLMSettings) -> str:
    try:
        return database_name(settings)
    except LLMSettingsError:
        return MASK

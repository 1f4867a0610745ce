"""Where each setting in force came from, asked of the same sources that made it, so that both agree."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from app.llm.routing_file.source import Read, variable_of
from app.llm.routing_file.values import FileValues

Source = Literal["argument", "environment", ".env", "file", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one value came from."""

    source: Source
    name: str = ""
    """The variable, or `FILE:LINE: KEY`."""
    text: str | None = field(default=None, repr=False)
    """What a file says, as it is written; None elsewhere."""
    refers: bool = False
    """Whether the file takes it, or a part of it, from a variable."""


@dataclass(slots=True, kw_only=True)
class Origins:
    """The sources of one set of settings, highest first."""

    settings_cls: type[BaseSettings]
    given: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, str | None] = field(repr=False)
    dotenv: Mapping[str, str | None] = field(repr=False)
    read: Read
    _file: FileValues | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, settings_cls: type[BaseSettings], given: Mapping[str, Any], read: Read) -> Self:
        """Return the sources as they are now; `given` are the arguments of the settings, `_env_file` among them."""
        env_file = given.get("_env_file", settings_cls.model_config.get("env_file"))
        return cls(
            settings_cls=settings_cls,
            given=given,
            environment=EnvSettingsSource(settings_cls).env_vars,
            dotenv=DotEnvSettingsSource(settings_cls, env_file=env_file).env_vars,
            read=read,
        )

    def origin(self, *loc: Any) -> Origin:
        """Return where the value of a field, or what is within it, came from.

        Raises:
            LLMSettingsError: The routing file cannot be read any more.
        """
        name = self._field(str(loc[0]))
        variables = self._variables(name)
        if {name, *variables} & self.given.keys():
            return Origin(source="argument", name=name)
        sources: tuple[tuple[Source, Mapping[str, str | None]], ...]
        sources = (("environment", self.environment), (".env", self.dotenv))
        for source, said in sources:
            for variable in variables:
                if said.get(variable.lower()) is not None:
                    return Origin(source=source, name=variable)
        file = self.file()
        place = file.place((name, *loc[1:])) if file else None
        if file is None or place is None:
            return Origin(source="default")
        where = f"{file.path}:{place.line}: {place.key}"
        return Origin(source="file", name=where, text=place.text, refers=place.refers)

    def file(self) -> FileValues | None:
        """Return what the routing file says; None without one."""
        name = "config_file"
        variable = self._variables(name)[0].lower()
        path = self.given.get(name) or self.environment.get(variable) or self.dotenv.get(variable)
        if path and self._file is None:
            self._file = self.read(Path(path), variable_of(self.dotenv))
        return self._file

    def _field(self, said: str) -> str:
        """Return the field that a fault names, be it by its variable."""
        named = (name for name in self.settings_cls.model_fields if said in {name, *self._variables(name)})
        return next(named, said)

    def _variables(self, name: str) -> tuple[str, ...]:
        """Return the variables that a field is read from, the one that wins first."""
        info = self.settings_cls.model_fields.get(name)
        alias = info.validation_alias if info else None
        if isinstance(alias, AliasChoices):
            return tuple(each for each in alias.choices if isinstance(each, str) and each.isupper())
        return (f"{self.settings_cls.model_config.get('env_prefix', '')}{name}".upper(),)

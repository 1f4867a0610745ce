"""The routing file as a source of pydantic-settings: below the environment and `.env`, above the defaults."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from app.llm.routing_file.values import FileValues

Read = Callable[[Path, Mapping[str, str | None]], FileValues]
"""Reads one file; the mapping is what `.env` says, by lower-case names."""


class RoutingFileSource(PydanticBaseSettingsSource):
    """Reads the file that the sources above it name as `config_file`; without one it says nothing."""

    def __init__(
        self, settings_cls: type[BaseSettings], dotenv: PydanticBaseSettingsSource, read: Read
    ) -> None:
        super().__init__(settings_cls)
        self._dotenv = dotenv.env_vars if isinstance(dotenv, EnvSettingsSource) else {}
        self._read = read

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  # the base's signature
        """Return nothing: this source gives all values at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of the file by the names of their fields."""
        named = self.current_state.get("config_file")
        return dict(self._read(Path(named), self._dotenv).values) if named else {}


def variable_of(dotenv: Mapping[str, str | None]) -> Callable[[str], str | None]:
    """Return what looks a variable up: in the environment, else in `.env`, whose names know no case."""
    return lambda name: os.environ.get(name) or dotenv.get(name.lower())

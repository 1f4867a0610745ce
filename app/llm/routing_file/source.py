"""The routing file as a source of pydantic-settings: below the environment and `.env`, above the defaults."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from app.llm.routing_file.values import FileValues

Variable = Callable[[str], str | None]
"""Looks a variable up: in the environment, else in `.env`; nothing if it is not set."""
Read = Callable[[Path, Variable], FileValues]
"""Reads one file. No frame of it knows the variables, so no traceback can show them."""


class RoutingFileSource(PydanticBaseSettingsSource):
    """Reads the file that the sources above it name as `config_file`; without one it says nothing."""

    def __init__(
        self, settings_cls: type[BaseSettings], dotenv: PydanticBaseSettingsSource, read: Read
    ) -> None:
        super().__init__(settings_cls)
        self._variable = variable_of(dotenv.env_vars if isinstance(dotenv, EnvSettingsSource) else {})
        self._read = read

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  # the base's signature
        """Return nothing: this source gives all values at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of the file by the names of their fields."""
        named = self.current_state.get("config_file")
        return dict(self._read(Path(named), self._variable).values) if named else {}


def variable_of(dotenv: Mapping[str, str | None]) -> Variable:
    """Return what looks variables up; `dotenv` is what `.env` says, by lower-case names."""
    return lambda name: os.environ.get(name) or dotenv.get(name.lower())

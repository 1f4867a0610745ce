"""What the environment may not say: a near miss of a variable, and a variable that is set to nothing and must not be."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from app.llm.errors import LLMSettingsError

MISSPELT = 0.9
"""Similarity (0 to 1, of difflib) from which an unknown variable counts as a misspelt one."""


def refuse_misspelt(names: Iterable[str], *, prefix: str, known: Collection[str]) -> None:
    """Refuse a near miss only: other programs may have variables of this prefix too.

    Raises:
        LLMSettingsError: One was found.
    """
    for name in names:
        if not name.startswith(prefix) or name in known:
            continue
        if meant := get_close_matches(name, known, n=1, cutoff=MISSPELT):
            raise LLMSettingsError(f"{name} is no setting: {meant[0]} was meant?", variable=name)


def refuse_empty(variable: str, why: str, *, settings: type[BaseSettings], env_file: Any) -> None:
    """Refuse an empty variable, which would count as unset, in the environment and in the `.env` file.

    Raises:
        LLMSettingsError: It is set to nothing.
    """
    sources = (
        EnvSettingsSource(settings, env_ignore_empty=False),
        DotEnvSettingsSource(settings, env_file=env_file, env_ignore_empty=False),
    )
    for source in sources:
        if source.env_vars.get(variable.lower()) == "":
            raise LLMSettingsError(f"{variable}=: {why}", variable=variable)

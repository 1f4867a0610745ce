"""The settings of providers of a user's own, which packages register in the entry-point group `signalbox.providers`."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import Field, SecretStr, create_model

from app.llm.errors import LLMSettingsError
from app.llm.fields import PREFIX, ApiBase, Fields, ModelName
from app.llm.fields.rates import PerMinute
from app.llm.types import LLMProvider

GROUP = "signalbox.providers"
_TAKEN = frozenset((*LLMProvider, "tool"))  # as which the runs of tools are recorded
_TOLD = ("default_model", "default_api_base", "call_options")


@cache
def own_providers() -> Mapping[str, type[Any]]:
    """Return the classes that are registered, by the name of their provider; looked for once in a process.

    Raises:
        LLMSettingsError: One cannot be loaded, is no provider, or has a name that is taken.
    """
    found: dict[str, type[Any]] = {}
    for point in entry_points(group=GROUP):
        if point.name in found or point.name in _TAKEN:
            raise LLMSettingsError(f"{_said(point)}: there is a provider of this name already")
        found[point.name] = _loaded(point)
    return found


@cache
def own_fields() -> tuple[type[Fields], ...]:
    """Return the fields of each of them: `LLM_<NAME>_API_KEY`, `_MODEL`, `_API_BASE`, `_CONCURRENCY_LIMIT` and rates."""
    return tuple(_fields(name, provider) for name, provider in own_providers().items())


def known_providers() -> tuple[str, ...]:
    """Return the names that a profile may list."""
    return (*LLMProvider, *own_providers())


def _fields(name: str, provider: type[Any]) -> type[Fields]:
    fields: dict[str, Any] = {
        f"{name}_api_key": (SecretStr | None, Field(default=None, description=f"Key of {name}.")),
        f"{name}_model": (
            ModelName,
            Field(default=provider.default_model, description=f"Model of a bare `{name}`."),
        ),
        f"{name}_api_base": (
            ApiBase,
            Field(default=provider.default_api_base, description=f"Root of the API of {name}."),
        ),
        f"{name}_concurrency_limit": (
            int,
            Field(default=16, ge=1, description=f"Sends in flight at once to {name}."),
        ),
        f"{name}_requests_per_minute": (
            PerMinute | None,
            Field(default=None, description=f"Requests that may be sent to {name} in any minute."),
        ),
        f"{name}_tokens_per_minute": (
            PerMinute | None,
            Field(default=None, description=f"Tokens that {name} may be asked for in any minute."),
        ),
    }
    return create_model(f"{name.title()}Fields", __base__=Fields, **fields)


def _loaded(point: EntryPoint) -> type[Any]:
    try:
        LLMProvider(point.name)
        provider = point.load()
    except Exception as error:  # whatever the module of somebody else does
        raise LLMSettingsError(f"{_said(point)}: {type(error).__name__}: {error}") from error
    if missing := [name for name in _TOLD if not hasattr(provider, name)]:
        raise LLMSettingsError(f"{_said(point)}: it has no `{missing[0]}`")
    if (name := getattr(provider, "name", point.name)) != point.name:
        raise LLMSettingsError(f"{_said(point)}: its class has the name {name!r}")
    return provider  # type: ignore[no-any-return]  # checked as far as it can be


def _said(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "a package"
    return f"the provider {point.name!r} of {package} ({PREFIX}{point.name.upper()}_...) cannot be used"

"""How a provider is asked which models it has, and what it answers: a GET that costs nothing and runs no model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """Where to ask, and with what credentials."""

    url: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One model that a provider says it has; None where it says nothing."""

    names: tuple[str, ...]
    """What a candidate may call it; first the name that it is listed under."""
    context_tokens: int | None = None
    size_bytes: int | None = None


def openai_listing(api_base: str, api_key: SecretStr | None) -> Inquiry:
    """Return how a server that speaks as OpenAI does is asked: https://platform.openai.com/docs/api-reference/models."""
    key = api_key.get_secret_value() if api_key else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return Inquiry(url=f"{api_base.rstrip('/')}/models", headers=headers)


def openai_listed(answer: Any) -> tuple[ListedModel, ...]:
    """Return the models of such an answer; Groq adds the window.

    Raises:
        ValueError: It lists no models.
    """
    return tuple(
        ListedModel(names=(str(each.get("id")),), context_tokens=positive(each.get("context_window")))
        for each in entries(answer, "data")
    )


def entries(answer: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that stand in an answer under `key`.

    Raises:
        ValueError: There is no list of that name.
    """
    listed = answer.get(key) if isinstance(answer, Mapping) else None
    if not isinstance(listed, list):
        raise ValueError(f"no list of `{key}` is in it")  # noqa: TRY004  # the answer is wrong, no type of ours
    return (each for each in listed if isinstance(each, Mapping))


def positive(value: Any) -> int | None:
    """Return a count; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

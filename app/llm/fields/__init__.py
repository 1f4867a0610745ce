"""Settings by room: what every field has in common; the fields of each provider and of the ledger stand beside it."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, ValidationInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.llm.endpoints import has_good_port
from app.llm.types import checked_model

PREFIX = "LLM_"

CommaList = Annotated[tuple[str, ...], NoDecode]


class Fields(BaseSettings):
    """Fields that are read from `LLM_` variables or a `.env` file in the working directory.

    The string below a field is its meaning; the settings table of the README is made from it. A room's class is but a
    part of the settings, so it is not built by itself.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
        validate_default=True,
        defer_build=True,
    )


def checked_base(value: str) -> str:
    """Return the root of an API without a trailing slash.

    Raises:
        ValueError: It is no such URL.
    """
    parts = urlsplit(value)
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password: use LLM_OLLAMA_API_KEY or LLM_OLLAMA_HEADERS")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or not has_good_port(parts):
        raise ValueError("must be a URL such as http://localhost:11434, without a query")
    return value.rstrip("/")


def _model_of(value: str, info: ValidationInfo) -> str:
    """Return the model that a bare provider stands for; its provider is the start of the field's name."""
    provider = str(info.field_name).removesuffix("_model")
    return checked_model(f"{provider}:{value}").partition(":")[2]


ApiBase = Annotated[str, AfterValidator(checked_base)]
ModelName = Annotated[str, AfterValidator(_model_of)]

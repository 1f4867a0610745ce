"""Providers that are reached by `acompletion` alone: each with its stub, its model, and where its key travels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.limits import Limits
from app.llm.providers import Catalog
from app.llm.settings import isolated_settings
from app.llm.testing import StubAnthropic, StubOpenAI
from tests.wire.conftest import Rig

KEY = "further-key-0123456789"


class Further(NamedTuple):
    """A provider, and who stands in for it."""

    stub: type[StubOpenAI] | type[StubAnthropic]
    model: str
    header: str
    """Where the key travels."""


FURTHER = {
    "openai": Further(StubOpenAI, "gpt-4.1-mini", "authorization"),
    "groq": Further(StubOpenAI, "openai/gpt-oss-20b", "authorization"),
    "anthropic": Further(StubAnthropic, "claude-haiku-4-5", "x-api-key"),
}
OF_OPENAI = ("openai", "groq")


@asynccontextmanager
async def rig_on(provider: str, model: str | None = None, **values: Any) -> AsyncIterator[Rig]:
    """Yield a candidate of `provider` on a stub of its own."""
    asked = model or FURTHER[provider].model
    with FURTHER[provider].stub(models=(asked,), api_key=KEY) as stub:
        given = {f"{provider}_api_base": stub.base_url, f"{provider}_api_key": KEY, **values}
        settings = isolated_settings(**given)
        client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), unfit=pytest.fail)
        await client.warm_up()
        try:
            yield Rig(stub, Catalog.from_settings(settings).pinned(f"{provider}:{asked}"), client)
        finally:
            await client.close()

"""One provider asked through both lanes, so that tests can hold what leaves and what comes back side by side."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.deltas import Delta
from app.llm.errors import LLMProviderError
from app.llm.limits import Limits
from app.llm.providers import Catalog
from app.llm.settings import LiteLLMLane, isolated_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMRequest
from tests.wire.conftest import GEMINI_KEY, HELLO, Rig

LANES = tuple(LiteLLMLane)
MODELS = {
    "ollama": ("llama3.2", "gpt-oss:20b"),
    "gemini": (
        "gemini-2.5-flash",
        "gemini-2.5-pro",
        "gemini-2.0-flash",
        "gemini-3-pro-preview",
        "unheard-of",
    ),
}
FACTS = ("possibly_paid", "retryable", "fallback", "retry_after_s", "code")


@dataclass(frozen=True, slots=True)
class Pair:
    """The same candidate behind each lane."""

    rigs: dict[LiteLLMLane, Rig]

    @property
    def stub(self) -> Any:
        return self.rigs[LiteLLMLane.DIALECT].stub

    async def ended(
        self, reply: Reply | None = None, request: LLMRequest = HELLO, *, timeout_s: float = 30
    ) -> dict[LiteLLMLane, Any]:
        """Return how the same call ends in each lane, after one send at most."""
        return {
            lane: await ended(rig, reply, request, timeout_s=timeout_s) for lane, rig in self.rigs.items()
        }

    async def left(self, request: LLMRequest, *, listened: bool = False) -> dict[LiteLLMLane, Any]:
        """Return what leaves for `request` in each lane, or the error that kept it."""
        sent: dict[LiteLLMLane, Any] = {}
        for lane, rig in self.rigs.items():
            before = len(self.stub.requests)
            how = await ended(rig, None, request, listened=listened)
            sent[lane] = [seen(each) for each in self.stub.requests[before:]] or how
        return sent


async def ended(
    rig: Rig,
    reply: Reply | None,
    request: LLMRequest = HELLO,
    *,
    timeout_s: float = 30,
    listened: bool = False,
) -> Any:
    """Return the answer of one call, or what its error says; `listened`: as a stream."""
    rig.stub.always(reply)
    before = rig.stub.sends
    try:
        outcome: Any = await rig.send(request, timeout_s=timeout_s, on_delta=_nobody if listened else None)
    except LLMProviderError as error:
        outcome = told(error)
    assert rig.stub.sends - before <= 1
    return outcome


async def _nobody(_: Delta) -> None:
    """Listen, and do nothing."""


def told(error: LLMProviderError) -> dict[str, Any]:
    facts = {name: getattr(error, name) for name in FACTS}
    return {"error": type(error), "message": error.message, **facts, **error.facts}


def seen(received: Any) -> dict[str, Any]:
    """Return all that tells one request from another; JSON is compared as JSON, for its white space differs."""
    headers = {name: value for name, value in received.headers.items() if name != "content-length"}
    body = json.loads(received.raw)
    return {"path": received.path, "query": dict(received.query), "headers": headers, "body": body}


def without(told: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in names}


@asynccontextmanager
async def pair_on(provider: str, model: str | None = None, **overrides: Any) -> AsyncIterator[Pair]:
    """Yield a candidate of `provider` behind each lane, on one stub."""
    stubs = {
        "ollama": StubOllama(models=MODELS["ollama"]),
        "gemini": StubGemini(models=MODELS["gemini"], api_key=GEMINI_KEY),
    }
    with stubs[provider] as stub:
        given = {f"{provider}_api_base": stub.base_url, "gemini_api_key": GEMINI_KEY, **overrides}
        rigs: dict[LiteLLMLane, Rig] = {}
        for lane in LANES:
            settings = isolated_settings(litellm_lane=lane, **given)
            candidate = Catalog.from_settings(settings).pinned(f"{provider}:{model or MODELS[provider][0]}")
            client = LiteLLMClient(
                settings=settings, limits=Limits.from_settings(settings), unfit=pytest.fail
            )
            await client.warm_up()
            rigs[lane] = Rig(stub, candidate, client)
        try:
            yield Pair(rigs)
        finally:
            for rig in rigs.values():
                await rig.client.close()

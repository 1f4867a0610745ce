"""A client on a stub of each provider, over real sockets."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.llm.candidates import Candidate
from app.llm.client_litellm import LiteLLMClient
from app.llm.deltas import OnDelta
from app.llm.errors import LLMProviderError
from app.llm.limits import Limits
from app.llm.messages import Message
from app.llm.ports import Listener, ProviderReply
from app.llm.providers import Catalog
from app.llm.settings import LiteLLMLane, LLMSettings, isolated_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMRequest

GEMINI_KEY = "stub-key-0123456789"
HELLO = LLMRequest(messages=(Message.user("Hello"),))
in_both_lanes = pytest.mark.parametrize(
    "overrides", [{"litellm_lane": lane} for lane in LiteLLMLane], ids=list(LiteLLMLane)
)
"""For what the comparison of the lanes does not see: tasks, connections, what is not sent."""


@dataclass
class Rig:
    """One candidate, the stub that serves it, and a client."""

    stub: Any
    candidate: Candidate
    client: LiteLLMClient
    sends_begun: list[int] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)

    def _begun(self, waited_ms: float) -> None:
        self.sends_begun.append(1)
        self.waits_ms.append(waited_ms)

    async def send(
        self,
        request: LLMRequest = HELLO,
        *,
        timeout_s: float = 30,
        on_delta: OnDelta | None = None,
        stream_s: float | None = None,
    ) -> ProviderReply:
        return await self.client.send(
            request,
            self.candidate,
            run_id=f"run-{len(self.sends_begun)}",
            workspace_id="w1",
            timeout_s=timeout_s,
            on_send=self._begun,
            listener=Listener(on_delta, stream_s or timeout_s) if on_delta else None,
        )

    async def answer(self, reply: Reply, request: LLMRequest = HELLO) -> ProviderReply:
        self.stub.script(reply)
        return await self.send(request)

    async def failure(
        self, reply: Reply, request: LLMRequest = HELLO, *, timeout_s: float = 30
    ) -> LLMProviderError:
        """Return the error that `reply` leads to, after exactly one send."""
        self.stub.script(reply)
        with pytest.raises(LLMProviderError) as caught:
            await self.send(request, timeout_s=timeout_s)
        assert self.stub.sends == len(self.sends_begun) == 1
        return caught.value

    async def body(self, request: LLMRequest) -> dict[str, Any]:
        """Return the JSON that leaves for `request`."""
        await self.send(request)
        return dict(self.stub.requests[-1].body)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("LLM_", "GEMINI_", "GOOGLE_", "OLLAMA_")):
            monkeypatch.delenv(name)


@pytest.fixture
def ollama() -> Iterator[StubOllama]:
    with StubOllama(models=("llama3.2",)) as stub:
        yield stub


@pytest.fixture
def gemini() -> Iterator[StubGemini]:
    with StubGemini(models=("gemini-2.5-flash", "gemini-2.5-pro", "unheard-of"), api_key=GEMINI_KEY) as stub:
        yield stub


@pytest.fixture
def overrides() -> dict[str, Any]:
    """Settings that a test sets itself, by `@pytest.mark.parametrize("overrides", [...])`."""
    return {}


@pytest.fixture
def settings(ollama: StubOllama, gemini: StubGemini, overrides: dict[str, Any]) -> LLMSettings:
    bases = {"ollama_api_base": ollama.base_url, "gemini_api_base": gemini.base_url}
    return isolated_settings(**{**bases, "gemini_api_key": GEMINI_KEY, **overrides})


@pytest.fixture
async def client(settings: LLMSettings) -> AsyncIterator[LiteLLMClient]:
    client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), unfit=pytest.fail)
    await client.warm_up()
    yield client
    await client.close()


@pytest.fixture
def on_ollama(ollama: StubOllama, settings: LLMSettings, client: LiteLLMClient) -> Rig:
    return Rig(ollama, Catalog.from_settings(settings).pinned("ollama:llama3.2"), client)


@pytest.fixture
def on_gemini(gemini: StubGemini, settings: LLMSettings, client: LiteLLMClient) -> Rig:
    return Rig(gemini, Catalog.from_settings(settings).pinned("gemini:gemini-2.5-flash"), client)


@pytest.fixture(params=["ollama", "gemini"])
def rig(request: pytest.FixtureRequest, on_ollama: Rig, on_gemini: Rig) -> Rig:
    """Each provider in turn."""
    return {"ollama": on_ollama, "gemini": on_gemini}[request.param]

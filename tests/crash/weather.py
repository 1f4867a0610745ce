"""Providers that fail at random: behind a port, or as stubs for the client of production."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from app.llm.candidates import Candidate
from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMBadRequest, LLMError
from app.llm.limits import Limits
from app.llm.ports import Listener, ProviderReply
from app.llm.settings import isolated_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.testing.client import text_reply
from app.llm.testing.server import StubServer
from app.llm.types import LLMProvider, LLMRequest
from tests.support.ledger import GEMINI_KEY
from tests.support.service import limited, refused, timed_out

SLOTS = 4


class Moody:
    """A client behind real limits: takes a few turns of the loop, then answers or fails as chance will have it."""

    def __init__(self, chance: random.Random, faults: float) -> None:
        self.limits = Limits(total=SLOTS, per_provider=dict.fromkeys(LLMProvider, SLOTS))
        self.sent: Counter[str] = Counter()
        """Sends by run id."""
        self._chance = chance
        self._faults = faults

    async def send(
        self,
        request: LLMRequest,  # noqa: ARG002  # the port's signature
        candidate: Candidate,
        *,
        run_id: str,
        workspace_id: str,
        timeout_s: float,  # noqa: ARG002
        on_send: Callable[[float], None],
        listener: Listener | None = None,  # noqa: ARG002
    ) -> ProviderReply:
        async with self.limits.slot(candidate.provider, run_id, workspace_id) as waited_ms:
            on_send(waited_ms)
            self.sent[run_id] += 1
            for _ in range(self._chance.randrange(4)):
                await asyncio.sleep(0)
            if self._chance.random() < self._faults:
                fault = self._chance.choice((limited, refused, timed_out, _bad))
                raise fault()
            return text_reply(f"answer of {run_id}")

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing is open."""


def _bad() -> LLMError:
    return LLMBadRequest("no", provider="ollama")


class Stubs:
    """Both providers: answers that all differ, and faults; more of them at the first, so that calls fall back."""

    def __init__(self, chance: random.Random, replies: int, *, delay_s: float = 0.0) -> None:
        self.first = StubOllama(models=("first",))
        self.second = StubGemini(models=("second",), api_key=GEMINI_KEY)
        self._stack = ExitStack()
        for stub, faults in zip(self.both, (0.7, 0.2), strict=True):
            stub.script(*_weather(chance, replies, delay_s, faults, stub.provider))

    @property
    def both(self) -> tuple[StubServer, StubServer]:
        return self.first, self.second

    def __enter__(self) -> Self:
        for stub in self.both:
            self._stack.enter_context(stub)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def sends(self) -> int:
        return sum(stub.sends for stub in self.both)


class Observed:
    """The client of production over both stubs, with every send counted and every step of it seen."""

    def __init__(self, stubs: "Stubs", look: Callable[[], None] = lambda: None) -> None:
        settings = isolated_settings(
            ollama_api_base=stubs.first.base_url,
            gemini_api_base=stubs.second.base_url,
            gemini_api_key=GEMINI_KEY,
        )
        self.limits = Limits(total=SLOTS, per_provider=dict.fromkeys(LLMProvider, SLOTS))
        self.sent: Counter[str] = Counter()
        """Sends by run id."""
        self._inner = LiteLLMClient(settings=settings, limits=self.limits)
        self._look = look

    async def send(self, *args: Any, run_id: str, on_send: Callable[[float], None], **named: Any) -> Any:
        def sent(waited_ms: float) -> None:
            on_send(waited_ms)
            self.sent[run_id] += 1
            for turns in range(4):  # the request is written, the answer is read
                loop.call_later(turns * 0.002, self._look)

        loop = asyncio.get_running_loop()
        return await self._inner.send(*args, run_id=run_id, on_send=sent, **named)

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        await self._inner.warm_up(timeout_s=timeout_s)

    async def close(self) -> None:
        await self._inner.close()


def _weather(chance: random.Random, replies: int, delay_s: float, share: float, who: str) -> list[Reply]:
    faults = (
        Reply.rate_limited(0),
        Reply.rate_limited(0),
        Reply.status(503),
        Reply.status(400),
        Reply.reset(),
    )
    return [
        chance.choice(faults)
        if chance.random() < share
        else Reply.text(f"answer {n} of {who}").after(delay_s)
        for n in range(replies)
    ]

"""What is learned of candidates: whose word counts, who waits for it, and how long it is kept."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from app.core.clock import SystemClock
from app.llm.candidates import Candidate, ModelFacts
from app.llm.errors import LLMUnavailable
from app.llm.knowledge import MAX_MODELS, RETRY_S, Knowledge
from app.llm.messages import Message
from app.llm.providers import Catalog
from app.llm.settings import isolated_settings
from app.llm.telemetry import Telemetry
from app.llm.types import LLMConstraints, LLMProfile, LLMRequest

LLAMA, FLASH = "ollama:llama3.2", "gemini:gemini-2.5-flash"
ASK = LLMRequest(messages=(Message.user("?"),))


class Moved(SystemClock):
    """A clock that is set forward by hand."""

    __slots__ = ("ahead_s",)

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


class Describing:
    """Says what it is told to; `gate` keeps it waiting."""

    def __init__(self, **said: ModelFacts) -> None:
        self.said: dict[str, ModelFacts] = {f"ollama:{name}": facts for name, facts in said.items()}
        self.asked: list[tuple[str, ...]] = []
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.closed = False

    def asks_about(self, candidate: Candidate) -> bool:
        return candidate.name.startswith("ollama:")

    async def describe(self, candidates: Sequence[Candidate]) -> Mapping[str, ModelFacts]:
        self.asked.append(tuple(each.name for each in candidates))
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return {each.name: self.said[each.name] for each in candidates if each.name in self.said}

    async def close(self) -> None:
        self.closed = True


class Rig:
    def __init__(self, describing: Describing | None, **values: Any) -> None:
        settings = isolated_settings(gemini_api_key="k", **values)
        self.clock = Moved()
        self.before = Catalog.from_settings(settings)
        self.knowledge = Knowledge(
            self.before, settings, clock=self.clock, telemetry=Telemetry(), describer=describing
        )

    async def ready(self, request: LLMRequest = ASK, left_s: float = 30) -> None:
        await self.knowledge.ready(request, LLMProfile.BALANCED, left_s=left_s)

    def caps(self, name: str = LLAMA) -> Any:
        return self.knowledge.catalog.pinned(name).caps


async def test_what_a_provider_says_beats_the_table_and_changes_no_identity():
    rig = Rig(Describing(**{"llama3.2": ModelFacts(tools=False, vision=True, context_tokens=2048)}))
    await rig.ready()
    assert (rig.caps().supports_tools, rig.caps().supports_vision, rig.caps().max_context_tokens) == (
        False,
        True,
        2048,
    )
    assert rig.knowledge.catalog.pinned(LLAMA).identity == rig.before.pinned(LLAMA).identity
    assert rig.knowledge.catalog.pinned(FLASH) == rig.before.pinned(FLASH)
    assert rig.before.pinned(LLAMA).caps.supports_tools, "a catalog stays as it is"


async def test_the_digest_of_weights_joins_the_identity_and_changes_nothing_else():
    describing = Describing(**{"llama3.2": ModelFacts(weights="one")})
    rig = Rig(describing, learn_ttl_s=100)
    await rig.ready()
    one = rig.knowledge.catalog.pinned(LLAMA)
    assert one.identity != rig.before.pinned(LLAMA).identity
    assert one.model_copy(update={"identity": rig.before.pinned(LLAMA).identity}) == rig.before.pinned(LLAMA)
    assert rig.knowledge.catalog.pinned(FLASH) == rig.before.pinned(FLASH)
    rig.knowledge.refused(one, "tools")
    assert rig.knowledge.catalog.pinned(LLAMA).identity == one.identity, "a refusal is none of the weights'"
    describing.said[LLAMA] = ModelFacts(weights="two")
    rig.clock.ahead_s = 101
    await rig.ready()
    await asyncio.gather(*rig.knowledge._tasks)
    assert rig.knowledge.catalog.pinned(LLAMA).identity not in {
        one.identity,
        rig.before.pinned(LLAMA).identity,
    }
    describing.said[LLAMA] = ModelFacts(weights="one")
    rig.clock.ahead_s = 202
    await rig.ready()
    await asyncio.gather(*rig.knowledge._tasks)
    assert rig.knowledge.catalog.pinned(LLAMA).identity == one.identity, "equal weights, equal identity"


async def test_a_provider_that_falls_silent_leaves_the_weights_as_they_were():
    describing = Describing(**{"llama3.2": ModelFacts(weights="one")})
    rig = Rig(describing, learn_ttl_s=100)
    await rig.ready()
    known = rig.knowledge.catalog.pinned(LLAMA).identity
    describing.fault = LLMUnavailable("away")
    rig.clock.ahead_s = 101
    await rig.ready()
    await asyncio.gather(*rig.knowledge._tasks)
    assert rig.knowledge.catalog.pinned(LLAMA).identity == known


async def test_a_window_is_never_wider_than_what_is_asked_for():
    rig = Rig(Describing(**{"llama3.2": ModelFacts(context_tokens=131_072)}), ollama_num_ctx=4096)
    await rig.ready()
    assert rig.caps().max_context_tokens == 4096


async def test_the_settings_beat_what_a_provider_says_and_a_refusal_beats_both():
    models = {LLAMA: {"supports_tools": True, "supports_vision": True}}
    rig = Rig(Describing(**{"llama3.2": ModelFacts(tools=False, vision=False)}), model_overrides=models)
    await rig.ready()
    assert (rig.caps().supports_tools, rig.caps().supports_vision) == (True, True)
    rig.knowledge.refused(rig.knowledge.catalog.pinned(LLAMA), "tools")
    assert (rig.caps().supports_tools, rig.caps().supports_vision) == (False, True)


async def test_a_refusal_outlasts_what_the_provider_says_later():
    describing = Describing(**{"llama3.2": ModelFacts(tools=True)})
    rig = Rig(describing)
    await rig.ready()
    rig.knowledge.refused(rig.knowledge.catalog.pinned(LLAMA), "tools")
    describing.said[LLAMA] = ModelFacts(tools=True, context_tokens=1024)
    rig.clock.ahead_s = 4000
    await rig.ready()
    await asyncio.gather(*rig.knowledge._tasks)
    assert (rig.caps().supports_tools, rig.caps().max_context_tokens) == (False, 1024)


async def test_a_word_that_nobody_knows_changes_nothing():
    rig = Rig(None)
    rig.knowledge.refused(rig.before.pinned(LLAMA), "telepathy")
    assert rig.knowledge.catalog is rig.before


async def test_what_is_known_already_makes_no_other_catalog():
    rig = Rig(Describing(**{"llama3.2": ModelFacts(tools=True, vision=False)}))
    await rig.ready()
    assert rig.knowledge.catalog is rig.before


async def test_a_model_is_asked_about_once_however_many_calls_there_are():
    describing = Describing(**{"llama3.2": ModelFacts(tools=False)})
    describing.gate = asyncio.Event()
    rig = Rig(describing)
    calls = [asyncio.create_task(rig.ready()) for _ in range(20)]
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls), "the first answer is waited for by all"
    describing.gate.set()
    await asyncio.gather(*calls)
    await rig.ready()
    assert describing.asked == [(LLAMA,)]


async def test_a_call_that_goes_elsewhere_waits_for_nobody():
    describing = Describing()
    describing.gate = asyncio.Event()
    rig = Rig(describing)
    slow = asyncio.create_task(rig.ready())
    await asyncio.sleep(0)
    await rig.ready(ASK.model_copy(update={"model": FLASH}))
    assert not slow.done()
    both = ASK.model_copy(update={"model": FLASH, "constraints": LLMConstraints(allow_fallback=True)})
    other = asyncio.create_task(rig.ready(both))
    await asyncio.sleep(0)
    assert not other.done(), "its fallback may be described"
    describing.gate.set()
    await asyncio.gather(slow, other)


async def test_nobody_waits_longer_than_the_call_has():
    describing = Describing()
    describing.gate = asyncio.Event()
    rig = Rig(describing)
    await rig.ready(left_s=0)
    assert rig.knowledge._first
    await rig.knowledge.close()
    assert describing.closed
    assert not rig.knowledge._first


async def test_after_a_while_it_is_asked_again_and_nobody_waits():
    describing = Describing(**{"llama3.2": ModelFacts(tools=True)})
    rig = Rig(describing, learn_ttl_s=100)
    await rig.ready()
    describing.gate = asyncio.Event()
    rig.clock.ahead_s = 99
    await rig.ready()
    assert len(describing.asked) == 1
    rig.clock.ahead_s = 101
    await rig.ready()
    await asyncio.sleep(0)
    assert len(describing.asked) == 2
    await rig.knowledge.close()


@pytest.mark.parametrize("fault", [LLMUnavailable("away"), None], ids=["away", "no such model"])
async def test_who_says_nothing_is_asked_again_soon_and_nobody_waits(fault: Exception | None):
    describing = Describing()
    describing.fault = fault
    rig = Rig(describing)
    await rig.ready()
    assert rig.knowledge.catalog is rig.before
    describing.fault, describing.said[LLAMA] = None, ModelFacts(tools=False)
    await rig.ready()
    assert len(describing.asked) == 1
    rig.clock.ahead_s = RETRY_S + 1
    describing.gate = asyncio.Event()
    await rig.ready()
    describing.gate.set()
    await asyncio.gather(*rig.knowledge._tasks)
    assert not rig.caps().supports_tools


async def test_callers_cannot_make_it_ask_without_end():
    describing = Describing()
    rig = Rig(describing)
    for number in range(MAX_MODELS + 10):
        await rig.ready(ASK.model_copy(update={"model": f"ollama:m{number}"}))
    assert len(describing.asked) == MAX_MODELS


async def test_a_defect_of_the_describer_fails_no_call(caplog: pytest.LogCaptureFixture):
    describing = Describing()
    describing.fault = ZeroDivisionError()
    rig = Rig(describing)
    await rig.ready()
    assert "llm_background_fault" in caplog.text

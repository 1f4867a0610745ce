"""What a call meets before its send, through the whole service: the breaker, the queue for a slot, the loading."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.llm.breaker import THRESHOLD
from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMQueueFull, LLMTimeout, LLMUnavailable
from app.llm.limits import Limits
from app.llm.service import LLMService
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMProvider
from app.llm.wire.loading import load_litellm
from tests.security.services import Stubs, wired
from tests.support.ledger import GEMINI_KEY, Outside, request, settings_for
from tests.wire.conftest import HELLO, Rig

SLOTS = 8
NO_LEDGER = {"persist_runs": False, "ollama_concurrency_limit": SLOTS}
UNUSED = "sqlite+aiosqlite:///unused.db"


@pytest.fixture
def stubs() -> Iterator[Stubs]:
    ollama = StubOllama(models=("first",))
    with ollama, StubGemini(models=("second",), api_key=GEMINI_KEY) as gemini:
        yield Stubs(ollama, gemini)


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


# -- the breaker


async def test_calls_one_after_another_at_a_dead_primary_are_three_sends_to_it(stubs: Stubs):
    stubs.ollama.always(Reply.status(503))
    async with wired(UNUSED, stubs, **NO_LEDGER) as llm:
        served = Counter([(await llm.chat(request())).provider for _ in range(50)])
    assert served == {LLMProvider.GEMINI: 50}
    assert stubs.ollama.sends == THRESHOLD


@pytest.mark.parametrize("slots", [1, SLOTS])
async def test_a_thousand_calls_at_once_at_a_dead_primary_are_no_sends_beyond_those_under_way(
    stubs: Stubs, slots: int
):
    """All find the circuit closed and queue for a slot; whoever gets one after the opening does not send."""
    stubs.ollama.always(Reply.status(503))
    async with wired(UNUSED, stubs, **{**NO_LEDGER, "ollama_concurrency_limit": slots}) as llm:
        await llm.warm_up()
        with stubs.ollama.hold():
            calls = [asyncio.create_task(llm.chat(request())) for _ in range(1000)]
            await asyncio.to_thread(stubs.ollama.wait_for_sends, slots)
        answers = await asyncio.gather(*calls)
        at_the_opening = stubs.ollama.sends
        await llm.chat(request())
    assert {answer.provider for answer in answers} == {LLMProvider.GEMINI}
    assert at_the_opening == stubs.ollama.sends <= slots + THRESHOLD - 1
    sends = [attempt.provider for answer in answers for attempt in answer.attempts]
    assert sends.count(LLMProvider.OLLAMA) == at_the_opening


@pytest.mark.parametrize(
    "overrides",
    [{"litellm_lane": "dialect"}, {"litellm_lane": "acompletion"}],
    ids=["dialect", "acompletion"],
)
async def test_a_send_that_is_refused_with_its_slot_in_hand_does_not_happen(rig: Rig):
    refusal = LLMUnavailable("left alone", skipped=True)

    def refuse(_: float) -> None:
        raise refusal

    with pytest.raises(LLMUnavailable) as caught:
        await rig.client.send(
            HELLO, rig.candidate, run_id="r", workspace_id="w", timeout_s=30, on_send=refuse
        )
    assert caught.value is refusal
    assert rig.stub.sends == 0
    assert rig.client._limits.in_flight() == 0


async def test_the_haste_of_one_tenant_closes_no_provider_to_another(stubs: Stubs):
    stubs.ollama.always(Reply.text("well"))
    async with wired(UNUSED, stubs, profile_balanced="ollama:first", **NO_LEDGER) as llm:
        await llm.warm_up()
        with stubs.ollama.hold():
            for n in range(1, 2 * THRESHOLD):
                hasty = request(timeout_s=0.2, metadata={"workspace_id": "hasty"})
                with pytest.raises(LLMTimeout):
                    await llm.chat(hasty)
                assert stubs.ollama.sends == n
        assert (await llm.chat(request(metadata={"workspace_id": "patient"}))).text == "well"


# -- the queue


ONE_SLOT = {"profile_balanced": "ollama:first", "ollama_concurrency_limit": 1}


@asynccontextmanager
async def all_slots_taken(stubs: Stubs, llm: LLMService) -> AsyncIterator[None]:
    await llm.warm_up()
    with stubs.ollama.hold():
        holder = asyncio.create_task(llm.chat(request()))
        await asyncio.to_thread(stubs.ollama.wait_for_sends, 1)
        yield
    await holder
    await llm.drain()


async def _queued(llm: LLMService) -> None:
    queue = llm._wiring.client._limits._gates_of(asyncio.get_running_loop())  # type: ignore[attr-defined]
    while not queue.of[LLMProvider.OLLAMA].waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.parametrize("ends", ["FAILED", "CANCELLED"])
async def test_the_wait_of_a_call_that_never_got_a_slot_is_on_its_row(
    db_url: str, stubs: Stubs, outside: Outside, ends: str
):
    async with wired(db_url, stubs, **ONE_SLOT) as llm, all_slots_taken(stubs, llm):
        call = asyncio.create_task(llm.chat(request(timeout_s=0.5 if ends == "FAILED" else 60)))
        if ends == "CANCELLED":
            await _queued(llm)
            call.cancel()
        await asyncio.wait([call])
    assert stubs.ollama.sends == 1
    _, row = await outside.runs()
    assert row["status"] == ends
    assert row["queue_wait_ms"] > 0


async def test_the_wait_of_a_call_that_got_its_slot_in_the_end_is_on_its_row(
    db_url: str, stubs: Stubs, outside: Outside
):
    async with wired(db_url, stubs, **ONE_SLOT) as llm:
        async with all_slots_taken(stubs, llm):
            waiter = asyncio.create_task(llm.chat(request()))
            await _queued(llm)
        await waiter
    held, waited = await outside.runs()
    assert (held["status"], waited["status"]) == ("SUCCEEDED", "SUCCEEDED")
    assert waited["queue_wait_ms"] > held["queue_wait_ms"]


async def test_a_call_that_found_the_queue_full_has_waited_for_nothing(
    db_url: str, stubs: Stubs, outside: Outside
):
    async with wired(db_url, stubs, queue_limit=0, **ONE_SLOT) as llm, all_slots_taken(stubs, llm):
        with pytest.raises(LLMQueueFull):
            await llm.chat(request())
    assert stubs.ollama.sends == 1
    _, row = await outside.runs()
    assert (row["error_code"], row["queue_wait_ms"]) == ("queue_full", 0)


# -- the loading


async def test_a_call_ends_at_its_deadline_while_litellm_is_loading_and_the_next_one_finds_it_loaded(
    db_url: str, stubs: Stubs, outside: Outside
):
    loads, loaded = [], threading.Event()
    await asyncio.to_thread(load_litellm)  # here, where no deadline runs

    def slow_load() -> Any:
        loads.append(1)
        assert loaded.wait(20)
        return load_litellm()

    bases = {"ollama_api_base": stubs.ollama.base_url, "gemini_api_base": stubs.gemini.base_url}
    settings = settings_for(db_url, **bases)
    cold = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), warm=slow_load)
    async with build_llm_service(settings, client=cold) as llm:
        with pytest.raises(LLMTimeout, match="nothing was sent: LiteLLM was still being loaded") as caught:
            await llm.chat(request(timeout_s=0.2))
        loaded.set()
        answer = await llm.chat(request(timeout_s=60))
    assert (caught.value.possibly_paid, caught.value.attempts) == (False, ())
    assert (answer.provider, loads) == (LLMProvider.OLLAMA, [1])
    assert [run["status"] for run in await outside.runs()] == ["FAILED", "SUCCEEDED"]

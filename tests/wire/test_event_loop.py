"""One slow provider, or the loading of LiteLLM, holds up nobody else; whoever leaves takes the connection along."""

import asyncio
import gc
import threading
from typing import Any

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMInternal, LLMTimeout, LLMUnavailable
from app.llm.limits import Limits
from app.llm.providers import Catalog
from app.llm.settings import LLMSettings
from app.llm.testing import Reply, StubOllama
from app.llm.types import LLMProvider
from app.llm.wire.loading import load_litellm
from tests.wire.conftest import Rig, in_both_lanes


async def test_a_call_to_a_healthy_provider_ends_while_another_provider_is_silent(
    on_ollama: Rig, on_gemini: Rig
):
    with on_ollama.stub.hold():
        slow = asyncio.create_task(on_ollama.send())
        await asyncio.to_thread(on_ollama.stub.wait_for_sends, 1)
        assert (await on_gemini.send()).parts
        assert not slow.done()
    assert (await slow).parts


@in_both_lanes
async def test_an_ollama_that_cannot_describe_its_models_still_answers(
    settings: LLMSettings, monkeypatch: pytest.MonkeyPatch
):
    """Of a model that it does not know, LiteLLM asks the server of OLLAMA_API_BASE, and the loop waits."""
    with StubOllama(models=("never-heard-of",)) as stub:
        monkeypatch.setenv("OLLAMA_API_BASE", stub.base_url)
        there = settings.model_copy(update={"ollama_api_base": stub.base_url})
        client = LiteLLMClient(settings=there, limits=Limits.from_settings(there))
        rig = Rig(stub, Catalog.from_settings(there).pinned("ollama:never-heard-of"), client)
        with stub.hang_show():
            assert (await rig.send()).parts
        await client.close()
    assert [each.path for each in stub.requests] == ["/api/chat"]


async def test_the_loop_goes_on_while_litellm_is_loading(settings: LLMSettings, on_gemini: Rig):
    loading, loaded = threading.Event(), threading.Event()

    def slow_load() -> Any:
        loading.set()
        loaded.wait(20)
        return load_litellm()

    cold = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), warm=slow_load)
    first = asyncio.create_task(Rig(on_gemini.stub, on_gemini.candidate, cold).send())
    await asyncio.to_thread(loading.wait, 20)
    assert (await on_gemini.send()).parts
    assert not first.done()
    loaded.set()
    assert (await first).parts
    await cold.close()


async def test_litellm_is_loaded_once_for_many_first_calls(settings: LLMSettings, on_gemini: Rig):
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return load_litellm()

    cold = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), warm=load)
    rig = Rig(on_gemini.stub, on_gemini.candidate, cold)
    await asyncio.gather(*(rig.send() for _ in range(4)))
    await cold.close()
    assert loads == [1]


async def test_loading_litellm_is_not_counted_against_the_first_send(settings: LLMSettings, on_gemini: Rig):
    """Otherwise the first call of a process would fail, or pay another candidate, with every provider well."""
    asked, loaded = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow_load() -> object:
        loop.call_soon_threadsafe(asked.set)
        assert loaded.wait(20)
        return load_litellm()

    cold = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), warm=slow_load)
    rig = Rig(on_gemini.stub, on_gemini.candidate, cold)
    call = asyncio.create_task(rig.send(timeout_s=5))
    await asked.wait()
    await asyncio.sleep(0)
    assert rig.sends_begun == []
    loaded.set()
    assert (await call).parts
    await cold.close()


async def test_a_litellm_that_cannot_be_loaded_is_a_defect_and_not_a_payment(
    settings: LLMSettings, on_gemini: Rig
):
    def broken() -> Any:
        raise ImportError("no such module")

    cold = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings), warm=broken)
    with pytest.raises(LLMInternal, match="ImportError") as caught:
        await Rig(on_gemini.stub, on_gemini.candidate, cold).send()
    assert caught.value.possibly_paid is False


@pytest.mark.parametrize("overrides", [{"ollama_concurrency_limit": 1}])
async def test_without_a_free_slot_in_time_nothing_is_sent_and_nothing_paid(on_ollama: Rig):
    with on_ollama.stub.hold():
        first = asyncio.create_task(on_ollama.send())
        await asyncio.to_thread(on_ollama.stub.wait_for_sends, 1)
        with pytest.raises(LLMTimeout, match=r"nothing was sent.*LLM_OLLAMA_CONCURRENCY_LIMIT") as caught:
            await on_ollama.send(timeout_s=0.1)
    await first
    assert caught.value.possibly_paid is False
    assert on_ollama.stub.sends == len(on_ollama.sends_begun) == 1


@pytest.mark.parametrize("overrides", [{"ollama_concurrency_limit": 2}])
async def test_the_provider_never_sees_more_calls_at_once_than_the_limit(on_ollama: Rig):
    replies = await asyncio.gather(*(on_ollama.send() for _ in range(8)))
    assert on_ollama.stub.sends == 8
    assert on_ollama.stub.max_in_flight <= 2
    assert len(replies) == 8
    assert max(on_ollama.waits_ms) > min(on_ollama.waits_ms)


@in_both_lanes
async def test_a_cancelled_call_hangs_up_frees_its_slot_and_stays_cancelled(rig: Rig):
    with rig.stub.hold():
        call = asyncio.create_task(rig.send())
        await asyncio.to_thread(rig.stub.wait_for_sends, 1)
        call.cancel("the caller left")
        with pytest.raises(asyncio.CancelledError, match="the caller left"):
            await call
        await asyncio.to_thread(rig.stub.wait_for_abandoned, 1)
    assert rig.client._limits.in_flight(rig.candidate.provider) == 0
    assert rig.stub.sends == 1


@in_both_lanes
async def test_a_call_leaves_no_task_behind(rig: Rig):
    await rig.answer(Reply.text("hi"))
    with pytest.raises(LLMUnavailable):
        await rig.answer(Reply.status(500))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_both_lanes
def test_one_client_serves_event_loops_one_after_another(settings: LLMSettings, ollama: StubOllama):
    client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings))
    rig = Rig(ollama, Catalog.from_settings(settings).pinned("ollama:llama3.2"), client)

    async def once() -> None:
        await rig.send()
        await client.close()

    for _ in range(2):
        asyncio.run(once())
    gc.collect()  # a session left open would warn here, and a warning is an error
    assert ollama.sends == 2


@in_both_lanes
async def test_closing_twice_is_closing_once(rig: Rig):
    await rig.send()
    await rig.client.close()
    await rig.client.close()
    assert rig.client._limits.in_flight() == 0


async def test_closing_reaches_the_connections_of_another_running_loop(rig: Rig):
    done, leave = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await rig.send()
        done.set()
        while not leave.is_set():  # noqa: ASYNC110  # the other loop must run for its session to close
            await asyncio.sleep(0)

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    await asyncio.to_thread(done.wait, 20)
    await rig.client.close()
    leave.set()
    await asyncio.to_thread(thread.join, 20)
    gc.collect()
    assert rig.stub.sends == 1


async def test_slots_are_of_the_provider_that_is_asked(on_ollama: Rig, on_gemini: Rig):
    with on_ollama.stub.hold():
        call = asyncio.create_task(on_ollama.send())
        await asyncio.to_thread(on_ollama.stub.wait_for_sends, 1)
        limits = on_ollama.client._limits
        assert (limits.in_flight(LLMProvider.OLLAMA), limits.in_flight(LLMProvider.GEMINI)) == (1, 0)
    await call

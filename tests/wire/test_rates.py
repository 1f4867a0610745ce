"""Rates through the whole service, over real sockets: who waits, who is refused, and what the provider sees."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMLedgerBusy, LLMLedgerUnavailable, LLMOverRate, LLMRateLimited
from app.llm.limits import Limits
from app.llm.pacing import Rate, quotas_of
from app.llm.persistence.rates import SharedMeter
from app.llm.providers import known
from app.llm.rates import Rates
from app.llm.telemetry import Telemetry
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMProvider
from tests.security.services import Stubs, wired
from tests.support.ledger import GEMINI_KEY, Outside, request, settings_for
from tests.support.service import QuickClock, Rig, rig

ONE = {"ollama_requests_per_minute": 1, "profile_balanced": "ollama:first"}
HASTY_S = 20.0
"""A call that does not wait for the next minute."""


@pytest.fixture
def stubs() -> Iterator[Stubs]:
    with (
        StubOllama(models=("first",)) as ollama,
        StubGemini(models=("second",), api_key=GEMINI_KEY) as gemini,
    ):
        yield Stubs(ollama, gemini)


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


@asynccontextmanager
async def quick(db_url: str, stubs: Stubs, clock: QuickClock, **values: Any) -> AsyncIterator[Rig]:
    """Yield a service on the stubs, whose waits are skipped."""
    values |= {"ollama_api_base": stubs.ollama.base_url, "gemini_api_base": stubs.gemini.base_url}
    settings = settings_for(db_url, **values)
    client = LiteLLMClient(settings=settings, limits=Limits.from_settings(settings))
    async with rig(db_url, client, clock=clock, **values) as rigged:
        await rigged.llm.warm_up()
        yield rigged


async def test_calls_beyond_the_rate_wait_their_turn_and_the_wait_is_on_their_rows(
    db_url: str, stubs: Stubs, outside: Outside
):
    clock = QuickClock()
    async with quick(db_url, stubs, clock, **ONE) as rigged:
        for n in range(3):
            assert (await rigged.llm.chat(request(f"question {n}"))).attempts[0].ordinal == 1
    assert stubs.ollama.sends == 3
    first, second, third = [row["queue_wait_ms"] / 1000 for row in await outside.runs()]
    assert first < 1 < second < third + 60
    assert second + third >= sum(clock.slept) > 60


async def test_a_call_that_cannot_wait_so_long_is_refused_unsent_with_the_time_to_come_back(
    db_url: str, stubs: Stubs, outside: Outside
):
    async with quick(db_url, stubs, QuickClock(), **ONE) as rigged:
        await rigged.llm.chat(request())
        with pytest.raises(LLMOverRate, match="nothing was sent") as caught:
            await rigged.llm.chat(request(timeout_s=HASTY_S))
        assert HASTY_S < (caught.value.retry_after_s or 0) <= 60
        assert (caught.value.attempts, caught.value.possibly_paid) == ((), False)
        with pytest.raises(LLMOverRate):
            async with rigged.llm.stream(request(timeout_s=HASTY_S)) as stream:
                await anext(aiter(stream))
    assert stubs.ollama.sends == 1
    _, *refused = await outside.runs()
    assert [(row["status"], row["error_code"]) for row in refused] == [("FAILED", "over_rate")] * 2


async def test_another_candidate_is_asked_instead_where_the_turn_is_too_far(db_url: str, stubs: Stubs):
    async with quick(db_url, stubs, QuickClock(), ollama_requests_per_minute=1) as rigged:
        providers = [(await rigged.llm.chat(request(timeout_s=HASTY_S))).provider for _ in range(3)]
    assert providers == [LLMProvider.OLLAMA, LLMProvider.GEMINI, LLMProvider.GEMINI]
    assert (stubs.ollama.sends, stubs.gemini.sends) == (1, 2)


async def test_tokens_count_by_estimate_until_the_answer_says_how_many_they_were(db_url: str, stubs: Stubs):
    stubs.ollama.always(Reply.text("yes", usage=(5, 5)))
    few = {"ollama_tokens_per_minute": 10_000, "profile_balanced": "ollama:first"}
    async with quick(db_url, stubs, QuickClock(), **few) as rigged:
        for _ in range(20):
            await rigged.llm.chat(request(max_output_tokens=900, timeout_s=1.5))
        stubs.ollama.always(Reply.text("yes", usage=(5, 7_000)))
        await rigged.llm.chat(request(timeout_s=1.5))
        with pytest.raises(LLMOverRate):
            await rigged.llm.chat(request(timeout_s=HASTY_S))
    assert stubs.ollama.sends == 21


@pytest.mark.parametrize("name", ["ollama:first", "gemini:second"])
async def test_a_429_with_a_time_holds_other_calls_back(db_url: str, stubs: Stubs, name: str, caplog: Any):
    caplog.set_level("INFO", logger="signalbox")
    stub, clock = stubs.of(name), QuickClock()
    stub.script(Reply.rate_limited(30))
    async with quick(db_url, stubs, clock, profile_balanced=name) as rigged:
        with pytest.raises(LLMRateLimited) as first:
            await rigged.llm.chat(request(timeout_s=HASTY_S))
        with pytest.raises(LLMOverRate) as second:
            await rigged.llm.chat(request(timeout_s=HASTY_S))
        assert (first.value.retry_after_s, first.value.code) == (30, "rate_limited")
        assert HASTY_S < (second.value.retry_after_s or 0) <= 30
        assert (stub.sends, clock.slept) == (1, [])
        await rigged.llm.chat(request())
    assert stub.sends == 2
    assert HASTY_S < sum(clock.slept) <= 30
    assert caplog.text.count('"event":"llm_told_to_wait"') == 1


async def test_a_call_in_the_queue_for_a_slot_does_not_run_into_the_wall_either(
    db_url: str, stubs: Stubs, outside: Outside
):
    stubs.ollama.script(Reply.rate_limited(30))
    slots = {"profile_balanced": "ollama:first", "ollama_concurrency_limit": 1}
    async with quick(db_url, stubs, QuickClock(), **slots) as rigged:
        with stubs.ollama.hold():
            sent = asyncio.create_task(rigged.llm.chat(request("first", timeout_s=HASTY_S)))
            await asyncio.to_thread(stubs.ollama.wait_for_sends, 1)
            queued = asyncio.create_task(rigged.llm.chat(request("second")))
            gates = rigged.client._limits._gates_of(asyncio.get_running_loop())
            while not gates.of[LLMProvider.OLLAMA].waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
        with pytest.raises(LLMRateLimited):
            await sent
        await queued
    assert stubs.ollama.sends == 2
    _, row = await outside.runs()
    assert row["queue_wait_ms"] > HASTY_S * 1000


async def test_a_provider_with_too_much_to_do_is_given_half_as_much_at_once(db_url: str, stubs: Stubs):
    stubs.ollama.script(Reply.rate_limited())
    slots = {"profile_balanced": "ollama:first", "ollama_concurrency_limit": 4}
    async with quick(db_url, stubs, QuickClock(), **slots) as rigged:
        await rigged.llm.chat(request("twice"))
        with stubs.ollama.hold():
            calls = [asyncio.create_task(rigged.llm.chat(request(f"question {n}"))) for n in range(6)]
            await asyncio.to_thread(stubs.ollama.wait_for_sends, 4)
            assert rigged.client._limits.in_flight() == 2
        await asyncio.gather(*calls)
    assert stubs.ollama.sends == 8


async def test_two_services_on_one_ledger_keep_one_rate_together(db_url: str, stubs: Stubs):
    shared = {
        "shared_rates": True,
        "ollama_requests_per_minute": 30,
        "profile_balanced": "ollama:first",
        "concurrency_limit": 8,
    }
    rate = Rate.per_minute(30)
    async with wired(db_url, stubs, **shared) as one, wired(db_url, stubs, **shared) as two:
        await one.warm_up()
        await two.warm_up()
        began_s = time.monotonic()
        outcomes = await asyncio.gather(
            *(llm.chat(request(f"{n}", timeout_s=2)) for n in range(8) for llm in (one, two)),
            return_exceptions=True,
        )
        took_s = time.monotonic() - began_s
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    assert {type(each) for each in refused} == {LLMOverRate}
    assert len(refused) + stubs.ollama.sends == 16
    assert rate.burst <= stubs.ollama.sends <= rate.burst + took_s / rate.each_s


async def test_a_429_to_one_process_holds_the_calls_of_another_back(db_url: str, stubs: Stubs):
    stubs.ollama.script(Reply.rate_limited(300))
    shared = {
        "shared_rates": True,
        "ollama_requests_per_minute": 6000,
        "profile_balanced": "ollama:first",
    }
    async with wired(db_url, stubs, **shared) as one, wired(db_url, stubs, **shared) as two:
        with pytest.raises(LLMRateLimited, match="too many calls"):
            await one.chat(request(timeout_s=HASTY_S))
        await one._story.rates._meter.close()  # type: ignore[attr-defined]  # what it writes is written
        with pytest.raises(LLMOverRate, match="asked to be left alone") as caught:
            await two.chat(request(timeout_s=HASTY_S))
    assert HASTY_S < (caught.value.retry_after_s or 0) <= 300
    assert stubs.ollama.sends == 1


async def test_nothing_is_sent_that_cannot_be_counted(db_url: str, stubs: Stubs, outside: Outside):
    async with quick(db_url, stubs, QuickClock(), **ONE) as rigged:
        quotas = quotas_of(rigged.llm._settings, known())
        meter = SharedMeter(rigged.ledger, quotas, telemetry=Telemetry())
        rigged.llm._story.rates = Rates(QuickClock(), quotas=quotas, meter=meter)
        rigged.ledger.away_for = {"_take"}
        with pytest.raises(LLMLedgerUnavailable):
            await rigged.llm.chat(request())
        rigged.ledger.away_for = set()
        await rigged.llm.chat(request())
    assert stubs.ollama.sends == 1
    failed, answered = await outside.runs()
    assert (failed["status"], failed["error_code"]) == ("FAILED", "ledger_unavailable")
    assert answered["status"] == "SUCCEEDED"


async def test_a_joined_view_counts_with_the_others_where_its_session_does_not_lock_them_out(
    db_url: str, stubs: Stubs, engine: AsyncEngine
):
    """On one SQLite file nobody else can write while the session does, the meter included."""
    shared = {"shared_rates": True, "ledger_timeout_s": 0.2, **ONE}
    async with wired(db_url, stubs, **shared) as llm, AsyncSession(engine) as session:
        await llm.warm_up()
        if db_url.startswith("sqlite"):
            with pytest.raises(LLMLedgerBusy):
                await llm.joined(session).chat(request())
        else:
            await llm.joined(session).chat(request())
            with pytest.raises(LLMOverRate):
                await llm.chat(request(timeout_s=HASTY_S))
        await session.commit()
    assert stubs.ollama.sends == (0 if db_url.startswith("sqlite") else 1)

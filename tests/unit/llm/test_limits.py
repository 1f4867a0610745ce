"""Slots: bounded per provider and in all, first come first served, never lost."""

import asyncio

import pytest

from app.llm.adapting import strain
from app.llm.errors import LLMBadRequest, LLMQueueFull, LLMRateLimited, LLMTimeout, LLMUnavailable
from app.llm.limits import Limits
from app.llm.settings import load_settings
from app.llm.types import LLMProvider

OLLAMA, GEMINI = LLMProvider.OLLAMA, LLMProvider.GEMINI


class Holder:
    """A task that holds a slot until it is told to let go."""

    def __init__(self, limits: Limits, provider: LLMProvider = OLLAMA, run_id: str = "run") -> None:
        self.waited_ms: float | None = None
        self._let_go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(limits, provider, run_id))

    async def _hold(self, limits: Limits, provider: LLMProvider, run_id: str) -> None:
        async with limits.slot(provider, run_id, "w1") as self.waited_ms:
            await self._let_go.wait()

    @property
    def has_slot(self) -> bool:
        return self.waited_ms is not None

    async def leave(self) -> None:
        self._let_go.set()
        await self.task


async def all_leave(*holders: Holder) -> None:
    await asyncio.gather(*(holder.leave() for holder in holders))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def slots(*, total: int = 10, ollama: int = 1, gemini: int = 10) -> Limits:
    return Limits(total=total, per_provider={OLLAMA: ollama, GEMINI: gemini})


async def test_a_second_call_waits_until_the_first_leaves():
    limits = slots(ollama=1)
    first, second = Holder(limits), Holder(limits)
    await settled()
    assert (first.has_slot, second.has_slot) == (True, False)
    await first.leave()
    await settled()
    assert second.has_slot
    await second.leave()


async def test_slots_are_given_in_the_order_of_asking():
    limits = slots(ollama=1)
    holders = [Holder(limits) for _ in range(4)]
    for place, holder in enumerate(holders):
        await settled()
        assert [each.has_slot for each in holders] == [other <= place for other in range(4)]
        await holder.leave()


async def test_who_waits_for_a_busy_provider_takes_no_slot_from_the_others():
    limits = slots(total=2, ollama=1)
    busy, waiting = Holder(limits), Holder(limits)
    await settled()
    other = Holder(limits, GEMINI)
    await settled()
    assert (waiting.has_slot, other.has_slot) == (False, True)
    await all_leave(busy, waiting, other)


async def test_the_total_bounds_all_providers_together():
    limits = slots(total=1)
    first, second = Holder(limits, OLLAMA), Holder(limits, GEMINI)
    await settled()
    assert (first.has_slot, second.has_slot) == (True, False)
    await all_leave(first, second)


@pytest.mark.parametrize("which", ["holding", "waiting for the provider", "waiting for the total"])
async def test_a_cancelled_call_loses_no_slot(which: str):
    limits = slots(total=1, ollama=2) if which == "waiting for the total" else slots(ollama=1)
    holding, waiting = Holder(limits), Holder(limits)
    await settled()
    victim, other = (holding, waiting) if which == "holding" else (waiting, holding)
    victim.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim.task
    await other.leave()
    after = Holder(limits)
    await settled()
    assert after.has_slot
    await after.leave()
    assert limits.in_flight() == 0


async def test_what_is_held_is_counted_and_what_waits_is_not():
    limits = slots(ollama=1)
    holders = [Holder(limits), Holder(limits), Holder(limits, GEMINI)]
    await settled()
    assert (limits.in_flight(OLLAMA), limits.in_flight(GEMINI), limits.in_flight()) == (1, 1, 2)
    await all_leave(*holders)
    assert limits.in_flight() == 0


async def test_an_error_inside_gives_the_slot_back():
    limits = slots(ollama=1)
    with pytest.raises(RuntimeError, match="the call failed"):
        async with limits.slot(OLLAMA, "run", "w1"):
            raise RuntimeError("the call failed")
    async with limits.slot(OLLAMA, "run", "w1") as waited_ms:
        assert waited_ms >= 0


def test_one_object_serves_event_loops_one_after_another():
    limits = slots(ollama=1)

    async def crowd() -> None:
        holders = [Holder(limits) for _ in range(3)]
        await all_leave(*holders)

    asyncio.run(crowd())
    asyncio.run(crowd())
    assert limits.in_flight() == 0


async def test_the_settings_bound_each_provider_and_all():
    limits = Limits.from_settings(
        load_settings(
            _env_file=None, concurrency_limit=2, ollama_concurrency_limit=1, gemini_concurrency_limit=9
        )
    )
    holders = [Holder(limits), Holder(limits), Holder(limits, GEMINI), Holder(limits, GEMINI)]
    await settled()
    assert [holder.has_slot for holder in holders] == [True, False, True, False]
    await all_leave(*holders)


async def test_a_full_queue_refuses_and_names_who_holds_the_slots():
    limits = Limits(total=10, per_provider={OLLAMA: 2, GEMINI: 1}, queue=1)
    held = [Holder(limits, run_id="run-1"), Holder(limits, run_id="run-2")]
    waiting = Holder(limits, run_id="run-3")
    await settled()
    with pytest.raises(LLMQueueFull, match="run-1, run-2; nothing was sent") as caught:
        async with limits.slot(OLLAMA, "run-4", "w1"):
            pass
    assert caught.value.facts["run_ids"] == ("run-1", "run-2")
    assert (caught.value.fallback, caught.value.retryable, caught.value.possibly_paid) == (True, False, False)
    async with limits.slot(GEMINI, "run-5", "w1"):
        assert limits.in_flight(GEMINI) == 1
    await all_leave(*held, waiting)
    async with limits.slot(OLLAMA, "run-6", "w1"):
        assert limits.in_flight() == 1
    assert limits.in_flight() == 0


async def test_a_full_queue_names_the_runs_of_the_own_workspace_only():
    limits = Limits(total=10, per_provider={OLLAMA: 2}, queue=0)
    held = [Holder(limits, run_id="run-1"), Holder(limits, run_id="run-2")]
    await settled()
    with pytest.raises(LLMQueueFull, match="held by 2 of other workspaces; nothing was sent") as caught:
        async with limits.slot(OLLAMA, "run-3", "w2"):
            pass
    assert (caught.value.facts["run_ids"], caught.value.facts["others"]) == ((), 2)
    await all_leave(*held)


async def test_a_free_slot_is_never_refused_by_an_empty_queue():
    limits = Limits(total=10, per_provider={OLLAMA: 1}, queue=0)
    async with limits.slot(OLLAMA, "run-1", "w1"):
        assert limits.in_flight() == 1


async def test_whoever_is_cancelled_in_the_queue_makes_room_in_it():
    limits = Limits(total=10, per_provider={OLLAMA: 1}, queue=1)
    first, gone = Holder(limits, run_id="run-1"), Holder(limits, run_id="run-2")
    await settled()
    gone.task.cancel()
    await settled()
    third = Holder(limits, run_id="run-3")
    await settled()
    assert not third.task.done()
    await all_leave(first, third)


# -- as much as a provider bears


async def used(limits: Limits, *, strained: bool | None) -> None:
    slot = limits.slot(OLLAMA, "run", "w1")
    async with slot:
        pass
    slot.report(strained)


async def test_a_provider_that_is_overloaded_is_given_half_as_much():
    limits = Limits(total=10, per_provider={OLLAMA: 4}, least=1)
    await used(limits, strained=True)
    holders = [Holder(limits) for _ in range(4)]
    await settled()
    assert limits.in_flight() == 2
    await all_leave(*holders)


async def test_answers_to_as_many_sends_as_there_may_be_raise_the_number_again():
    limits = Limits(total=10, per_provider={OLLAMA: 2}, least=1)
    await used(limits, strained=True)
    await used(limits, strained=False)
    holders = [Holder(limits) for _ in range(3)]
    await settled()
    assert limits.in_flight() == 2
    await all_leave(*holders)


async def test_an_answer_to_one_of_a_few_raises_nothing():
    limits = Limits(total=10, per_provider={OLLAMA: 8}, least=1)
    await used(limits, strained=True)
    await used(limits, strained=False)
    assert limits._gates_of(asyncio.get_running_loop()).of[OLLAMA].slots.size == 4


async def test_those_who_hold_slots_when_they_get_fewer_keep_them():
    limits = Limits(total=10, per_provider={OLLAMA: 4}, least=1)
    holders = [Holder(limits) for _ in range(6)]
    await settled()
    failed = limits.slot(OLLAMA, "run", "w1")
    failed._era = 0
    failed.report(strained=True)
    assert limits.in_flight() == 4
    for left in (3, 2, 2, 2):
        await holders.pop(0).leave()
        await settled()
        assert limits.in_flight() == left
    await all_leave(*holders)


async def test_nothing_adapts_where_the_least_is_the_most():
    limits = Limits(total=10, per_provider={OLLAMA: 4}, least=9)
    await used(limits, strained=True)
    holders = [Holder(limits) for _ in range(4)]
    await settled()
    assert limits.in_flight() == 4
    await all_leave(*holders)


@pytest.mark.parametrize("cancelled_when", ["waiting", "given"])
async def test_a_slot_that_was_given_to_somebody_who_left_is_given_to_the_next(cancelled_when: str):
    limits = slots(ollama=1)
    holder, leaver, last = Holder(limits), Holder(limits), Holder(limits)
    await settled()
    if cancelled_when == "waiting":
        leaver.task.cancel()
        await settled()
        await holder.leave()
    else:
        holder._let_go.set()
        while limits.in_flight():  # noqa: ASYNC110
            await asyncio.sleep(0)
        leaver.task.cancel()
    await settled()
    assert last.has_slot
    await all_leave(last)
    assert limits.in_flight() == 0


@pytest.mark.parametrize(
    ("outcome", "had_s", "says"),
    [
        ("an answer", 0.1, False),
        (LLMRateLimited("429", http_status=429), 0.1, True),
        (LLMUnavailable("503", http_status=503), 0.1, True),
        (LLMTimeout("408", http_status=408), 0.1, True),
        (LLMTimeout("slow"), 30, True),
        (LLMTimeout("haste"), 29, None),
        (LLMUnavailable("refused"), 60, None),
        (LLMBadRequest("no", http_status=400), 60, None),
    ],
)
def test_what_an_outcome_says_of_the_load(outcome: object, had_s: float, says: bool | None):  # noqa: FBT001
    assert strain(outcome, had_s=had_s, patience_s=30) is says

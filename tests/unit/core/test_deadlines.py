"""Time limits with one timer for all: they end what takes too long, and nothing else."""

import asyncio
from typing import Any

import pytest

from app.core.deadlines import Deadlines

LONG_S, SHORT_S = 30.0, 0.01


async def _for_ever() -> None:
    await asyncio.Event().wait()


def _timers(loop: Any) -> int:
    return sum(not handle.cancelled() for handle in loop._scheduled)


async def test_a_block_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError), Deadlines().within(SHORT_S) as limit:
        await _for_ever()
    assert limit.expired


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_no_time_at_all_ends_it_at_its_first_wait(seconds: float):
    with pytest.raises(TimeoutError), Deadlines().within(seconds):
        await _for_ever()


async def test_a_block_that_is_quick_ends_as_it_ends():
    deadlines = Deadlines()
    with deadlines.within(LONG_S) as limit:
        await asyncio.sleep(0)
    with pytest.raises(KeyError), deadlines.within(LONG_S):
        raise KeyError
    assert not limit.expired


async def test_a_limit_that_comes_later_may_be_reached_first_and_the_others_go_on():
    deadlines, reached = Deadlines(), []

    async def wait(name: str, seconds: float) -> None:
        try:
            with deadlines.within(seconds):
                await _for_ever()
        except TimeoutError:
            reached.append(name)

    long = asyncio.create_task(wait("long", LONG_S))
    await asyncio.sleep(0)
    await asyncio.gather(wait("second", 2 * SHORT_S), wait("first", SHORT_S))
    assert reached == ["first", "second"]
    assert not long.done()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long


async def test_a_block_whose_limit_was_first_leaves_the_limits_of_others_in_force():
    deadlines = Deadlines()
    with deadlines.within(SHORT_S):
        pass
    with pytest.raises(TimeoutError), deadlines.within(2 * SHORT_S):
        await _for_ever()


async def test_a_cancellation_from_outside_stays_one():
    async def wait() -> None:
        with Deadlines().within(LONG_S):
            await _for_ever()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_and_out_of_time_at_once_is_cancelled():
    limits = []

    async def wait() -> None:
        with Deadlines().within(LONG_S) as limit:
            limits.append(limit)
            await _for_ever()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    limits[0].expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_two_blocks_the_one_that_is_out_of_time_is_ended():
    deadlines = Deadlines()
    with deadlines.within(LONG_S) as outer:
        with pytest.raises(TimeoutError), deadlines.within(SHORT_S):
            await _for_ever()
        await asyncio.sleep(0)
    assert not outer.expired


async def test_a_thousand_limits_have_one_timer():
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    before = _timers(loop)

    async def wait(number: int) -> None:
        with deadlines.within(LONG_S + number):
            await asyncio.sleep(0)

    await asyncio.gather(*(wait(number) for number in range(1000)))
    assert _timers(loop) == before + 1


def test_each_loop_has_limits_of_its_own():
    deadlines = Deadlines()

    async def wait() -> str:
        try:
            with deadlines.within(SHORT_S):
                await _for_ever()
        except TimeoutError:
            return "ended"
        return "never"

    assert [asyncio.run(wait()) for _ in range(2)] == ["ended", "ended"]
    assert len(deadlines._watches) == 1  # that of a closed loop is gone


async def test_the_loop_of_another_thread_may_come_at_the_same_time():
    deadlines = Deadlines()
    watches: dict[Any, Any] = deadlines._watches

    class Known:
        """A loop that is looked at when another one comes; just then a thread notes a third one."""

        def is_closed(self) -> bool:
            watches["third"] = None
            return False

    watches[Known()] = None
    with deadlines.within(LONG_S) as limit:
        await asyncio.sleep(0)
    assert not limit.expired


def test_outside_a_task_there_is_nothing_to_end():
    async def used() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def enter() -> None:
            try:
                Deadlines().within(LONG_S).__enter__()
            except RuntimeError as error:
                done.set_result(error)

        loop.call_soon(enter)
        return await done

    assert "needs a task" in str(asyncio.run(used()))


@pytest.mark.parametrize(("first_s", "then_s"), [(LONG_S, SHORT_S), (SHORT_S, 5 * SHORT_S)])
async def test_a_limit_that_is_moved_ends_the_block_at_its_new_time(first_s: float, then_s: float):
    clock = asyncio.get_running_loop().time
    ends_at_s = clock() + then_s

    async def moved() -> None:
        with Deadlines().within(first_s) as limit:
            limit.move(ends_at_s)
            await _for_ever()

    with pytest.raises(TimeoutError):
        await moved()
    assert clock() >= ends_at_s - SHORT_S / 10


async def test_a_block_whose_time_is_over_gets_no_more():
    deadlines, loop = Deadlines(), asyncio.get_running_loop()

    async def late() -> None:
        with deadlines.within(0) as limit:
            try:
                await _for_ever()
            finally:
                limit.move(loop.time() + LONG_S)

    with pytest.raises(TimeoutError):
        await late()
    assert not deadlines._watches[loop].open

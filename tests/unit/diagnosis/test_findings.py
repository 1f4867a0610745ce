import asyncio
import threading

import pytest

from app.diagnosis.findings import Finding, Probe, State, Tell, aside, found
from app.llm.errors import LLMUnavailable


def probe(*subjects: str, ask: object, limit_s: float = 20.0) -> Probe:
    return Probe(subjects=subjects, ask=ask, limit_s=limit_s, remedy="mend it")  # type: ignore[arg-type]


async def fine(tell: Tell) -> None:
    tell(Finding.ok("fine", "it is"))


async def test_a_look_that_raises_is_a_fault_and_hides_nothing():
    async def raises(tell: Tell) -> None:
        tell(Finding.ok("first", "it is"))
        raise ZeroDivisionError("by nothing")

    first, second, third, other = await found(
        [probe("first", "second", "third", ask=raises), probe("fine", ask=fine)]
    )
    assert (first.state, other.state) == (State.OK, State.OK)
    assert (second.subject, second.state, second.remedy) == ("second", State.FAULT, "mend it")
    assert "ZeroDivisionError: by nothing" in second.said
    assert (third.subject, third.state) == ("third", State.SKIPPED)


async def test_an_error_of_ours_is_told_in_its_own_words():
    async def raises(tell: Tell) -> None:
        raise LLMUnavailable("it is away")

    [only] = await found([probe("it", ask=raises)])
    assert (only.state, only.said) == (State.FAULT, "it is away")


async def test_a_look_that_fails_after_all_was_told_is_told_too():
    async def raises(tell: Tell) -> None:
        tell(Finding.ok("it", "it is"))
        raise OSError("at the end")

    states = [each.state for each in await found([probe("it", ask=raises)])]
    assert states == [State.OK, State.FAULT]


async def test_a_look_that_hangs_ends_with_its_time_and_the_others_do_not_wait_for_it():
    others_done = asyncio.Event()
    order: list[str] = []

    async def hangs(tell: Tell) -> None:
        await others_done.wait()  # which never comes if they are looked at in turn
        order.append("the others are done")
        await asyncio.Event().wait()

    async def other(tell: Tell) -> None:
        await fine(tell)
        others_done.set()

    hung, done = await found([probe("hung", ask=hangs, limit_s=0.5), probe("fine", ask=other)])
    assert (hung.state, hung.said) == (State.FAULT, "no answer within 0.5 s")
    assert (done.state, order) == (State.OK, ["the others are done"])


async def test_a_thread_that_hangs_is_left_behind():
    forever = threading.Event()

    async def hangs(tell: Tell) -> None:
        await aside(forever.wait)

    [hung] = await found([probe("disk", ask=hangs, limit_s=0.2)])
    assert hung.said == "no answer within 0.2 s"
    left = [thread for thread in threading.enumerate() if thread.name == "signalbox-look"]
    assert all(thread.daemon for thread in left)
    assert left
    forever.set()


async def test_what_is_done_aside_returns_and_raises():
    assert await aside(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)

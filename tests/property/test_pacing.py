"""Rates beside a bucket that is counted piece by piece, and what they promise of any minute."""

from collections.abc import Coroutine
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import SystemClock
from app.llm.pacing import UNBOUND, LocalMeter, Quota, Rate, Told
from app.llm.types import LLMProvider
from tests.support.ledger import request, route_of
from tests.support.rounds import times

OLLAMA = LLMProvider.OLLAMA
CANDIDATE = route_of(request()).kept[0]
EACH_S = 0.25
"""With bursts of whole numbers and steps of an eighth of a second everything is exact."""
ROUNDING_S = 1e-6


class Clock(SystemClock):
    __slots__ = ("at_s",)

    def __init__(self) -> None:
        self.at_s = 0.0

    def monotonic_s(self) -> float:
        return self.at_s


@dataclass
class Bucket:
    """Holds a burst at most, and fills by one in `EACH_S`."""

    burst: int
    held: float
    since_s: float = 0.0

    def at(self, now_s: float) -> float:
        """Fill it up to now; return what is in it."""
        self.held = min(self.burst, self.held + (now_s - self.since_s) / EACH_S)
        self.since_s = now_s
        return self.held

    def missing_s(self, count: int, now_s: float) -> float:
        return max(0.0, (min(count, self.burst) - self.at(now_s)) * EACH_S)


def _now(asking: Coroutine[None, None, Told]) -> Told:
    """Run a coroutine that waits for nothing."""
    try:
        asking.send(None)
    except StopIteration as end:
        told: Told = end.value
        return told
    raise AssertionError("it waited")


@settings(max_examples=times(5_000, in_short=500), deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 60)), max_size=60),
)
def test_a_place_is_there_when_both_buckets_hold_it(requests: int, tokens: int, steps: list[tuple[int, int]]):
    clock = Clock()
    quota = Quota(requests=Rate(burst=requests, each_s=EACH_S), tokens=Rate(burst=tokens, each_s=EACH_S))
    meter = LocalMeter({OLLAMA: quota}, clock)
    buckets = Bucket(requests, requests), Bucket(tokens, tokens)
    for eighths, count in steps:
        clock.at_s += eighths / 8
        costs = 1, count
        missing_s = max(
            bucket.missing_s(cost, clock.at_s) for bucket, cost in zip(buckets, costs, strict=True)
        )
        told = _now(meter.ask(CANDIDATE, count))
        assert told.wait_s == missing_s
        if not told.wait_s:
            for bucket, cost in zip(buckets, costs, strict=True):
                bucket.held -= cost


@settings(max_examples=times(2_000, in_short=200), deadline=None)
@given(st.integers(1, 300), st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=200))
def test_no_minute_has_more_requests_than_the_rate_says(per_minute: int, pauses: list[float]):
    """Everybody asks again as soon as it makes sense, and some time later."""
    clock, sent = Clock(), list[float]()
    meter = LocalMeter({OLLAMA: Quota(requests=Rate.per_minute(per_minute))}, clock)
    for pause in pauses:
        told = _now(meter.ask(CANDIDATE, 1))
        if told.wait_s:
            clock.at_s += told.wait_s
            told = _now(meter.ask(CANDIDATE, 1))
            assert not told.wait_s, "what it was told was long enough"
        sent.append(clock.at_s)
        clock.at_s += pause if pause > 20 else 0.0
    for first in sent:
        assert sum(first <= each < first + 60 - ROUNDING_S for each in sent) <= per_minute


@settings(max_examples=times(2_000, in_short=200), deadline=None)
@given(
    st.integers(1, 30),
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 30), st.sampled_from(["used", "back", "fewer", "more"])),
        max_size=60,
    ),
)
def test_what_is_taken_less_what_is_given_back_keeps_the_rate(burst: int, steps: list[tuple[int, int, str]]):
    clock, counted = Clock(), list[tuple[float, float]]()
    meter = LocalMeter({OLLAMA: Quota(requests=UNBOUND, tokens=Rate(burst=burst, each_s=EACH_S))}, clock)
    for eighths, asked, then in steps:
        count = min(asked, burst)
        told = _now(meter.ask(CANDIDATE, count))
        clock.at_s += eighths / 8
        if told.wait_s:
            continue
        counted.append((told.at_s, count))
        if then == "back":
            meter.give_back(OLLAMA, count, told)
            counted.append((clock.at_s, -max(0.0, count - (clock.at_s - told.at_s) / EACH_S)))
        elif then in {"fewer", "more"}:
            moved = -(count // 2) if then == "fewer" else count
            meter.correct(OLLAMA, moved)
            if moved < 0:  # more than was asked for is made up for later, and bound by nothing
                counted.append((clock.at_s, moved))
    for nth, (begin_s, _) in enumerate(counted):
        taken = 0.0
        for at_s, count in counted[nth:]:
            taken += count
            assert taken <= burst + (at_s - begin_s) / EACH_S + ROUNDING_S


@settings(max_examples=times(2_000, in_short=200), deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_a_place_that_is_given_back_at_once_was_never_taken(burst: int, counts: list[int]):
    clock = Clock()
    rate = Rate(burst=burst, each_s=EACH_S)
    meter = LocalMeter({OLLAMA: Quota(requests=rate, tokens=rate)}, clock)
    for count in counts:
        before_s = max(0.0, *meter.ahead(OLLAMA))
        told = _now(meter.ask(CANDIDATE, count))
        if not told.wait_s:
            meter.give_back(OLLAMA, count, told)
            assert max(0.0, *meter.ahead(OLLAMA)) == before_s
        clock.at_s += EACH_S

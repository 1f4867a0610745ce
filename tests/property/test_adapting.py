"""Random walks of a width: it stays between its bounds, halves once for what began together, and comes back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.llm.adapting import Width
from tests.support.rounds import times

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=200)


@settings(max_examples=times(5_000, in_short=500), deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), STEPS)
def test_a_width_stays_between_its_bounds(least: int, most: int, steps: list[tuple[bool, int]]):
    width = Width(least, most)
    for overloaded, eras_ago in steps:
        before, era = width.now, width.era
        if overloaded:
            width.overloaded(era - eras_ago)
        else:
            width.answered()
        assert min(least, most) <= width.now <= most
        if not overloaded:
            assert before <= width.now <= before + 1
        elif eras_ago:
            assert (width.now, width.era) == (before, era), "what began before the last halving says nothing"
        else:
            assert width.now >= before // 2
            assert width.era == era + 1


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_width_that_was_halved_to_the_end_comes_back_with_the_answers(least: int, most: int):
    width = Width(least, most)
    for _ in range(10):
        width.overloaded(width.era)
    assert width.now == min(least, most)
    rounds = 0
    while width.now < most:
        for _ in range(width.now):
            width.answered()
        rounds += 1
        assert rounds <= 2 * most, "by about one for each round of answers"

"""How large the writes of a prune are."""

import pytest

from app.llm.persistence.retention import LONGEST_WRITE_S, SMALLEST_BATCH, _next_batch


@pytest.mark.parametrize(
    ("batch", "took_s", "following"),
    [
        (500, 2 * LONGEST_WRITE_S, 250),
        (500, 100 * LONGEST_WRITE_S, SMALLEST_BATCH),
        (100, 0.4 * LONGEST_WRITE_S, 200),
        (400, 0.0, 500),
        (300, 0.8 * LONGEST_WRITE_S, 300),
    ],
)
def test_a_write_that_took_long_makes_the_next_one_smaller(batch: int, took_s: float, following: int):
    assert _next_batch(batch, 500, took_s) == following


def test_no_write_is_larger_than_it_may_be():
    assert {_next_batch(2, 2, took_s) for took_s in (0.0, 1.0)} == {2}

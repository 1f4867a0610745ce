"""Histograms of latencies: what is read from them, how far it is off, and how they are added."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.persistence.usage import (
    BOUNDS_MS,
    LATENCY_ERROR,
    Measures,
    bucket_of,
    read_latencies,
    written_latencies,
)

LATENCIES = st.lists(st.floats(1.0, 3_000_000.0), min_size=1, max_size=60)


@given(LATENCIES, st.sampled_from((0.01, 0.5, 0.95, 1.0)))
def test_a_percentile_is_off_by_the_documented_error_at_most(latencies_ms: list[float], share: float):
    measures = Measures(latencies=Counter(map(bucket_of, latencies_ms)))
    exact = sorted(latencies_ms)[math.ceil(share * len(latencies_ms)) - 1]
    told = measures.percentile_ms(share)
    assert told is not None
    assert abs(told - exact) <= exact * (LATENCY_ERROR + 1e-9)


@given(LATENCIES, LATENCIES)
def test_texts_that_are_joined_are_the_text_of_the_sum(one: list[float], other: list[float]):
    first, second = Counter(map(bucket_of, one)), Counter(map(bucket_of, other))
    joined = f"{written_latencies(first)} {written_latencies(second)}"
    assert read_latencies(joined) == first + second


@pytest.mark.parametrize(("latency_ms", "bucket"), [(0.0, 0), (0.99, 0), (1.0, 1), (1e12, len(BOUNDS_MS))])
def test_what_is_beyond_the_bounds_is_counted_at_the_end(latency_ms: float, bucket: int):
    assert bucket_of(latency_ms) == bucket
    assert Measures(latencies=Counter({bucket: 1})).percentile_ms(0.5) in (
        BOUNDS_MS[0],
        BOUNDS_MS[-1],
        2**0.0625,
    )


def test_without_latencies_there_is_no_percentile():
    assert Measures().percentile_ms(0.5) is None

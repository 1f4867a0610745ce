"""The first difference of two JSON values."""

import pytest
from pydantic import JsonValue

from app.llm.divergence import first_difference


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, None),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
        (1, 1.0, None),
        (1, True, "$"),
        ({"a": [1, {"b": 0}]}, {"a": [1, {"b": 1}]}, "$.a[1].b"),
        ({"a": 1}, {}, "$.a"),
        ({}, {"a": None}, "$.a"),
        ([1], [1, 2], "$[1]"),
        ([1, 2], [1], "$[1]"),
        ({"a": []}, {"a": {}}, "$.a"),
        ({"not a name": 1}, {"not a name": 2}, '$["not a name"]'),
        ({"z": 1, "a": 1}, {"z": 2, "a": 2}, "$.z"),
    ],
)
def test_the_first_difference_is_told_by_its_path(one: JsonValue, other: JsonValue, path: str | None) -> None:
    assert first_difference(one, other) == path

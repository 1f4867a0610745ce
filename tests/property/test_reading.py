"""Whatever a model writes: valid JSON is never changed, and nothing else than a JSON value comes out."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.llm.structured.reading import NotJson, read_json
from tests.support.rounds import ROUNDS, times

EXAMPLES = times(300, in_short=100)
OFTEN = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=ROUNDS == 1)
TEXT = st.text(max_size=12) | st.text("a\"\\/'`{}[],:#\n\t ", max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
HOLDERS = st.dictionaries(TEXT, VALUES, max_size=4) | st.lists(VALUES, max_size=4)
SOUP = st.text("{}[],:\"'\\ntruefalsenull0159.-eE+ \n/*#`ab“”", max_size=60)


def _read(text: str) -> tuple[bool, Any]:
    try:
        return True, read_json(text)
    except NotJson:
        return False, None


@pytest.mark.tried(EXAMPLES)
@OFTEN
@given(value=VALUES, indent=st.sampled_from((None, 0, 2)), ascii_only=st.booleans())
def test_valid_json_is_never_changed(value: Any, indent: int | None, *, ascii_only: bool):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert json.dumps(read_json(text)) == json.dumps(value)


@pytest.mark.tried(EXAMPLES)
@OFTEN
@given(text=SOUP | st.text(max_size=60))
def test_nothing_else_than_a_json_value_comes_out(text: str):
    good, value = _read(text)
    if good:
        assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.tried(EXAMPLES)
@OFTEN
@given(value=HOLDERS, data=st.data())
def test_a_broken_notation_gives_the_value_or_nothing(value: Any, data: st.DataObject):
    """A trailing comma, Python's own notation, a comment: what is read is what was meant."""
    text = json.dumps(value, ensure_ascii=False)
    broken = data.draw(
        st.sampled_from(
            (text[:-1] + "," + text[-1] if value else text, repr(value), text[:-1] + "/* so */" + text[-1])
        )
    )
    good, found = _read(broken)
    assert not good or json.dumps(found) == json.dumps(value)


@pytest.mark.tried(EXAMPLES)
@OFTEN
@given(value=HOLDERS, data=st.data())
def test_a_value_that_is_cut_off_is_never_completed(value: Any, data: st.DataObject):
    text = json.dumps(value)
    cut = data.draw(st.integers(1, len(text) - 1))
    good, _ = _read(text[:cut])
    assert not good

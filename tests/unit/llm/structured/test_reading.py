"""What is read from an answer that is not plain JSON: the value that it says, or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.llm.structured.faithful import is_reading_of
from app.llm.structured.reading import MAX_REPAIRED_CHARS, NotJson, read_json

CORPUS = json.loads((Path(__file__).parent / "broken_answers.json").read_text())


def test_the_corpus_is_large_enough_to_mean_something():
    assert len(CORPUS) >= 40
    assert sum("refused" in case for case in CORPUS) >= 20
    assert len({case["name"] for case in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("case", CORPUS, ids=[case["name"] for case in CORPUS])
def test_a_broken_answer_gives_the_value_that_it_says_or_none(case: dict[str, Any]):
    if case.get("refused"):
        with pytest.raises(NotJson):
            read_json(case["text"])
        return
    found = read_json(case["text"])
    assert found == case["value"]
    assert json.dumps(found) == json.dumps(case["value"])  # True is not 1, 1.0 is not 1


def test_valid_json_is_read_as_it_stands_whatever_a_repair_would_make_of_it():
    text = '{"a": "// no comment", "b": "```", "c": "{", "a2": "it\'s \\"so\\"", "n": 1, "n": 2}'
    assert read_json(text) == json.loads(text)


def test_a_text_that_is_too_long_is_not_repaired():
    long = json.dumps({"note": "x" * MAX_REPAIRED_CHARS})
    assert read_json(long)["note"] == "x" * MAX_REPAIRED_CHARS
    with pytest.raises(NotJson, match="too long"):
        read_json(long[:-1] + ",}")


def test_what_the_library_invents_or_drops_is_no_reading():
    text = '{"a": "x", "b": 1}'
    assert is_reading_of({"a": "x", "b": 1}, text)
    for other in (
        {"a": "x"},
        {"a": "x", "b": 1, "c": ""},
        {"a": "x", "b": "1"},
        {"a": "x", "b": 1.5},
        {"a": "x", "b": [1]},
        {"b": 1, "a": "x"},
        {"a": "x ", "b": 1},
        {"a": "", "b": 1},
    ):
        assert not is_reading_of(other, text), other

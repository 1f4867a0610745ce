"""How texts are kept: smaller where that is possible, readable for ever, and never as a bomb."""

import pytest
import zstandard
from pydantic import JsonValue

from app.llm.persistence import codec
from app.llm.persistence.codec import PLAIN, RAW, ZSTD, Unreadable, to_json

WHERE = {"workspace_id": "w1", "address": "a"}
LONG = b'{"v":1,"text":"' + b"the signal box " * 50 + b'"}'


@pytest.mark.parametrize(
    "text", [b"", b"x" * 127, bytes(range(256))], ids=["empty", "short", "without pattern"]
)
def test_what_would_not_get_smaller_is_kept_as_it_is(text: bytes):
    assert PLAIN.encode(text, **WHERE) == (RAW, text)
    assert PLAIN.decode(RAW, text, **WHERE) == text


def test_a_long_text_is_kept_compressed_under_the_address_of_its_bytes():
    number, data = PLAIN.encode(LONG, **WHERE)
    assert number == ZSTD
    assert len(data) < len(LONG) / 4
    assert PLAIN.decode(number, data, **WHERE) == LONG
    assert PLAIN.address(LONG, workspace_id="w1") != PLAIN.address(data, workspace_id="w1")


def test_a_text_that_is_larger_than_a_frame_may_be_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec, "LARGEST_FRAME", len(LONG) - 1)
    assert PLAIN.encode(LONG, **WHERE) == (RAW, LONG)


def test_a_frame_that_says_it_holds_too_much_is_not_opened(monkeypatch: pytest.MonkeyPatch):
    bomb = zstandard.ZstdCompressor().compress(bytes(10**6))
    monkeypatch.setattr(codec, "LARGEST_FRAME", 10**6 - 1)
    with pytest.raises(Unreadable, match="no compressed text of ours"):
        PLAIN.decode(ZSTD, bomb, **WHERE)


def test_a_frame_that_does_not_say_what_it_holds_is_not_opened():
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(LONG)
    with pytest.raises(Unreadable):
        PLAIN.decode(ZSTD, unsized, **WHERE)


@pytest.mark.parametrize("damage", [b"", b"no frame", PLAIN.encode(LONG, **WHERE)[1][:-9]])
def test_a_damaged_frame_is_told_as_unreadable(damage: bytes):
    with pytest.raises(Unreadable) as caught:
        PLAIN.decode(ZSTD, damage, **WHERE)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": "b"},
        {"a": [1, None, True, {"b": 0.5}]},
        {"n": 2**70, "f": 1e300},
        {"text": "\u00fc\ud800\x7f"},
    ],
    ids=["empty", "text", "nested", "large numbers", "no ASCII"],
)
def test_an_object_is_written_as_any_json_and_read_back(value: dict[str, JsonValue]):
    text = codec.object_json(value)
    assert text == to_json(value)
    assert codec._loaded(text) == value
    assert codec._loaded(text.encode()) == value

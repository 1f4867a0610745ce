"""Ids: version 7, sorted by time."""

import time
import uuid

import pytest

from app.core.ids import new_id


def test_an_id_is_a_uuid_of_version_7_in_its_usual_spelling():
    for text in (new_id() for _ in range(200)):
        made = uuid.UUID(text)
        assert (made.version, made.variant) == (7, uuid.RFC_4122)
        assert text == str(made)


def test_ids_are_distinct():
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_ids_of_different_milliseconds_sort_by_time(monkeypatch: pytest.MonkeyPatch):
    made = []
    for unix_ms in (0, 1, 255, 1_700_000_000_000, 2**47):
        monkeypatch.setattr(time, "time_ns", lambda ms=unix_ms: ms * 1_000_000)
        made.append(new_id())
    assert made == sorted(made)
    assert uuid.UUID(made[3]).int >> 80 == 1_700_000_000_000

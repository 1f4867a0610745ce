"""How large the writes of a prune are."""

from collections.abc import Iterator

import pytest

from app.llm.persistence import retention
from app.llm.persistence.retention import LONGEST_WRITE_S, _while_short

PIECES = [("a", "b"), ("b", "c"), ("c", "d")]


@pytest.mark.parametrize(("took_s", "taken"), [(0.0, 3), (0.6 * LONGEST_WRITE_S, 2), (9.0, 1)])
def test_a_write_takes_no_further_piece_once_it_has_taken_long(
    monkeypatch: pytest.MonkeyPatch, took_s: float, taken: int
):
    now_s = 0.0
    monkeypatch.setattr(retention, "monotonic", lambda: now_s)

    def written() -> Iterator[tuple[str, str]]:
        nonlocal now_s
        for piece in _while_short(PIECES):
            yield piece
            now_s += took_s

    assert [*written()] == PIECES[:taken]

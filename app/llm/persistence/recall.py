"""Answers that this process looked up a moment ago, so that repeating a call in a burst costs no look-up.

Whoever is served from here is told what a look-up said at most `FRESH_S` seconds earlier, that is, what a caller would
be told whose own look-up was that much quicker than the rest of its call. So the promises hold as they do for such a
caller: keys are taken by claims alone, and those always ask the database; an answer that is finished never changes;
workspace and request are part of what is compared; an expiry is kept to the second, whoever looks. What another
process does to a key that has its answer (force, prune, expiry by hand) is seen after `FRESH_S` at the latest; what
this process does is seen at once, because it forgets. STARTED is never kept, and neither is "nothing found".
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.llm.ports import StoredAnswer

FRESH_S = 1.0
"""Seconds that a look-up counts; the next caller after that asks the database again."""

Place = tuple[str, ...]


def of_key(workspace_id: str, key: str) -> Place:
    """Return where the answer of an idempotency key is kept."""
    return ("key", workspace_id, key)


def of_prompt(workspace_id: str, prompt_sha256: str, candidate_sha256: str) -> Place:
    """Return where a candidate's answer to a prompt is kept."""
    return ("prompt", workspace_id, prompt_sha256, candidate_sha256)


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: StoredAnswer
    until_s: float


class Recall:
    """The answers, least recently used first, together no larger than `max_bytes`; 0 keeps nothing."""

    def __init__(self, max_bytes: int, *, now_s: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._now_s = now_s
        self._kept: OrderedDict[Place, _Kept] = OrderedDict()
        self._bytes = 0
        self.forgotten = 0
        """Times that something was to be forgotten; a look-up that began before the last one is not kept."""

    def get(self, place: Place) -> StoredAnswer | None:
        """Return an answer that may still be served."""
        kept = self._kept.get(place)
        if kept is None:
            return None
        if self._now_s() >= kept.until_s:
            self._drop(place)
            return None
        self._kept.move_to_end(place)
        return kept.answer

    def keep(self, place: Place, answer: StoredAnswer, *, since: int) -> None:
        """Keep what a look-up found that began when `forgotten` was `since`."""
        if answer.response is None or answer.size_bytes > self._max_bytes or since != self.forgotten:
            return
        left_s = FRESH_S if answer.left_s is None else min(FRESH_S, answer.left_s)
        self._drop(place)
        self._kept[place] = _Kept(answer, self._now_s() + left_s)
        self._bytes += answer.size_bytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def forget(self, place: Place) -> None:
        """Drop what this process knows to be otherwise from now on."""
        self.forgotten += 1
        self._drop(place)

    def _drop(self, place: Place) -> None:
        kept = self._kept.pop(place, None)
        if kept is not None:
            self._bytes -= kept.answer.size_bytes

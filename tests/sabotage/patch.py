"""One break as data: the text that goes, the text that comes, and the tests that must fail because of it."""

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Break:
    """A small change of one file that breaks one promise."""

    name: str
    promise: str
    """An invariant of the ledger (`I1` to `I20`), or the rule's family."""
    file: str
    old: str
    """Occurs exactly once in `file`. White space, and a comma before a closing bracket, do not count."""
    new: str
    tests: tuple[str, ...]
    """Node ids; one of them must fail. Without parameters where that is not much slower."""
    hangs_s: float | None = None
    """Seconds after which a test that hangs counts as failed; None: a hang is a fault of the harness."""

    def occurrences(self, text: str) -> int:
        """Return how often `old` occurs in `text`."""
        return sum(1 for _ in _pattern(self.old).finditer(text))

    def applied(self, text: str) -> str:
        """Return `text` with the break in it.

        Raises:
            LookupError: `old` does not occur exactly once.
        """
        found = list(_pattern(self.old).finditer(text))
        if len(found) != 1:
            raise LookupError(f"{self.name}: its text occurs {len(found)} times in {self.file}")
        return text[: found[0].start()] + self.new + text[found[0].end() :]


def _pattern(old: str) -> re.Pattern[str]:
    """Return what finds `old` however a formatter has broken its lines."""
    between, pieces, before = "", [], ""
    for word in _TOKEN.findall(old):
        if before:
            words = before[-1].isalnum() or before[-1] == "_", word[0].isalnum() or word[0] == "_"
            between = r"\s+" if all(words) else r"\s*,?\s*" if word in ")]}" and before != "," else r"\s*"
        pieces += [between, re.escape(word)]
        before = word
    edge = r"(?<!\w)" if old[:1].isalnum() else ""
    return re.compile(edge + "".join(pieces) + (r"(?!\w)" if before[-1:].isalnum() else ""))

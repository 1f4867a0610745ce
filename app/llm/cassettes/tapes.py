"""A cassette as a file: it is read once and played in order, or written anew as calls happen."""

import json
import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path

from pydantic import JsonValue

from app.llm.cassettes.lines import Asked, Interaction, NoLine, head, read_head, read_line
from app.llm.divergence import first_difference
from app.llm.errors import LLMCassetteMiss, LLMSettingsError

SHOWN_BEFORE, SHOWN_CHARS = 40, 120
"""Characters of a request that an error shows around the place where it differs."""
AGAIN = "record it again with LLM_MODE=record (pytest: --signalbox-mode=record)"


class Playing:
    """Gives the n-th answer to the n-th equal request, each once.

    An equal request more than were recorded is a miss, as in VCR and its kin: a loop that asks once too often shows.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; one that is not there has no answers.

        Raises:
            LLMSettingsError: It cannot be read, or a line of it is no recorded call.
        """
        self.path = path
        without_key, self._all = _whole(path) if path.exists() else (frozenset(), {})
        self.without_key = without_key - {
            each.asked.candidate.partition(":")[0] for each in self._all.values()
        }
        """Providers that had no key when this was recorded, so that nobody asked them."""
        self._left: dict[str, deque[Interaction]] = defaultdict(deque)
        for each in self._all.values():
            self._left[each.asked.fingerprint].append(each)
        self._played: dict[str, int] = defaultdict(int)

    def next(self, asked: Asked) -> Interaction:
        """Return what came back when this was asked, and turn to the next one.

        Raises:
            LLMCassetteMiss: Nothing is recorded, or nothing is left.
        """
        wanted = asked.fingerprint
        left = self._left.get(wanted)
        if not left:
            raise self._miss(asked, played=self._played[wanted])
        self._played[wanted] += 1
        return left.popleft()

    def _miss(self, asked: Asked, *, played: int) -> LLMCassetteMiss:
        facts = {"cassette": str(self.path), "candidate": asked.candidate}
        if played:
            return LLMCassetteMiss(
                f"{self.path} has {played} answers to this request to {asked.candidate}, and it is asked for another: {AGAIN}",
                **facts,
            )
        if not self._all:
            why = "holds no call" if self.path.exists() else "is not there"
            return LLMCassetteMiss(f"{self.path} {why}, and nobody else may be asked: {AGAIN}", **facts)
        wanted = _text(asked)
        line = max(self._all, key=lambda each: (_alike(_text(self._all[each].asked), wanted), -each))
        nearest = self._all[line].asked
        path = first_difference(_ordered(nearest), _ordered(asked))
        return LLMCassetteMiss(
            f"{self.path} has no answer to this request to {asked.candidate}; the nearest one, in line {line}, differs "
            f"first at {path}: {_apart(_text(nearest), wanted)}; {AGAIN}",
            **facts,
            nearest=nearest.as_json,
            line=line,
            path=path,
        )


class Recording:
    """Writes a cassette anew. Each time a call has ended the whole file is replaced, so that it never ends in half a line.

    Calls stand in the order in which they began, however they ended. A recording without calls leaves the file alone.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder of the file, if there is none; the file is written with the first call.

        Raises:
            LLMSettingsError: The folder cannot be made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(path, f"its folder cannot be made ({error.strerror})") from None
        self.path = path.absolute()  # whoever records may go to another directory
        self._without_key: set[str] = set()
        self._places = count()
        self._lines: dict[int, str] = {}
        self._lock = threading.Lock()

    def pass_over(self, providers: Iterable[str]) -> None:
        """Note who cannot be asked for want of a key; it is written with the next call."""
        self._without_key.update(providers)

    def place(self) -> int:
        """Return the place of a call that begins."""
        return next(self._places)

    def add(self, place: int, interaction: Interaction) -> None:
        """Keep how the call in this place ended.

        Raises:
            OSError: The file cannot be written.
        """
        with self._lock:
            self._lines[place] = interaction.line()
            write(self.path, [self._lines[each] for each in sorted(self._lines)], self._without_key)


def read(path: Path) -> dict[int, Interaction]:
    """Return the calls of a cassette by their lines, from 1; its head and empty lines count, and are passed over.

    Raises:
        LLMSettingsError: It cannot be read, or a line is no recorded call.
    """
    return _whole(path)[1]


def _whole(path: Path) -> tuple[frozenset[str], dict[int, Interaction]]:
    """Return what the head says, and the calls."""
    without_key: frozenset[str] | None = None
    found: dict[int, Interaction] = {}
    number, fault = 0, None
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if number == 1 and (without_key := read_head(line)) is not None:
                continue
            if line.strip():
                found[number] = read_line(line)
    except OSError as error:
        fault = f"it cannot be read ({error.strerror})"
    except NoLine as error:
        fault = f"line {number} is no recorded call: {error}"
    if fault is not None:
        raise _refused(path, fault)
    return without_key or frozenset(), found


def write(path: Path, lines: list[str], without_key: Collection[str] = ()) -> None:
    """Replace a cassette by these lines, at once and as a whole; before them who had no key, if anybody.

    Raises:
        OSError: It cannot be written; then it is as it was.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        whole = [head(without_key), *lines] if without_key else lines
        new.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8", newline="\n")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _refused(path: Path, fault: str) -> LLMSettingsError:
    return LLMSettingsError(f"cassette {path}: {fault}", variable="LLM_CASSETTE")


def _ordered(asked: Asked) -> dict[str, JsonValue]:
    """Return what was asked, the candidate behind the request: where both differ, the request is told of."""
    return {"request": dict(asked.content), "candidate": asked.candidate}


def _text(asked: Asked) -> str:
    return json.dumps(_ordered(asked), ensure_ascii=False)


def _alike(one: str, other: str) -> float:
    """Return how much of the longer text both have in common at their beginnings and ends, from 0 to 2."""
    ends = _shared(one, other) + _shared(one[::-1], other[::-1])
    return ends / max(len(one), len(other))


def _shared(one: str, other: str) -> int:
    """Return how many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _apart(recorded: str, asked: str) -> str:
    """Return both texts around the place where they begin to differ."""
    start = max(_shared(recorded, asked) - SHOWN_BEFORE, 0)
    one, other = (f"...{text[start : start + SHOWN_CHARS]}..." for text in (recorded, asked))
    return f"recorded was {one} and asked is {other}"

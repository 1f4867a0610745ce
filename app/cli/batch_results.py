"""The output of a batch: a line for each answer, written whole or not at all, by one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from app.cli.batch_lines import Line
from app.cli.faults import UsageFault
from app.llm.errors import LLMError
from app.llm.types import LLMResponse

PRIVATE = 0o600
_BEGINNING = b'{"line":'


class Results:
    """A file of results, open and locked."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._file: BinaryIO | None = None
        self.answered: dict[int, str] = {}
        """Digests of the lines whose answer is there, by number."""
        self._kept: list[tuple[int, int]] = []
        self._size = 0

    def read(self) -> None:
        """Note what is there; failures are to be tried again, half a line was cut off by a kill.

        Raises:
            UsageFault: It is something else, or in use.
            OSError: It cannot be read.
        """
        try:
            self._file = self._opened(self._path, os.O_RDWR)
        except FileNotFoundError:
            return
        for raw in self._file:
            begin, self._size = self._size, self._size + len(raw)
            if not raw.endswith(b"\n") and (raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)):
                return
            try:
                number, digest, failed = _facts(json.loads(raw))
            except (ValueError, KeyError, TypeError):
                raise UsageFault(
                    f"{self._path} holds something else than the results of a batch: name another output"
                ) from None
            if not failed:
                self.answered[number] = digest
                self._kept.append((begin, self._size))

    def begin(self) -> None:
        """Be ready for the first result: make the file, or leave nothing in it but answers.

        Raises:
            OSError: The system refuses.
        """
        if self._file is None:
            self._file = self._opened(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        elif sum(end - begin for begin, end in self._kept) < self._size:
            self._file = self._mended(self._file)
        self._kept.clear()

    def add(self, result: Mapping[str, Any]) -> None:
        """Append one result.

        Raises:
            OSError: There is no room; the next run mends what was written of the line.
        """
        if self._file is None:
            raise RuntimeError("begin() comes before add()")
        text = json.dumps(result, ensure_ascii=False) + "\n"
        left = memoryview(text.encode(errors="backslashreplace"))
        while left:  # one call, unless the disk is full
            left = left[os.write(self._file.fileno(), left) :]

    def _mended(self, old: BinaryIO) -> BinaryIO:
        """Return a file of the answers alone, under the same name."""
        beside = self._path.with_name(f".{self._path.name}.mended")
        beside.unlink(missing_ok=True)
        new = self._opened(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        for begin, end in self._kept:
            old.seek(begin)
            new.write(old.read(end - begin))
        new.flush()
        os.fsync(new.fileno())
        beside.chmod(self._path.stat().st_mode & 0o777)
        beside.replace(self._path)
        return new

    def _opened(self, path: Path, flags: int) -> BinaryIO:
        """Return a file, locked until the end, also once another one has its name."""
        file = self._stack.enter_context(os.fdopen(os.open(path, flags | os.O_APPEND, PRIVATE), "r+b"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageFault(f"{self._path} is being written by another batch") from None
        return file


@contextmanager
def results(path: Path, *, resume: bool) -> Iterator[Results]:
    """Yield the results in a file, which nobody else can write meanwhile.

    Raises:
        UsageFault: There are some, and they are not to be continued; or it is another file, or in use.
        OSError: It cannot be read.
    """
    with ExitStack() as stack:
        found = Results(path, stack)
        if not resume and path.exists() and path.stat().st_size:
            raise UsageFault(f"{path} is there already: --resume goes on with it, or name another output")
        found.read()
        yield found


def answer_line(line: Line, response: LLMResponse) -> dict[str, Any]:
    """Return what is kept of an answer, as JSON values."""
    return {
        **_of(line),
        "text": response.text,
        "tool_calls": [call.model_dump(mode="json") for call in response.tool_calls],
        "finish_reason": response.finish_reason.value,
        "run_id": response.run_id,
        "served_from": response.served_from.value,
        "provider": response.provider.value,
        "model": response.model,
        "usage": response.usage.model_dump(),
        "original_usage": response.original_usage.model_dump(),
        "cost_usd": None if response.cost_usd is None else float(response.cost_usd),
    }


def failure_line(line: Line, error: LLMError) -> dict[str, Any]:
    """Return what is kept of a failure, as JSON values."""
    told = {
        "code": error.code,
        "message": error.message,
        "run_id": error.run_id,
        "possibly_paid": error.possibly_paid,
    }
    return {**_of(line), "error": told}


def _of(line: Line) -> dict[str, Any]:
    return {
        "line": line.number,
        "id": line.id,
        "key": line.request.idempotency_key,
        "digest": line.digest,
    }


def _facts(result: Any) -> tuple[int, str, bool]:
    number, digest = result["line"], result["digest"]
    if not isinstance(number, int) or not isinstance(digest, str):
        raise TypeError
    return number, digest, "error" in result

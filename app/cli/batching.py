"""What `batch` does once its options are read: lines in, calls, results out; loaded by it alone, because that takes time."""

import io
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from app.bootstrap import CLOCK, build_llm_service
from app.cli.batch_lines import BadLine, Defaults, Line, checked, lines_of
from app.cli.batch_results import Results, answer_line, failure_line, results
from app.cli.calls import LOCAL_WORKSPACE, context_of, request_of
from app.cli.faults import UsageFault
from app.cli.options import RequestOptions
from app.cli.output import note
from app.llm.context import scope
from app.llm.errors import LLMError, LLMKeyInProgress, LLMKeyUnavailable, LLMLedgerError
from app.llm.service import LLMService
from app.llm.settings import LLMSettings, load_settings
from app.llm.stages import Outcome, each_answered
from app.llm.types import LLMRequest

Watch = Callable[["Tally"], None]
"""Told whenever a line has its result, and once before the first."""


@dataclass(slots=True)
class Tally:
    """How far a batch is."""

    lines: int
    answered_before: int
    """Lines whose answer was in the output already."""
    served_from: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    @property
    def ended(self) -> int:
        """Lines that have their result."""
        return self.answered_before + self.served_from.total() + self.failed


async def run(
    asked: RequestOptions, source: str, target: str, *, resume: bool, concurrency: int, watch: Watch
) -> Tally:
    """Answer every line that has no answer yet and return the sums.

    Raises:
        UsageFault: An option, a line or the output is wrong; nothing was sent.
        LLMLedgerError: The database is away; a resumed batch goes on where this one stopped.
    """
    settings = load_settings()
    settings = settings.model_copy(
        update={"default_workspace": settings.default_workspace or LOCAL_WORKSPACE}
    )
    defaults = _defaults(asked, settings)
    if not settings.persist_runs:
        raise LLMKeyUnavailable("a batch needs persisted runs (LLM_PERSIST_RUNS=true): its lines have keys")
    with (
        scope(workspace_id=asked.workspace, stage=asked.stage),
        _opened(source) as file,
        results(Path(target), resume=resume) as found,
    ):
        count = checked(file, source, defaults, found.answered)
        tally = Tally(lines=count, answered_before=len(found.answered))
        watch(tally)
        found.begin()
        if tally.ended == count:
            return tally
        file.seek(0)
        async with build_llm_service(settings) as llm:
            await _Batch(llm, found, tally, watch).run(_unanswered(file, defaults, found), concurrency)
    return tally


class _Batch:
    """The calls of a batch: those that can be made, then those whose key a dead process holds until its lease ends."""

    def __init__(self, llm: LLMService, found: Results, tally: Tally, watch: Watch) -> None:
        self._llm = llm
        self._results = found
        self._tally = tally
        self._watch = watch
        self._under_way: dict[int, Line] = {}
        self._held: dict[int, tuple[Line, float]] = {}

    async def run(self, lines: Iterable[Line], concurrency: int) -> None:
        while True:
            await each_answered(self._llm.chat, self._taken(lines), self._ended, concurrency=concurrency)
            if not self._held:
                return
            wait_s = min(seconds for _, seconds in self._held.values())
            count = f"{len(self._held)} line{'' if len(self._held) == 1 else 's'}"
            note(
                f"signalbox: {count} under way elsewhere, or when a batch was killed: asking again in {wait_s:.0f} s"
            )
            await CLOCK.sleep_s(wait_s)
            lines = [line for line, _ in self._held.values()]
            self._held.clear()

    def _taken(self, lines: Iterable[Line]) -> Iterator[LLMRequest]:
        for number, line in enumerate(lines):
            self._under_way[number] = line
            yield line.request

    def _ended(self, number: int, outcome: Outcome) -> None:
        line = self._under_way.pop(number)
        if isinstance(outcome, LLMKeyInProgress) and outcome.retry_after_s is not None:
            self._held[line.number] = line, outcome.retry_after_s
            return
        if isinstance(outcome, LLMLedgerError):
            raise outcome
        if isinstance(outcome, LLMError):
            self._results.add(failure_line(line, outcome))
            self._tally.failed += 1
        else:
            self._results.add(answer_line(line, outcome))
            self._tally.served_from[outcome.served_from.value] += 1
        self._watch(self._tally)


def _defaults(asked: RequestOptions, settings: LLMSettings) -> Defaults:
    """Return what the options say for every line.

    Raises:
        UsageFault: A value is out of range.
    """
    whole, context = request_of(asked, "-"), context_of(asked, settings)
    said = whole.model_dump(
        mode="json", exclude_defaults=True, exclude={"messages", "constraints", "idempotency_key"}
    )
    return Defaults(
        fields=said, system=asked.system, local_only=asked.local_only, workspace=context.workspace_id
    )


def _opened(name: str) -> BinaryIO:
    """Return a file that can be read twice.

    Raises:
        UsageFault: It cannot be read.
    """
    if name == "-":
        return io.BytesIO(sys.stdin.buffer.read())
    try:
        file = Path(name).open("rb")  # noqa: SIM115  # the caller closes it
        return file if file.seekable() else io.BytesIO(file.read())
    except OSError as error:
        raise UsageFault(f"cannot read {name}: {error.strerror}") from None


def _unanswered(file: BinaryIO, defaults: Defaults, found: Results) -> Iterator[Line]:
    for line in lines_of(file, defaults):
        if isinstance(line, BadLine):
            raise UsageFault(f"line {line.number} changed while the batch ran: {line.fault}")
        if line.number not in found.answered:
            yield line

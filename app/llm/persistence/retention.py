"""Pruning: old runs and texts that nobody refers to go in small batches, so that no caller notices.

A batch goes piece by piece, in transactions that end once they have taken a while, with a pause after each. What is
left behind by a prune that was stopped, the next one finds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any, TypeVar

from app.llm.persistence import statements_retention as sql
from app.llm.persistence.executor import Executor, Steps
from app.llm.persistence.rollup import keep_usage
from app.llm.persistence.statements_retention import Address, Selection

T = TypeVar("T")
K = TypeVar("K")
Pieces = Sequence[tuple[K, K]]
"""Each from behind the first key to the last one."""

MAX_AGE_S = 100 * 365 * 86_400.0
"""Seconds; beyond that the arithmetic of the databases ends, and so does the sense."""
MAX_BATCH = 10_000
MAX_BATCH_BYTES = 16 * 2**20
"""Payload bytes per write; freeing the pages of large texts takes longer than deleting rows."""
PIECES = 20
"""Of a batch, however few rows of large texts it has: between two of them a write can end."""
LONGEST_WRITE_S = 0.04
"""Seconds after which a write takes no further piece, however slow the disk is: others wait for it."""
SHORTEST_PAUSE_S = 0.05
"""Seconds between two writes, or as long as the first of them took: others get half of the time at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Rows that are gone."""

    runs: int = 0
    """With `payloads_only`: rows that are still there, without their texts."""
    attempts: int = 0
    payloads: int = 0
    kept_live_keys: int = 0
    """Runs that are old enough and stay, because their key would be executed again without them."""

    def __add__(self, other: "Pruned") -> "Pruned":
        runs, attempts, payloads, kept = map(sum, zip(astuple(self), astuple(other), strict=True))
        return Pruned(runs=runs, attempts=attempts, payloads=payloads, kept_live_keys=kept)


Written = tuple[int, Pruned]
"""How many pieces a write took, and what went."""


async def prune(  # one parameter for each choice
    executor: Executor,
    *,
    older_than_s: float,
    workspace_id: str | None = None,
    payloads_only: bool = False,
    keys: bool = False,
    batch: int | None = None,
    progress: Callable[[Pruned], None] | None = None,
) -> Pruned:
    """Delete runs that finished more than `older_than_s` seconds ago, then payloads that no run refers to.

    What reports count of the runs is kept. Counters of budgets go with the months that are over by that age.

    STARTED runs are never touched, nor is a payload that was referred to within the last hour: a later prune finds
    it. Ages are by the database's clock. A cancelled prune ends with the transaction that is being written.

    Args:
        executor: The ledger's connections.
        older_than_s: Age in seconds since the end of a run, 0 to 100 years.
        workspace_id: Only in this workspace; None: in all.
        payloads_only: Keep the rows and forget only what was asked and answered. A key that is repeated later is
            told that its answer is not stored.
        keys: Also delete runs whose key is live; such a key can be executed, and paid, again. Without effect on
            `payloads_only`, which frees no key.
        batch: Rows per transaction at most, 1 to 10,000; fewer where they take long to write. None: 500 on
            SQLite, 5,000 on PostgreSQL.
        progress: Called after every transaction with what has been pruned so far.

    Raises:
        ValueError: An argument is out of range.
        LLMLedgerError: The database is away or locked; whole transactions are gone, and no half one.
    """
    which = _selection(older_than_s, workspace_id, payloads_only=payloads_only, keys=keys)
    if batch is None:
        batch = int((await executor.read(sql.USUAL_BATCH)).rows[0]["rows"])
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch is {batch}: 1 to {MAX_BATCH} rows")
    job = _Job(executor, which, batch, progress)
    await job.prune_runs()
    if not payloads_only and (await executor.read(sql.find_counters(which))).rows:
        await executor.transaction(partial(_prune_counters, which))
    await job.prune_payloads()
    return job.pruned


async def preview(
    executor: Executor,
    *,
    older_than_s: float,
    workspace_id: str | None = None,
    payloads_only: bool = False,
    keys: bool = False,
) -> Pruned:
    """Return what `prune` would do to runs, without writing; payloads are not foretold and count 0.

    Raises:
        ValueError: An argument is out of range.
        LLMLedgerError: The database is away.
    """
    which = _selection(older_than_s, workspace_id, payloads_only=payloads_only, keys=keys)
    total, after = Pruned(), ""
    while True:
        found = (await executor.read(sql.find_runs(which, after, sql.SCAN))).rows
        kept, sends = _count_kept(found), 0
        if len(found) > kept and not payloads_only:
            counted = await executor.read(sql.count_attempts(which, after, found[-1]["id"]))
            sends = counted.rows[0]["attempts"]
        total += Pruned(runs=len(found) - kept, attempts=sends, kept_live_keys=kept)
        end = await _end_of_window(executor, which, after)
        if end is None:
            return total
        after = end


class _Job:
    """One prune: a cursor that moves on in key order, whatever was written or skipped behind it."""

    def __init__(
        self,
        executor: Executor,
        which: Selection,
        batch: int,
        progress: Callable[[Pruned], None] | None,
    ) -> None:
        self.pruned = Pruned()
        self._executor = executor
        self._which = which
        self._batch = batch
        self._progress = progress

    async def prune_runs(self) -> None:
        after: str | None = ""
        while after is not None:
            found = (await self._executor.read(sql.find_runs(self._which, after, self._batch))).rows
            ids = [str(row["id"]) for row in found]
            full = len(ids) == self._batch  # where a read ends is asked before its rows go
            end = ids[-1] if full else await _end_of_window(self._executor, self._which, after)
            kept = _count_kept(found)
            self.pruned += Pruned(kept_live_keys=kept)
            if len(ids) > kept:
                await self._write(partial(_prune_runs, self._which), _cut(after, ids))
            after = end

    async def prune_payloads(self) -> None:
        after: Address | None = (self._which.workspace_id or "", "")
        while after is not None:
            found = (await self._executor.read(sql.find_orphans(self._which, after, self._batch))).rows
            page = _small_enough(found)
            full = len(found) == self._batch or len(page) < len(found)
            end = _address(page[-1]) if full else await self._end_of_payloads(after)
            if page:
                await self._write(_prune_orphans, _cut(after, [*map(_address, page)]))
            after = end

    async def _end_of_payloads(self, after: Address) -> Address | None:
        end = (await self._executor.read(sql.end_of_payloads(self._which, after))).first
        return _address(end) if end else None

    async def _write(self, steps: Callable[[Pieces[K]], Steps[Written]], pieces: Pieces[K]) -> None:
        while pieces:
            began_s = monotonic()
            written, gone = await _to_its_end(self._executor.transaction(partial(steps, pieces)))
            self.pruned += gone
            if self._progress is not None:
                self._progress(self.pruned)
            pieces = pieces[written:]
            await asyncio.sleep(max(SHORTEST_PAUSE_S, monotonic() - began_s))


def _cut(after: K, keys: Sequence[K]) -> Pieces[K]:
    size = max(1, len(keys) // PIECES)
    return [*pairwise([after, *keys[size - 1 : -1 : size], keys[-1]])]


def _selection(
    older_than_s: float, workspace_id: str | None, *, payloads_only: bool, keys: bool
) -> Selection:
    if not 0 <= older_than_s <= MAX_AGE_S:  # NaN is neither
        raise ValueError(f"older_than_s is {older_than_s}: 0 to {MAX_AGE_S:.0f} seconds")
    return Selection(
        older_than_s=float(older_than_s), workspace_id=workspace_id, payloads_only=payloads_only, keys=keys
    )


def _prune_runs(which: Selection, pieces: Pieces[str]) -> Steps[Written]:
    yield sql.NO_COMPILER
    written, gone = 0, Pruned()
    counted: list[Mapping[str, Any]] = []
    for after, last in _while_short(pieces):
        written += 1
        if which.payloads_only:
            emptied = yield sql.empty_runs(which, after, last)
            gone += Pruned(runs=emptied.rowcount)
            continue
        deleted = yield sql.delete_runs(which, after, last)
        sends = yield sql.delete_attempts(after, last)
        counted += deleted.rows
        gone += Pruned(runs=len(deleted.rows), attempts=sends.rowcount)
    yield from keep_usage(counted)
    return written, gone


def _prune_counters(which: Selection) -> Steps[None]:
    yield sql.delete_counters(which)


def _prune_orphans(pieces: Pieces[Address]) -> Steps[Written]:
    yield sql.NO_COMPILER
    written, gone = 0, Pruned()
    for after, last in _while_short(pieces):
        written += 1
        gone += Pruned(payloads=(yield sql.delete_orphans(after, last)).rowcount)
    return written, gone


def _while_short(pieces: Pieces[K]) -> Iterator[tuple[K, K]]:
    """Yield pieces until the write has taken its time; the first one in any case."""
    until_s = monotonic() + LONGEST_WRITE_S
    for piece in pieces:
        yield piece
        if monotonic() > until_s:
            return


def _count_kept(found: Sequence[Mapping[str, Any]]) -> int:
    return sum(bool(row["kept"]) for row in found)


async def _end_of_window(executor: Executor, which: Selection, after: str) -> str | None:
    """Return the last id that a read after `after` has seen; None when nothing behind it can be old."""
    window = (await executor.read(sql.end_of_window(which, after))).rows[0]
    return str(window["last"]) if window["seen"] == sql.SCAN and window["aged"] else None


def _small_enough(found: Sequence[Any]) -> Sequence[Any]:
    """Return the first payloads that together are not too large; one at least."""
    room = MAX_BATCH_BYTES
    for count, row in enumerate(found):
        room -= row["size"] or 0  # None: it went meanwhile
        if room < 0:
            return found[: max(count, 1)]
    return found


def _address(row: Any) -> Address:
    return str(row["workspace_id"]), str(row["sha256"])


async def _to_its_end(work: Awaitable[T]) -> T:
    """Return what a write gives; a caller that is cancelled meanwhile leaves when the write has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return task.result()

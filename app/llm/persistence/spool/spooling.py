"""The way into the spool and out of it: what could not be written in time is kept, answered from, and written later."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import TypeVar

from app.llm import telemetry as events
from app.llm.errors import LLMLedgerUnavailable
from app.llm.persistence import ledger
from app.llm.persistence.codec import Codec, stored_answer
from app.llm.persistence.executor import Executor
from app.llm.persistence.ledger import UNPLACED
from app.llm.persistence.models import SUCCEEDED
from app.llm.persistence.settlement import Settlement
from app.llm.persistence.spool.pending import Refused, Spool
from app.llm.ports import Conflict, Finished, KeyState, Replay
from app.llm.telemetry import Telemetry
from app.llm.types import ServedFrom

T = TypeVar("T")


class Spooling:
    """The spool of this process, with the database that it waits for."""

    def __init__(self, spool: Spool, executor: Executor, codec: Codec, telemetry: Telemetry) -> None:
        self._spool = spool
        self._executor = executor
        self._codec = codec
        self._telemetry = telemetry
        self._disk = asyncio.Lock()
        """Held while a file changes, never while the database is asked: a paid answer must not wait for that."""
        self._draining: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._spool)

    async def open(self) -> None:
        """Take over what dead processes left; warn of what cannot be taken over, or when nothing could be written."""
        try:
            await asyncio.to_thread(self._spool.files.check)
            await self._take_over()
            await self._tell_of_other_hosts()
        except OSError as error:
            self._telemetry.event(
                events.EVENT_SPOOL_UNWRITABLE,
                level="warning",
                error_message=f"the spool cannot be read or written: {error}",
            )
        if len(self._spool):
            await self.drain()

    async def adopt(self) -> None:
        """Take over what processes left that died meanwhile, and write it.

        Raises:
            LLMLedgerError: The database is away.
            OSError: The spool cannot be read or written.
        """
        await self._take_over()
        if len(self._spool):
            await asyncio.shield(self.drain())

    async def append(self, settled: Settlement, reason: str) -> Finished:
        """Keep a settlement that the database did not take, for this reason."""
        try:
            await self._change(partial(self._spool.append, settled))
        except OSError as error:
            self._tell_lost(settled, f"{reason}; {error}")
        else:
            self._telemetry.event(
                events.EVENT_SPOOLED, level="error", llm_run_id=settled.run_id, error_message=reason
            )
        return Finished(persisted=False)

    async def set_aside(self, settled: Settlement) -> Finished:
        """Keep a settlement that has no place in the database, for a human."""
        try:
            await self._keep_unplaced(settled)
        except OSError as error:
            self._tell_lost(settled, f"{UNPLACED}; {error}")
        return Finished(persisted=False)

    def drain(self) -> asyncio.Task[None]:
        """Write what waits, oldest first. Whoever asks meanwhile gets the same task: wait for it behind a shield.

        Raises, when awaited:
            LLMLedgerError: The database is still away, or the disk is full; nothing may be claimed.
        """
        if self._draining is None or self._draining.done():
            # in no caller's context: a unit of work that one of them is in would refuse everybody's answers
            self._draining = asyncio.get_running_loop().create_task(self._drain(), context=Context())
        return self._draining

    async def close(self) -> None:
        """Leave what still waits to whoever comes next, in this process as well."""
        await self._change(self._spool.close)

    async def _drain(self) -> None:
        try:
            while waiting := self._spool.pending:
                for settled in waiting:
                    await self._place(settled)
        except OSError as error:
            raise LLMLedgerUnavailable(
                f"the spool waits for the ledger, and its directory cannot be changed: {error}"
            ) from None

    async def _place(self, settled: Settlement) -> None:
        finished = await self._executor.transaction(partial(ledger.finish, settled, self._codec))
        if finished.persisted:
            await self._change(partial(self._spool.settled, settled.run_id))
            self._telemetry.event(events.EVENT_SPOOL_DRAINED, llm_run_id=settled.run_id)
        else:
            await self._keep_unplaced(settled)

    async def _keep_unplaced(self, settled: Settlement) -> None:
        file = await self._change(partial(self._spool.set_aside, settled))
        self._telemetry.event(
            events.EVENT_UNPLACED,
            level="error",
            llm_run_id=settled.run_id,
            file=str(file),
            error_message=UNPLACED,
        )

    async def _take_over(self) -> None:
        """Take over what can be; a file that cannot be read keeps nobody from the next one."""
        fault = None
        for path in await asyncio.to_thread(self._spool.files.of_this_host):
            try:
                refused = await self._change(partial(self._spool.adopt, path))
            except OSError as error:
                fault = fault or error
            else:
                self._tell_refused(refused)
        if fault is not None:
            raise fault

    def _tell_refused(self, refused: Refused | None) -> None:
        if refused is not None:
            self._telemetry.event(
                events.EVENT_SPOOL_REFUSED,
                level="error",
                file=str(refused.file),
                lines=refused.lines,
                error_message=refused.reason,
            )

    async def _tell_of_other_hosts(self) -> None:
        left = await asyncio.to_thread(self._spool.files.of_others)
        if left:
            self._telemetry.event(
                events.EVENT_SPOOL_ELSEWHERE,
                level="warning",
                files=", ".join(str(path) for path in left),
                error_message="answers wait in files of this database that another host wrote. If that was this one "
                "under another name, or a container that is gone, rename each file to begin with "
                f"{self._spool.files.prefix} and it is taken over; fixed host names need no renaming",
            )

    def _tell_lost(self, settled: Settlement, reason: str) -> None:
        self._telemetry.event(
            events.EVENT_ANSWER_LOST, level="error", llm_run_id=settled.run_id, error_message=reason
        )

    async def _change(self, change: Callable[[], T]) -> T:
        """Change files in a thread, one change at a time."""
        async with self._disk:
            return await asyncio.to_thread(change)

    def key_state(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        """Say what a pending answer means for a request; None when there is none."""
        settled = self._spool.of_key(workspace_id, key)
        if settled is None or settled.run["status"] != SUCCEEDED:
            return None
        if settled.request_sha256 != request_sha256:
            return Conflict(run_id=settled.run_id)
        kept = {row["sha256"]: row for row in settled.payloads}.get(settled.run["response_payload"])
        row = {
            "id": settled.run_id,
            "candidate_sha256": settled.run["candidate_sha256"],
            "request_sha256": request_sha256,
            "route": "[]",
            "bytes": None,
            **(kept or {}),
        }
        answer = stored_answer(row, ServedFrom.REPLAY, self._codec)
        return Replay(answer=answer)

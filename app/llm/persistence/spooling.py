"""The way into the spool and out of it: what could not be written in time is kept, answered from, and written later."""

import asyncio
from functools import partial

from app.llm import telemetry as events
from app.llm.persistence import ledger
from app.llm.persistence.codec import Codec, decode_response, opened
from app.llm.persistence.executor import Executor
from app.llm.persistence.models import SUCCEEDED
from app.llm.persistence.settlement import Settlement
from app.llm.persistence.spool import Spool
from app.llm.ports import Conflict, Finished, KeyState, Replay, StoredAnswer
from app.llm.telemetry import Telemetry
from app.llm.types import ServedFrom


class Spooling:
    """The spool of this process, with the database that it waits for."""

    def __init__(self, spool: Spool, executor: Executor, codec: Codec, telemetry: Telemetry) -> None:
        self._spool = spool
        self._executor = executor
        self._codec = codec
        self._telemetry = telemetry
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._spool)

    async def open(self) -> None:
        """Adopt the spool files of dead processes; warn when no spool could be written."""
        try:
            await asyncio.to_thread(self._spool.check)
            await asyncio.to_thread(self._spool.adopt)
        except OSError as error:
            self._telemetry.event(
                events.EVENT_SPOOL_UNWRITABLE,
                level="warning",
                error_message=f"the spool cannot be written: {error}",
            )
        if len(self._spool):
            await self.drain()

    async def adopt(self) -> None:
        """Take over what processes left that died meanwhile, and write it.

        Raises:
            LLMLedgerError: The database is away.
            OSError: The spool cannot be read or written.
        """
        async with self._lock:
            await asyncio.to_thread(self._spool.adopt)
        if len(self._spool):
            await self.drain()

    async def append(self, settled: Settlement, reason: str) -> Finished:
        """Keep a settlement that the database did not take, for this reason."""
        try:
            async with self._lock:
                await asyncio.to_thread(self._spool.append, settled)
        except OSError as error:
            self._telemetry.event(
                events.EVENT_ANSWER_LOST,
                level="error",
                llm_run_id=settled.run_id,
                error_message=f"{reason}; {error}",
            )
        else:
            self._telemetry.event(
                events.EVENT_SPOOLED, level="error", llm_run_id=settled.run_id, error_message=reason
            )
        return Finished(persisted=False)

    async def drain(self) -> None:
        """Write what waits, oldest first.

        Raises:
            LLMLedgerError: The database is still away; nothing may be claimed.
        """
        async with self._lock:
            for settled in self._spool.pending:
                await self._executor.transaction(partial(ledger.finish, settled, self._codec))
                await asyncio.to_thread(self._spool.settled, settled.run_id)
                self._telemetry.event(events.EVENT_SPOOL_DRAINED, llm_run_id=settled.run_id)

    def key_state(self, workspace_id: str, key: str, request_sha256: str) -> KeyState:
        """Say what a pending answer means for a request; None when there is none."""
        settled = self._spool.of_key(workspace_id, key)
        if settled is None or settled.run["status"] != SUCCEEDED:
            return None
        if settled.request_sha256 != request_sha256:
            return Conflict(run_id=settled.run_id)
        kept = {row["sha256"]: row for row in settled.payloads}.get(settled.run["response_payload"])
        response = kept and decode_response(
            opened(kept, self._codec, run_id=settled.run_id),
            run_id=settled.run_id,
            route=(),
            served_from=ServedFrom.REPLAY,
        )
        answer = StoredAnswer(
            run_id=settled.run_id,
            candidate_sha256=settled.run["candidate_sha256"],
            request_sha256=request_sha256,
            response=response or None,
        )
        return Replay(answer=answer)

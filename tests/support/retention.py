"""Runs to prune: finished long ago by SQL, and an executor that lets a test act between the statements of a prune."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.llm.persistence.executor import Executor, Result, Step, Steps, unrolled
from app.llm.persistence.models import LLMPayload, LLMRun
from app.llm.ports import NewRun, Won
from tests.support.ledger import Outside, new_run, request, success
from tests.support.loops import HomeLoop

DAY_S = 86_400.0


class Paused:
    """An executor that lets a test act before each transaction and between its steps, which run as ever."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.before: Callable[[], Any] | None = None
        self.between: Callable[[], None] = lambda: None
        """Called after each statement, and before the commit, on the loop."""
        self.transactions = 0

    async def transaction(self, steps: Callable[[], Steps[Any]]) -> Any:
        self.transactions += 1
        if self.before is not None:
            await self.before()

        home = HomeLoop()
        return await self._inner.transaction(lambda: self._watched(steps(), home))

    def _watched(self, steps: Steps[Any], home: HomeLoop) -> Steps[Any]:
        steps = unrolled(steps)
        step = next(steps)
        try:
            while True:
                result = yield step
                home.call(self.between)
                step = steps.send(result)
        except StopIteration as end:
            return end.value

    async def read(self, step: Step) -> Result:
        return await self._inner.read(step)

    async def close(self) -> None:
        await self._inner.close()


async def answered(ledger: Any, run: NewRun, text: str = "A box.", **values: Any) -> NewRun:
    """Return a run that was claimed and has its answer."""
    repo = ledger.repo(**values)
    assert isinstance(await repo.create_started(run), Won)
    await repo.mark_succeeded(run, success(run, text))
    return run


async def aged(seen: Outside, *runs: NewRun, seconds: float = 2 * DAY_S, payloads: bool = True) -> None:
    """Let runs have finished, and all payloads have been referred to, `seconds` ago."""
    for run in runs:
        await seen.age(run.run_id, seconds)
    if payloads:
        await age_payloads(seen, seconds)


async def age_payloads(seen: Outside, seconds: float = 2 * DAY_S) -> None:
    async with seen.engine.begin() as connection:
        past = datetime.now(UTC) - timedelta(seconds=seconds)
        await connection.execute(sa.update(LLMPayload).values(last_ref_at=past))


async def delete_rows(seen: Outside, *runs: NewRun) -> None:
    """Leave the texts of runs behind, as a prune that was stopped does."""
    async with seen.engine.begin() as connection:
        await connection.execute(sa.delete(LLMRun).where(LLMRun.id.in_([run.run_id for run in runs])))


async def ids(seen: Outside) -> set[str]:
    return {row["id"] for row in await seen.runs()}


async def unreadable(seen: Outside) -> list[str]:
    """Return the runs with an answer whose request or response is not there."""
    stored = {(row["workspace_id"], row["sha256"]) for row in await seen.payloads()}
    return [
        row["id"]
        for row in await seen.runs(status="SUCCEEDED")
        for name in ("request_payload", "response_payload")
        if row[name] is not None and (row["workspace_id"], row[name]) not in stored
    ]


def one_text(text: str = "same", **fields: Any) -> NewRun:
    """Return a run without a key: several of them share their payloads."""
    return new_run(request(text), **fields)

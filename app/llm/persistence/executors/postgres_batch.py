"""One attempt at a batch: generators go on in lockstep, and nobody is told of success before it is committed.

In each round, steps of the same statement share a round trip. Operations of one transaction see each other's work,
even what is half done. So only those go on in company that met nobody: whose first step changed a row. The others
look afterwards at what is committed, and one that then has to write (to take a key over, say) starts again alone.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from app.llm.persistence.executor import Result, Step, Steps
from app.llm.persistence.executors.postgres_wire import FAULTS, Query, Wire

FEW = 2
"""Steps with followers that are cheaper one by one, a round trip each, than in a transaction of five round trips."""


class Operation:
    """A transaction that somebody waits for."""

    __slots__ = ("_on_end", "due_s", "ended", "future", "in_doubt", "repeatable", "steps", "whole")

    def __init__(
        self,
        steps: Callable[[], Steps[Any]],
        future: asyncio.Future[Any],
        due_s: float,
        *,
        repeatable: bool,
        on_end: Callable[["Operation"], object],
    ) -> None:
        self.steps = steps
        self.future = future
        self.due_s = due_s
        self.repeatable = repeatable
        """Whether it may be done twice without anybody noticing."""
        self.in_doubt = False
        """Whether a commit of it was sent off, and its acknowledgement has not come."""
        self.whole = False
        """Whether all of its steps have to be in one transaction, and nobody else's."""
        self.ended = False
        self._on_end = on_end

    def succeed(self, outcome: Any) -> None:
        """Tell the caller, if there still is one."""
        self._end()
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Tell the caller, if there still is one."""
        self._end()
        if not self.future.done():
            self.future.set_exception(error)

    def taken_back(self) -> bool:
        """Whether the caller went away before it began."""
        if self.future.cancelled():
            self._end()
        return self.ended

    def _end(self) -> None:
        self.ended = True
        self._on_end(self)


class SpoiledError(Exception):
    """One of the batch's generators raised, which undoes the others' work as well."""


async def attempt(wire: Wire, operations: Sequence[Operation]) -> None:
    """Run operations on a connection; those that came to their end are told so.

    Nothing of the others is committed, but for what is in doubt. One that needs a transaction of its own is noted
    as `whole`, and then always ends.

    Raises:
        SpoiledError: A generator raised.
        Exception: One of `FAULTS`.
    """
    try:
        async with asyncio.timeout_at(min(operation.due_s for operation in operations)):
            await _run(wire, [_Course(operation) for operation in operations])
    except (SpoiledError, *FAULTS) as error:
        if _ends_connection(error):
            wire.drop()
        await wire.rollback()
        if not (wire.lost or isinstance(error, TimeoutError)):  # a commit may still end after its time is up
            _doubt(operations, in_doubt=False)
        raise
    except BaseException:
        wire.drop()
        raise


async def _run(wire: Wire, courses: Sequence["_Course"]) -> None:
    for course in courses:
        course.settle_if_ended()
    others = await _run_final_steps(wire, [course for course in courses if not course.ended])
    if len(courses) > 1:
        others = [course for course in others if course.query.writes]
    if others:
        await _run_transaction(wire, others)
    left = [course for course in courses if not course.ended]
    if left:
        await _look_around(wire, left)


async def _run_final_steps(wire: Wire, courses: Sequence["_Course"]) -> list["_Course"]:
    """Commit what one round trip can commit without a transaction around it; return what has not begun.

    The driver's pipeline is a transaction by itself: all executions of a statement are committed, or none.
    """
    others = [course for course in courses if not course.may_end_now]
    for group in _by_text(course for course in courses if course.may_end_now):
        if not group[0].query.step.then:
            await _commit_at_once(wire, group)
        elif len(group) <= FEW:
            for course in group:
                await _commit_at_once(wire, [course])
        else:  # together, for texts that several of them store have to be locked in one order
            others += group
    return others


async def _commit_at_once(wire: Wire, group: Sequence["_Course"]) -> None:
    operations = [course.operation for course in group]
    _doubt(operations, in_doubt=True)
    results = await wire.run([course.query for course in group], followed=True)
    _doubt(operations, in_doubt=False)
    for course, result in zip(group, results, strict=True):
        course.tell(result, followed=True)
        if result.rowcount and not course.ended:
            raise RuntimeError("a step that was called final changed a row, and another step came after it")
        course.settle_if_ended()


async def _run_transaction(wire: Wire, courses: Sequence["_Course"]) -> None:
    """Run transactions as one. Those that meet somebody stop, unless there is nobody else whose work they could see.

    What they share with other batches comes last and in its order, or two batches could wait for each other.
    """
    alone = len(courses) == 1
    await wire.begin()
    while going := [course for course in courses if not course.ended and (alone or course.met_nobody)]:
        least = min(course.query.step.shares for course in going)  # nothing comes first
        await _run_round(wire, [course for course in going if course.query.step.shares == least])
    if not any(course.error for course in courses):
        operations = [course.operation for course in courses if course.ended]
        _doubt(operations, in_doubt=True)
        await wire.commit()
        _doubt(operations, in_doubt=False)
    elif alone:
        await wire.rollback()
    else:
        raise SpoiledError
    for course in courses:
        course.settle_if_ended()


async def _look_around(wire: Wire, courses: Sequence["_Course"]) -> None:
    """Let those that met somebody read what is committed; one that then has to write needs a transaction of its own."""
    while looking := [course for course in courses if not course.ended and not course.query.writes]:
        await _run_round(wire, looking)
    for course in courses:
        course.settle_if_ended()
        course.operation.whole = not course.ended


async def _run_round(wire: Wire, courses: Sequence["_Course"]) -> None:
    for group in _by_text(courses):
        results = await wire.run([course.query for course in group])
        for course, result in zip(group, results, strict=True):
            course.tell(result)


class _Course:
    """How far an operation's generator has come."""

    __slots__ = (
        "_begun",
        "_followers",
        "_result",
        "_steps",
        "ended",
        "error",
        "met_nobody",
        "operation",
        "outcome",
        "query",
    )

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.ended = False
        self.error: Exception | None = None
        self.outcome: Any = None
        self.query: Query
        """What it waits for, until it has ended."""
        self._steps = operation.steps()
        self.met_nobody = True
        """Whether its first step changed a row, as far as is known."""
        self._begun = False
        self._result: Result | None = None
        self._followers: list[Step] = []
        self._go_on()

    @property
    def may_end_now(self) -> bool:
        """Whether its first step may be committed on its own."""
        return self.query.step.final and not self.operation.whole

    def tell(self, result: Result, *, followed: bool = False) -> None:
        """Go on with what the step gave; its followers come first, unless it was `followed` already."""
        if not self._begun:
            self._begun = True
            self.met_nobody = self.query.writes and result.rowcount > 0
        if self._result is None:
            self._result = result
            self._followers = list(self.query.step.then) if result.rowcount and not followed else []
        if self._followers:
            self.query = Query(self._followers.pop(0))
            return
        self._go_on()

    def settle_if_ended(self) -> None:
        """Tell the caller the outcome, if there is one."""
        if self.error is not None:
            self.operation.fail(self.error)
        elif self.ended:
            self.operation.succeed(self.outcome)

    def _go_on(self) -> None:
        result, self._result = self._result, None
        try:
            step = next(self._steps) if result is None else self._steps.send(result)
            self.query = Query(step)
        except StopIteration as end:
            self.outcome, self.ended = end.value, True
        except Exception as error:  # noqa: BLE001  # it is the caller's, who is told
            self.error, self.ended = error, True


def _by_text(courses: Iterable[_Course]) -> list[list[_Course]]:
    """Return those whose queries can share a round trip together."""
    groups: dict[tuple[object, str], list[_Course]] = {}
    for course in courses:
        groups.setdefault((course.query.statement, course.query.text), []).append(course)
    return list(groups.values())


def _doubt(operations: Iterable[Operation], *, in_doubt: bool) -> None:
    for operation in operations:
        operation.in_doubt = in_doubt and not operation.repeatable


def _ends_connection(error: BaseException) -> bool:
    state = str(getattr(error, "sqlstate", ""))
    return state.startswith(("08", "57")) and state != "57014"

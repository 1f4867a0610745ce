"""Findings, and how they are made: each probe on its own, all at once, each within its time, and none of them raises."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from app.llm.errors import LLMError

T = TypeVar("T")


class State(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found out about one subject."""

    subject: str
    state: State
    said: str
    """What is so, in one line."""
    remedy: str | None = None
    """What to do about it."""

    @classmethod
    def ok(cls, subject: str, said: str) -> "Finding":
        """All is well."""
        return cls(subject=subject, state=State.OK, said=said)

    @classmethod
    def warning(cls, subject: str, said: str, remedy: str | None = None) -> "Finding":
        """Calls work, and somebody should know."""
        return cls(subject=subject, state=State.WARNING, said=said, remedy=remedy)

    @classmethod
    def fault(cls, subject: str, said: str, remedy: str | None) -> "Finding":
        """Something does not work."""
        return cls(subject=subject, state=State.FAULT, said=said, remedy=remedy)

    @classmethod
    def skipped(cls, subject: str, said: str) -> "Finding":
        """Nobody looked, for a reason."""
        return cls(subject=subject, state=State.SKIPPED, said=said)


Tell = Callable[[Finding], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One thing to look at: what it tells of, in order, and how."""

    subjects: tuple[str, ...]
    ask: Callable[[Tell], Awaitable[None]]
    """Tells one finding for each subject, or returns early where the rest cannot be known."""
    limit_s: float
    remedy: str
    """What to do when it cannot even look."""


async def found(probes: Iterable[Probe]) -> list[Finding]:
    """Return what the probes find, in their order, one finding for each subject."""
    return [each for some in await asyncio.gather(*map(_found, probes)) for each in some]


async def aside(look: Callable[[], T]) -> T:
    """Return what `look` returns, from a thread that nobody waits for if it hangs: a disk that is away can do that."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if outcome.done():  # its time was over
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(value)  # type: ignore[arg-type]  # None only where `look` returns it

    def run() -> None:
        value, fault = None, None
        try:
            value = look()
        except Exception as error:  # noqa: BLE001  # it is raised where the outcome is awaited
            fault = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, fault)

    threading.Thread(target=run, daemon=True, name="signalbox-look").start()
    return await outcome


async def _found(probe: Probe) -> list[Finding]:
    told: list[Finding] = []
    fault = None
    try:
        async with asyncio.timeout(probe.limit_s):
            await probe.ask(told.append)
    except TimeoutError:
        fault = f"no answer within {probe.limit_s:g} s"
    except LLMError as error:
        fault = error.message
    except Exception as error:  # noqa: BLE001  # one look that fails must not hide what the others find
        fault = f"it could not be looked at: {type(error).__name__}: {error}"
    open_ones = [name for name in probe.subjects if name not in {each.subject for each in told}]
    if fault is not None:
        subject = open_ones.pop(0) if open_ones else probe.subjects[-1]
        told.append(Finding.fault(subject, fault, probe.remedy))
    return [*told, *(Finding.skipped(name, "not looked at: see above") for name in open_ones)]

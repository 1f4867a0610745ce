"""One run: starts the stub, a PostgreSQL and the children, orders cell after cell in rounds, and clears up."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bench.cases import CASES
from bench.cases.ours import missing_settings
from bench.figures import Key, key_of
from bench.machine import facts, flush_ms, pin, two_cores
from bench.postgres import server
from bench.probes import PROBES
from bench.world import World

ROOT = Path(__file__).resolve().parents[1]
OPEN_TIMEOUT_S = 120.0
CELL_TIMEOUT_S = 60.0
"""Seconds beyond the measuring that a cell may take: it is warmed up, and slow calls end."""
_LAST_WORDS = 2000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: cells in rounds, each probe once."""

    cells: Sequence[tuple[str, int]]
    probes: Sequence[str]
    rounds: int
    seconds: float
    """Of one round of one cell."""


class Child:
    """One child process, and the conversation with it."""

    def __init__(self, world: World, log: Path) -> None:
        self._log = log
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter
                [sys.executable, "-m", "bench.child", json.dumps(asdict(world))],
                cwd=ROOT,
                env={**os.environ, **quiet},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,  # nothing may wait in here: a child that is dead would be written to again
                start_new_session=True,  # Ctrl-C ends the runner, which ends its children
            )

    def order(self, **order: Any) -> None:
        """Send an order; its answer is read by `answer`."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # `answer` says why it is gone
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Return the answer to the oldest order that has none, or the fault that came instead."""
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("a child is started with pipes")
        if not select.select([stdout], [], [], timeout_s)[0]:
            self._process.kill()
            return {
                "fault": f"no answer within {timeout_s:.0f} s; the process was ended: {self._last_words()}"
            }
        line = stdout.readline()
        if not line:
            return {"fault": f"its process ended with {self._process.wait()}: {self._last_words()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def settle_on(self, core: int | None) -> None:
        """Keep every thread that it has now, and those to come, on one core."""
        if self._process.poll() is None:
            pin(self._process.pid, core)

    def close(self) -> None:
        """Let it close what is open; end it if it does not."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-_LAST_WORDS:].strip() or "it said nothing"


class Children:
    """The children of a run by home, started when they are first needed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # an error or Ctrl-C: nobody waits for a cell to end
            for child in self._running.values():
                child.kill()
        for child in self._running.values():
            child.close()

    def open(self, cases: Iterable[str], probes: Iterable[str]) -> None:
        """Start a process for each home and each probe that loads much, all at once: imports take seconds."""
        by_home: dict[str, list[str]] = {}
        for case in dict.fromkeys(cases):
            by_home.setdefault(CASES[case].home, []).append(case)
        for home, names in by_home.items():
            self._start(home).order(kind="open", names=names)
        for name in probes:
            if PROBES[name].loads_litellm:
                self._start(f"probe-{name}").order(kind="load")
        for child in self._running.values():
            child.answer(OPEN_TIMEOUT_S)  # a fault comes again with each cell, or with the probe
            child.settle_on(two_cores()[0])

    def cell(self, case: str, in_flight: int, seconds: float) -> dict[str, Any]:
        """Measure one round of one cell."""
        child = self._running[CASES[case].home]
        child.order(kind="cell", name=case, in_flight=in_flight, seconds=seconds)
        return child.answer(seconds + CELL_TIMEOUT_S)

    def probe(self, name: str) -> dict[str, Any]:
        """Run one probe in a process of its own."""
        home = f"probe-{name}"
        child = self._running.get(home) or self._start(home)
        child.settle_on(two_cores()[0])
        child.order(kind="probe", name=name)
        answer = child.answer(PROBES[name].timeout_s)
        child.close()
        return answer

    def _start(self, home: str) -> Child:
        child = self._running[home] = Child(self._world, Path(self._world.directory) / f"{home}.log")
        return child


def run(plan: Plan, say: Say) -> dict[str, Any]:
    """Return everything that the plan asks for, with the facts beside it; a failed part holds its fault."""
    began_s = time.monotonic()
    say = _timed(say, began_s)
    rounds: dict[Key, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="signalbox-bench-"))
        document: dict[str, Any] = {"facts": facts(), "flush": flush_ms(directory)}
        for name in missing_settings():
            say(
                f"LLM_{name.upper()} is no setting of this version: what it would switch off or on is as it is"
            )
        database = stack.enter_context(server(say))
        document["facts"]["versions"]["PostgreSQL"] = database.version
        stub_url = stack.enter_context(_stub())
        world = World(
            stub_url=stub_url,
            directory=directory,
            postgres_url=database.url,
            postgres_pid=database.pid,
            postgres_fault=database.fault,
        )
        children = stack.enter_context(Children(world))
        say("opening the cases")
        children.open((case for case, _ in plan.cells), plan.probes)
        for number in range(1, plan.rounds + 1):
            say(f"round {number} of {plan.rounds}: {len(plan.cells)} cells of {plan.seconds:g} s")
            for case, in_flight in plan.cells:
                key = key_of(case, in_flight)
                cell = children.cell(case, in_flight, plan.seconds)
                rounds.setdefault(key, []).append(_told(key, cell, say))
        # the probes last: some take a quarter of an hour, and the cells are what has to be quiet
        for name in plan.probes:
            say(f"{PROBES[name].title}")
            rounds[name] = [_told(name, children.probe(name), say)]
    document["pace"] = {"rounds": plan.rounds, "seconds": plan.seconds}
    document["took_s"] = round(time.monotonic() - began_s, 1)
    document["rounds"] = rounds
    return document


def _timed(say: Say, began_s: float) -> Say:
    return lambda text: say(f"{time.monotonic() - began_s:5.0f} s  {text}")


def _told(key: Key, answer: dict[str, Any], say: Say) -> dict[str, Any]:
    if fault := answer.get("fault"):
        say(f"ERROR {key}: {fault}")
        return {"fault": str(fault).splitlines()[-1]}  # the way to it names this machine's paths
    if answer.get("errors") and answer.get("error"):
        say(f"ERROR {key}: {answer['errors']} calls failed, the first with {answer['error']}")
    return answer


@contextmanager
def _stub() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.stub"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    pin(process.pid, two_cores()[1])
    try:
        if process.stdout is None or not (port := process.stdout.readline().strip()):
            raise RuntimeError("the stub did not start")
        yield f"http://127.0.0.1:{int(port)}"
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

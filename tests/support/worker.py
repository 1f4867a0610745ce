"""Other processes: a program that imports once and forks a child for each job, so that a crash test is cheap.

`python -m tests.support.worker` reads a list of jobs from each line of its standard input, forks, lets all children
start at once, and writes a line with their results; null stands for a child that was killed. Where children stop
themselves, it says so once each of them has stopped or ended, and lets them go on at the next line of input.
"""

import asyncio
import importlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.bootstrap import connect
from app.core.clock import SystemClock
from app.llm.candidates import Candidate
from app.llm.errors import LLMBadRequest, LLMError
from app.llm.pacing import Quota, Rate
from app.llm.persistence.rates import SharedMeter
from app.llm.ports import ProviderReply
from app.llm.telemetry import Telemetry
from app.llm.testing.client import text_reply
from app.llm.types import LLMProvider, LLMRequest
from tests.support import programs
from tests.support.ledger import ROOT, request, route_of
from tests.support.service import limited, rig, service, timed_out

HALF_A_LINE = 300
"""Bytes: more than a spool's file system has to offer, less than a line."""


class Counted:
    """A client whose sends are told, as they begin and end, in a file that all processes append to."""

    def __init__(
        self,
        file: str,
        *,
        latency_s: float = 0.0,
        hook: Callable[[str], None] | None = None,
        script: list[Exception] | None = None,
        dead: tuple[str, ...] = (),
        first: Callable[[], None] | None = None,
    ) -> None:
        self._file = file
        self._latency_s = latency_s
        self._hook = hook or (lambda _: None)
        self._script = script or []
        self._dead = dead
        self._first = first

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,
        workspace_id: str,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002  # the port's signature
        on_send: Callable[[float], None],
    ) -> ProviderReply:
        on_send(0.0)
        told = {"key": request.idempotency_key or "-", "run": run_id, "to": candidate.name}
        _tell(self._file, {**told, "what": "begin"})
        try:
            self._hook("send")
            if self._first is not None and _is_first(self._file):
                self._first()
            await asyncio.sleep(self._latency_s)
            if candidate.name in self._dead:
                raise timed_out()
            if self._script:
                raise self._script.pop(0)
            self._hook("reply")
        finally:
            _tell(self._file, {**told, "what": "end"})
        return text_reply(f"answer of process {os.getpid()}")

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing is open."""


def _tell(file: str, event: dict[str, str]) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.write(descriptor, f"{json.dumps(event)}\n".encode())
    os.close(descriptor)


def _is_first(file: str) -> bool:
    """Return True once, to one of all processes."""
    try:
        os.close(os.open(f"{file}.first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def told(file: str | Path) -> list[dict[str, str]]:
    """Return the beginnings and ends of sends so far, in order."""
    path = Path(file)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sends(file: str | Path, what: str = "key") -> list[str]:
    """Return the key (or `run`, or `to`) of each send so far."""
    return [event[what] for event in told(file) if event["what"] == "begin"]


def overlapping(file: str | Path) -> list[str]:
    """Return the runs that began a send before the one before it had ended."""
    open_sends: set[str] = set()
    found = []
    for event in told(file):
        if event["what"] == "end":
            open_sends.discard(event["run"])
        elif event["run"] in open_sends:
            found.append(event["run"])
        else:
            open_sends.add(event["run"])
    return found


class Fate:
    """Sends itself a signal at a point: `before claim`, `in finish 3` (its third step), `send 2`, `after finish` ..."""

    def __init__(self, at: str, how: signal.Signals = signal.SIGKILL) -> None:
        self.at = at
        self._how = how
        self._seen: Counter[str] = Counter()

    def __call__(self, event: str) -> None:
        self._seen[event] += 1
        if self.at in {event, f"{event} {self._seen[event]}"}:
            self.at = ""
            os.kill(os.getpid(), self._how)

    def at_transitions(self, when: str) -> Callable[[str], None]:
        return lambda name: self(f"{when} {name}")


class _Dying(logging.Handler):
    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self._fate = fate

    def emit(self, record: logging.LogRecord) -> None:
        if "llm_spooled" in record.getMessage():
            self._fate("spool line")


def _break_off_writes() -> None:
    """Let the kernel kill this process in the middle of the next file that it writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF_A_LINE, HALF_A_LINE))


async def race(
    *,
    url: str,
    file: str,
    keys: list[str | None],
    settings: dict[str, Any],
    first: str | None = None,
    dead: tuple[str, ...] = (),
    latency_s: float = 0.05,
) -> Any:
    """Ask once for each key, all at once; return who was told what, and how many connections are still out.

    `first`: what becomes of the first send of all processes: `fails`, or `cancelled` with its caller.
    """

    def fail() -> None:
        raise LLMBadRequest("no", provider="ollama")

    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def ask(key: str | None) -> list[str]:
        try:
            answer = await rigged.llm.chat(request(idempotency_key=key))
        except LLMError as error:
            return [error.code, str(error)]
        except asyncio.CancelledError:
            return ["cancelled", ""]
        return [answer.served_from.value, answer.text]

    fates = {"fails": fail, "cancelled": cancel, None: None}
    client = Counted(file, latency_s=latency_s, first=fates[first], dead=tuple(dead))
    async with rig(url, client, clock=SystemClock(), **settings) as rigged:
        outcomes = await asyncio.gather(*(asyncio.create_task(ask(key)) for key in keys))
        await rigged.llm.drain()
        return {"outcomes": outcomes, "checked_out": rigged.checked_out()}


async def crash(*, url: str, file: str, key: str, at: str, spool: str) -> Any:
    """Call once and be killed at a point; `drain ...`: at a point of the next call, which drains the spool first."""
    return await _call_and_meet(
        Fate(at.removeprefix("drain ")), url=url, file=file, key=key, at=at, spool_dir=spool
    )


async def zombie(*, url: str, file: str, key: str, at: str, spool: str) -> Any:
    """Call once and be suspended at a point; return what the caller is told after that."""
    return await _call_and_meet(Fate(at, signal.SIGSTOP), url=url, file=file, key=key, at=at, spool_dir=spool)


async def _call_and_meet(fate: Fate, *, url: str, file: str, key: str, at: str, spool_dir: str) -> Any:
    script: list[Exception] = [limited()] if "note_send" in at or at == "send 2" else []
    drains, spools = at.startswith("drain "), at.startswith(("drain ", "spool "))
    client = Counted(file, hook=lambda event: None if drains else fate(event), script=script)
    async with rig(url, client, spool_dir=spool_dir) as rigged:
        ledger = rigged.ledger
        if spools:
            ledger.away_for = {"finish"}
            if at == "spool half a line":
                ledger.before = lambda name: _break_off_writes() if name == "finish" else None
            logging.getLogger().addHandler(_Dying(fate))
        if drains:
            await rigged.llm.chat(request(idempotency_key=key))
            key, ledger.away_for = f"{key}, next", set()
        if not spools or drains:
            ledger.before, ledger.between, ledger.after = map(fate.at_transitions, ("before", "in", "after"))
        try:
            answer = await rigged.llm.chat(request(idempotency_key=key))
        except LLMError as error:
            own = error.facts.get("answer")
            return {"error": error.code, "run": error.run_id, "own": own.text if own else None}
        return {"text": answer.text, "run": answer.run_id, "served_from": answer.served_from.value}


async def spool_and_die(*, url: str, file: str, key: str) -> Any:
    """Lose the database after the paid call, return the answer, and be killed."""
    async with rig(url, Counted(file)) as rigged:
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(request(idempotency_key=key))
        assert answer.persisted is False
        os.kill(os.getpid(), signal.SIGKILL)


async def inherit_and_die(*, url: str) -> Any:
    """Be killed while the lines of a dead process are copied."""
    _break_off_writes()
    async with rig(url):
        return "alive"


async def open_and_close(*, url: str) -> Any:
    """Start a service, migrating where that is due."""
    async with service(url, auto_migrate=True):
        return "ok"


async def take_places(*, url: str, asks: int, per_minute: int) -> list[float]:
    """Ask for places as fast as they are told of; return when each was taken, by the database's clock."""
    executor = connect(url, timeout_s=10)
    provider = LLMProvider.OLLAMA
    quota = Quota(requests=Rate.per_minute(per_minute))
    meter = SharedMeter(executor, {provider: quota}, telemetry=Telemetry())
    candidate = route_of(request()).kept[0]
    told = [await meter.ask(candidate, 1) for _ in range(asks)]
    await meter.close()
    await executor.close()
    return [each.at_s for each in told if not each.wait_s]


async def call_without_rights(*, url: str) -> Any:
    """Start a service as a user who may only read; return the error."""
    for name in ("alembic.command", "app.llm.persistence.executors.sqlite", "genai_prices.data"):
        importlib.import_module(name)  # before the interpreter's own files are out of reach

    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        async with service(url):
            return "opened"
    except LLMError as error:
        return [error.code, str(error)]


JOBS = {
    job.__name__: job
    for job in (
        *(race, crash, zombie, spool_and_die, inherit_and_die, open_and_close, call_without_rights),
        take_places,
    )
}


def _command(module: str = __name__) -> tuple[list[str], dict[str, str]]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "GEMINI_"))
    }
    return [sys.executable, "-m", module], environment


def run_jobs(jobs: list[dict[str, Any]]) -> list[Any]:
    """Run each job in a process of its own, all at once; a result is None where the process was killed.

    Raises:
        RuntimeError: A job failed otherwise.
    """
    command, environment = _command()
    done = programs.run(
        command, input=json.dumps(jobs).encode(), capture_output=True, cwd=ROOT, env=environment, timeout=50
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return list(json.loads(done.stdout))


class Worker:
    """A process that is told one line at a time, and says one."""

    def __init__(self, process: programs.Program) -> None:
        self._process = process

    async def told(self, line: str) -> str:
        """Return what it says to a line.

        Raises:
            RuntimeError: It ended instead.
        """
        return await asyncio.to_thread(self._told, line)

    def _told(self, line: str) -> str:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        if said := process.stdout.readline():
            return str(said).strip()
        _, errors = process.communicate()
        raise RuntimeError(errors[-2000:])

    async def run(self, jobs: list[dict[str, Any]]) -> list[Any]:
        """Run each job in a child, all at once; a result is None where the child was killed."""
        return list(json.loads(await self.told(json.dumps(jobs))))


@asynccontextmanager
async def worker(module: str = __name__) -> AsyncIterator[Worker]:
    """Yield a worker; it is killed afterwards, with all its children."""
    command, environment = _command(module)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with programs.Program(
        command, **pipes, text=True, cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        try:
            yield Worker(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@asynccontextmanager
async def suspended(jobs: list[dict[str, Any]]) -> AsyncIterator[list[Any]]:
    """Yield while every job has stopped itself; they go on afterwards, and the list is filled with their results."""
    results: list[Any] = []
    async with worker() as process:
        assert await process.told(json.dumps(jobs)) == "stopped"
        yield results
        results.extend(json.loads(await process.told("go on")))


def _fork(job: dict[str, Any], start: int, go: int, result: Path) -> int:
    if (pid := os.fork()) != 0:
        return pid
    status = 1
    try:
        os.close(go)
        os.read(start, 1)  # ends when the parent closes its end: all start at once
        with result.open("w") as file:  # before the job gives up any right
            file.write(json.dumps(asyncio.run(JOBS[job.pop("job")](**job))))
        status = 0
    except BaseException:
        logging.getLogger().exception("a job failed")
        raise
    finally:
        os._exit(status)


def serve() -> None:
    """Run the jobs of each line, until there are no more lines."""
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(_results(json.loads(line))), flush=True)  # noqa: T201  # whoever started us reads it


def _results(jobs: list[dict[str, Any]]) -> list[Any]:
    start, go = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / str(number) for number in range(len(jobs))]
        children = [_fork(job, start, go, result) for job, result in zip(jobs, results, strict=True)]
        os.close(go)
        os.close(start)
        states = [os.waitpid(pid, os.WUNTRACED)[1] for pid in children]
        if any(map(os.WIFSTOPPED, states)):
            print("stopped", flush=True)  # noqa: T201  # as above
            sys.stdin.readline()
            for number, pid in enumerate(children):
                if os.WIFSTOPPED(states[number]):
                    os.kill(pid, signal.SIGCONT)
                    states[number] = os.waitpid(pid, 0)[1]
        if any(os.WIFEXITED(state) and os.WEXITSTATUS(state) for state in states):
            sys.exit(1)
        return [
            None if os.WIFSIGNALED(state) else json.loads(path.read_text())
            for state, path in zip(states, results, strict=True)
        ]


if __name__ == "__main__":
    serve()

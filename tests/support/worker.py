"""Other processes: one interpreter that imports once and forks a child for each job, so that a crash test is cheap.

`python -m tests.support.worker` reads {"jobs": [...]} from its standard input, forks, lets all children start at
once, and writes one line of JSON for each job: its result, or the signal that ended it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.llm.candidates import Candidate
from app.llm.errors import LLMError
from app.llm.ports import ProviderReply
from app.llm.testing.client import text_reply
from app.llm.types import LLMRequest
from tests.support.ledger import ROOT, request
from tests.support.service import rig, service


class Counted:
    """A client whose sends are counted in a file that all processes append to."""

    def __init__(
        self, file: str, *, latency_s: float = 0.0, hook: Callable[[str], None] | None = None
    ) -> None:
        self._file = file
        self._latency_s = latency_s
        self._hook = hook or (lambda _: None)

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,  # noqa: ARG002  # the port's signature
        *,
        run_id: str,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002
        on_send: Callable[[float], None],
    ) -> ProviderReply:
        on_send(0.0)
        count_send(self._file, request.idempotency_key or "-")
        self._hook("send")
        await asyncio.sleep(self._latency_s)
        return text_reply(f"answer of process {os.getpid()}")

    async def close(self) -> None:
        """Nothing is open."""


def count_send(file: str, key: str) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.write(descriptor, f"{key}\n".encode())
    os.close(descriptor)


def sends(file: str | Path) -> list[str]:
    """Return the key of each send so far."""
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def race(*, url: str, file: str, key: str, tasks: int, mode: str, latency_s: float = 0.05) -> Any:
    """Ask `tasks` times at once; return each outcome: the answer's text, or the error's code."""

    async def ask() -> str:
        try:
            return (await llm.chat(request(idempotency_key=key))).text
        except LLMError as error:
            return f"{error.code}: {error}"

    async with service(url, Counted(file, latency_s=latency_s), on_in_progress=mode) as llm:
        return await asyncio.gather(*(ask() for _ in range(tasks)))


async def crash(*, url: str, file: str, key: str, at: str) -> Any:
    """Call once and be killed at a point: `before claim`, `in claim`, `after claim`, `send`, `before finish` ..."""

    def hook(when: str) -> Callable[[str], None]:
        return lambda name: die() if f"{when} {name}" == at else None

    client = Counted(file, hook=lambda _: die() if at == "send" else None)
    async with rig(url, client) as rigged:
        rigged.ledger.before, rigged.ledger.between, rigged.ledger.after = map(
            hook, ("before", "in", "after")
        )
        return (await rigged.llm.chat(request(idempotency_key=key))).text


async def spool_and_die(*, url: str, file: str, key: str) -> Any:
    """Lose the database after the paid call, return the answer, and be killed."""
    async with rig(url, Counted(file)) as rigged:
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(request(idempotency_key=key))
        assert answer.persisted is False
        die()


async def open_and_close(*, url: str) -> Any:
    """Start a service, migrating where that is due."""
    async with service(url, auto_migrate=True):
        return "ok"


JOBS = {job.__name__: job for job in (race, crash, spool_and_die, open_and_close)}


def run_jobs(jobs: list[dict[str, Any]]) -> list[Any]:
    """Run each job in a process of its own, all at once; a result is None where the process was killed.

    Raises:
        RuntimeError: A job failed otherwise.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "GEMINI_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.worker"],
        input=json.dumps(jobs).encode(),
        capture_output=True,
        cwd=ROOT,
        env=environment,
        timeout=50,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return list(json.loads(done.stdout))


def _main() -> None:
    jobs = json.loads(sys.stdin.read())
    start, go = os.pipe()
    children = []
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs):
            result = Path(folder) / str(number)
            if (pid := os.fork()) == 0:
                os.close(go)
                os.read(start, 1)  # ends when the parent closes its end: all start at once
                made = asyncio.run(JOBS[job.pop("job")](**job))
                result.write_text(json.dumps(made))
                os._exit(0)
            children.append((pid, result))
        os.close(go)
        states = [os.waitpid(pid, 0)[1] for pid, _ in children]
        if any(os.WIFEXITED(state) and os.WEXITSTATUS(state) for state in states):
            sys.exit(1)
        killed = [os.WIFSIGNALED(state) for state in states]
        json.dump(
            [
                None if dead else json.loads(path.read_text())
                for dead, (_, path) in zip(killed, children, strict=True)
            ],
            sys.stdout,
        )


if __name__ == "__main__":
    _main()

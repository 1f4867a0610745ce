"""Programs that start in milliseconds: forked by one interpreter, which has loaded LiteLLM and `app` for all tests.

Such a program has what a fresh process has: arguments, directory, environment, streams, signals and an end of its own.
What an interpreter loads, and what its own options tell it, is tested with `subprocess`.
"""

import atexit
import functools
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import forks
from tests.support.forks import HEADER

CARRIED_OUT = {"cwd", "env", "stdin", "stdout", "stderr", "text", "bufsize", "start_new_session"}
"""Options of `Popen` that it knows."""

_asking = threading.Lock()


class Program(subprocess.Popen[Any]):
    """`Popen([sys.executable, ...])` of a file, of `-m` or of `-c`, which heeds Ctrl-C whatever its parent does."""

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        if ignored := options.keys() - CARRIED_OUT:
            raise TypeError(f"a forked program has no {', '.join(sorted(ignored))}: use subprocess")
        super().__init__(args, **options)

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        cwd, env, pipes, session = rest[4], rest[5], rest[9:15], rest[20]
        asked = {
            "words": [*args][1:],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": session,
        }
        self._end, end = os.pipe()
        streams = [
            own if theirs == -1 else theirs for own, theirs in enumerate((pipes[0], pipes[3], pipes[5]))
        ]
        try:
            _ask(json.dumps(asked).encode(), [*streams, end])
        finally:
            os.close(end)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        self.pid = self._said()
        self._child_created = True

    def _said(self) -> int:
        if len(said := os.read(self._end, HEADER)) != HEADER:
            raise RuntimeError("what starts the programs of the tests has ended")
        return int.from_bytes(said)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags and not select.select([self._end], [], [], 0)[0]:
            return 0, 0
        status = self._said()
        os.close(self._end)
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def run(
    args: Sequence[str],
    *,
    timeout: float,
    check: bool = False,
    capture_output: bool = False,
    input: Any = None,  # noqa: A002  # as `subprocess.run` has it
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program as `subprocess.run` would."""
    pipe = subprocess.PIPE
    options |= {"stdout": pipe, "stderr": pipe} if capture_output else {}
    options |= {"stdin": pipe} if input is not None else {}
    with Program(args, **options) as program:
        try:
            out, err = program.communicate(input, timeout=timeout)
        except BaseException:
            program.kill()
            raise
    done = subprocess.CompletedProcess(args, program.returncode, out, err)
    if check:
        done.check_returncode()
    return done


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    given = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "GEMINI_"))}
    given.pop("PYTHONPATH", None)
    server = subprocess.Popen(
        [sys.executable, forks.__file__, str(theirs.fileno()), *sys.path],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        cwd=forks.ROOT,
        env=given,
        start_new_session=True,
    )
    theirs.close()
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def _ask(asked: bytes, descriptors: list[int]) -> None:
    with _asking:
        socket.send_fds(_server(), [len(asked).to_bytes(HEADER)], descriptors)
        _server().sendall(asked)

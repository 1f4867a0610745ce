"""The interpreter that `tests.support.programs` asks: it loads what takes long, and forks each program."""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
HEADER = 8
"""Bytes of a number on a pipe."""
LOADED = (
    *("app.bootstrap", "app.cli", "app.llm.client_litellm", "app.llm.pydanticai", "app.llm.testing"),
    *("app.llm.persistence.autonomous", "app.llm.persistence.schema", "app.db.migrate", "alembic.command"),
    *("app.llm.persistence.executors.sqlite", "app.llm.persistence.executors.postgres", "genai_prices.data"),
)


def _serve(asks: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return in each child what it is asked to be, and its descriptors; return in no other process."""
    ended, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([asks, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _tell_of_the_ended(children)
        if asks not in ready:
            continue
        header, descriptors, _, _ = socket.recv_fds(asks, HEADER, 4)
        if not header:
            os._exit(0)
        asked = json.loads(_exactly(asks, int.from_bytes(header)))
        if not (pid := os.fork()):
            signal.set_wakeup_fd(-1)
            for each in (*children.values(), ended, end, asks.detach()):
                os.close(each)
            return asked, descriptors
        for each in descriptors[:3]:
            os.close(each)
        children[pid] = descriptors[3]
        os.write(children[pid], pid.to_bytes(HEADER))


def _exactly(asks: socket.socket, size: int) -> bytes:
    said = b""
    while len(said) < size:
        if not (part := asks.recv(size - len(said))):
            os._exit(0)
        said += part
    return said


def _tell_of_the_ended(children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        end = children.pop(pid)
        try:
            os.write(end, status.to_bytes(HEADER))
        except BrokenPipeError:  # nobody waits for it any more
            continue
        finally:
            os.close(end)


def _become(asked: dict[str, Any], descriptors: list[int]) -> None:
    """Make this process what the interpreter makes of itself before it runs a program."""
    for number, each in enumerate(descriptors[:3]):
        os.dup2(each, number)
    for each in descriptors:
        os.close(each)
    if asked["session"]:
        os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    stream = functools.partial(open, encoding="utf-8", closefd=False)
    sys.stdin = sys.__stdin__ = stream(0)
    sys.stdout = sys.__stdout__ = stream(1, "w")
    sys.stderr = sys.__stderr__ = stream(2, "w", buffering=1, errors="backslashreplace")


def _run(words: list[str], known: set[str], site: list[str]) -> None:
    """Run a program where it finds its modules; `app` is imported anew if a place is added: it may bring another one.

    Args:
        words: Its command line, without the interpreter.
        known: Places where there is no other `app`, and no provider.
        site: Where every interpreter looks.
    """
    given = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    if not {*given} <= known:
        for name in [each for each in sys.modules if each.partition(".")[0] == "app"]:
            del sys.modules[name]
    way, *rest = words
    sys.path[:] = [{"-c": "", "-m": str(Path.cwd())}.get(way, str(Path(way).parent)), *given, *site]
    sys.argv[:] = [way, *rest[1:]] if way in {"-c", "-m"} else words
    if way == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif way == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)  # noqa: S102  # the program
    else:
        runpy.run_path(way, run_name="__main__")


def _end(code: object) -> None:
    """End as an interpreter does, but for taking its modules apart, which would cost more than all the rest."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if (names := vars(sys.modules["__main__"])) is not globals():
        names.clear()
    gc.collect()  # what the program has forgotten complains
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def main() -> None:
    """Load what takes long, then be each program that is asked for."""
    site = sys.path[1:]
    known = {str(ROOT), *sys.argv[2:], *site}
    sys.path[0] = str(ROOT)
    for name in LOADED:
        importlib.import_module(name)
    importlib.import_module("app.llm.wire.loading").load_litellm()
    gc.collect()
    gc.freeze()
    asked, descriptors = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(asked, descriptors)
    code: object = None
    try:
        _run(asked["words"], known, site)
    except SystemExit as ended:
        code = ended.code
        if not isinstance(code, int | None):
            sys.stderr.write(f"{code}\n")
    except Exception:  # noqa: BLE001  # of the program, whatever it is
        code = 1
        traceback.print_exc()
    _end(code)


if __name__ == "__main__":
    main()

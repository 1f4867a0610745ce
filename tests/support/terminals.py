"""A command with a terminal in front of it."""

import os
import pty
import sys
from collections.abc import Mapping

from tests.support import programs


def on_terminal(*args: str, **variables: str) -> tuple[int, str]:
    """Return the exit code of `signalbox` and all that it wrote to its terminal, colours included."""
    ours, theirs = pty.openpty()
    environment: Mapping[str, str] = {
        **{name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TERM": "xterm-256color",
        "COLUMNS": "120",
        "PYTHONUTF8": "1",
        **variables,
    }
    child = programs.Program(
        [sys.executable, "-m", "app", *args], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said: list[bytes] = []
    try:
        while piece := os.read(ours, 65_536):
            said.append(piece)
    except OSError:  # how Linux says that nobody is at the other end any more
        said.append(b"")
    finally:
        os.close(ours)
    return child.wait(timeout=20), b"".join(said).decode()

"""A program that is forked for a test ends as one that an interpreter of its own runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import programs

PROGRAMS = {
    "a text": "import sys; print('out'); sys.exit('no')",
    "a number": "import sys; sys.exit(3)",
    "an error": "1 / 0",
    "Ctrl-C": (  # where the tests run in the background, a process of their own is told to ignore it
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.kill(os.getpid(), signal.SIGINT)"
    ),
    "a signal": "import os; os.kill(os.getpid(), 9)",
    "a late word": "import atexit; late = 'late'; atexit.register(lambda: print(late))",
    "half a line": "import sys; sys.stderr.write('half')",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.01), print('on'))).start()",
    "a forgotten task": (
        "import asyncio\n"
        "async def fails(): raise ValueError('forgotten')\n"
        "async def main():\n"
        "    global kept\n"
        "    kept = asyncio.create_task(fails())\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    ),
    "surroundings": "import os, sys; print(sys.argv, os.getcwd(), sorted(os.environ), sys.stdin.read())",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_ends_as_in_an_interpreter_of_its_own(program: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", program, "word"]
    forked, fresh = (
        run(
            command,
            input="read",
            cwd=tmp_path,
            env={"LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        for run in (programs.run, subprocess.run)
    )
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_an_option_that_it_cannot_carry_out_is_refused() -> None:
    with pytest.raises(TypeError, match="no umask"):
        programs.run([sys.executable, "-c", ""], umask=0, timeout=1)


def test_it_is_told_of_by_its_number_and_can_be_stopped() -> None:
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    with programs.Program(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert int(program.stdout.readline()) == program.pid
        assert program.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(timeout=0.01)
        program.terminate()
        assert program.wait(timeout=20) == -15


def test_an_app_of_another_place_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("other = True")
    command = [sys.executable, "-c", "import app; print(app.other)"]
    done = programs.run(
        command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=40
    )
    assert (done.stdout, done.stderr) == ("True\n", "")

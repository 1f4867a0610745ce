"""Break the code on purpose, one promise at a time, and demand that a test notices: `tools/sabotage.py [NAME ...]`.

Each break of tests/sabotage/breaks.py is applied to a copy of the tree; only the tests that it names run, and one of
them must fail. A run of all breaks writes docs/sabotage.json.
"""

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.sabotage.breaks import BREAKS  # noqa: E402  # found through the line above
from tests.sabotage.patch import Break  # noqa: E402  # as above

WORKERS = 2
TEST_S = 30.0
"""Seconds for one test; what hangs longer is a fault of the harness, unless the break says that it hangs."""
RUN_S = 240.0
"""Seconds for one run of pytest."""
REPORT = ROOT / "docs" / "sabotage.json"

_FAILED = re.compile(r"^FAILED (?P<test>\S+::.+?)(?: - (?P<why>.*))?$", re.MULTILINE)
_PASSED, _TESTS_FAILED = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one break. `caught_by`: the first test that failed; else `fault` says what went wrong."""

    broken: Break
    seconds: float
    caught_by: str | None = None
    fault: str | None = None

    def __str__(self) -> str:
        word = f"caught by {self.caught_by}" if self.caught_by else self.fault
        return f"{self.broken.promise:<12}{self.broken.name}: {word} ({self.seconds:.1f} s)"


def main(names: Sequence[str]) -> int:
    """Run the named breaks, or all; return the exit code: 0 when every one was caught."""
    known = {each.name: each for each in BREAKS}
    if unknown := [name for name in names if name not in known]:
        _say(f"no such break: {', '.join(unknown)}")
        return 2
    chosen = [known[name] for name in names] or list(BREAKS)
    with ExitStack() as stack:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for _ in range(WORKERS):
            trees.put(_copy(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sabotage-")))))
        if fault := _whole(chosen, trees):
            _say(fault)
            return 1
        verdicts = list(_judged(chosen, trees))
    missed = [verdict for verdict in verdicts if verdict.caught_by is None]
    _say(f"{len(verdicts) - len(missed)} of {len(verdicts)} breaks were caught")
    if not names:
        _report(verdicts)
    return 1 if missed else 0


def _copy(folder: Path) -> Path:
    """Copy what git tracks and what it would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607  # git of the PATH
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # else it was deleted and git was not told
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _whole(chosen: Sequence[Break], trees: "queue.SimpleQueue[Path]") -> str | None:
    """Return what is wrong with the unbroken copies; None when they are imported and their tests pass."""
    tests = sorted({test for each in chosen for test in each.tests})
    halves = [half for half in (tests[0::WORKERS], tests[1::WORKERS]) if half]

    def run(half: list[str]) -> str | None:
        tree = trees.get()
        try:
            imported = _python(tree, "-c", "import app; print(app.__file__)").stdout.strip()
            if imported != str(tree / "app" / "__init__.py"):
                return f"the copy is not what is imported: {imported}"
            done = _pytest(tree, half, timeout_s=60.0, bytecode=True)
            return None if done.returncode == _PASSED else f"unbroken, and yet:\n{_end(done)}"
        finally:
            trees.put(tree)

    began = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        faults = [fault for fault in pool.map(run, halves) if fault]
    _say(f"{len(tests)} tests on the unbroken copy ({time.monotonic() - began:.1f} s)")
    return "\n".join(faults) or None


def _judged(chosen: Sequence[Break], trees: "queue.SimpleQueue[Path]") -> Iterator[Verdict]:
    def run(broken: Break) -> Verdict:
        tree = trees.get()
        try:
            return _judge(broken, tree)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(WORKERS) as pool:
        for verdict in pool.map(run, chosen):
            _say(str(verdict))
            yield verdict


def _judge(broken: Break, tree: Path) -> Verdict:
    began, file = time.monotonic(), tree / broken.file
    whole, times = file.read_text(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    try:
        changed = broken.applied(whole)
    except LookupError as error:
        return Verdict(broken=broken, seconds=0.0, fault=f"STALE: {error}")
    try:
        file.write_text(changed)
        done = _pytest(tree, broken.tests, timeout_s=broken.hangs_s or TEST_S)
    finally:
        file.write_text(whole)
        os.utime(file, ns=times)  # the bytecode of the unbroken file is good again
    caught_by, fault = _read(done, hangs=broken.hangs_s is not None)
    return Verdict(broken=broken, seconds=time.monotonic() - began, caught_by=caught_by, fault=fault)


def _read(done: "subprocess.CompletedProcess[str]", *, hangs: bool) -> tuple[str | None, str | None]:
    """Return the test that failed, or the fault."""
    if done.returncode == _PASSED:
        return None, "SURVIVED"
    failed = _FAILED.search(done.stdout)
    if done.returncode != _TESTS_FAILED or failed is None:
        return None, f"FAULT: pytest ended with {done.returncode}\n{_end(done)}"
    if "Timeout (>" in (failed["why"] or "") and not hangs:
        return None, f"FAULT: {failed['test']} hangs"
    return failed["test"], None


def _pytest(
    tree: Path, tests: Sequence[str], *, timeout_s: float, bytecode: bool = False
) -> "subprocess.CompletedProcess[str]":
    options = ("-x", "-q", "-p", "no:cacheprovider", f"--timeout={timeout_s:g}")
    return _python(tree, "-m", "pytest", *options, *tests, bytecode=bytecode)


def _python(tree: Path, *arguments: str, bytecode: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run this interpreter in a copy, whose `app` comes before the installed one."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "1000"}
    environment["PYTHONDONTWRITEBYTECODE"] = "" if bytecode else "1"  # of a broken file nothing may stay
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(  # noqa: S603  # ourselves
            command,
            cwd=tree,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, stdout=f"no end after {RUN_S:g} s", stderr="")


def _end(done: "subprocess.CompletedProcess[str]") -> str:
    return "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-25:])


def _report(verdicts: Sequence[Verdict]) -> None:
    """Write what each break was caught by; parameters of a test are left out, for they are details."""
    breaks = [
        {
            "name": verdict.broken.name,
            "promise": verdict.broken.promise,
            "caught_by": verdict.caught_by and verdict.caught_by.partition("[")[0],
        }
        for verdict in verdicts
    ]
    REPORT.parent.mkdir(exist_ok=True)
    report = {"date": datetime.now(UTC).date().isoformat(), "breaks": breaks}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

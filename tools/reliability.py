"""docs/RELIABILITY.md: each promise beside the tests that name it and the breaks that they caught.

`python -m tools.reliability` writes the page, `--check` says whether it is stale. `--tests` prints what a crash run has
to run, and `--tried FILE --rounds N` takes its result (JUnit XML) into docs/crash.json first.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
PAGE, CRASH, SABOTAGE = (ROOT / "docs" / name for name in ("RELIABILITY.md", "crash.json", "sabotage.json"))
LONG_SUITES = ("tests/crash", "tests/property")
Named = Mapping[str, set[str]]
"""Promises by test."""
Tests = Mapping[str, Mapping[str, int]]
"""How often each test `tried`, and `failed`."""
BEGIN, END = "<!-- reliability:begin -->", "<!-- reliability:end -->"

PROMISES: Mapping[str, str] = {
    "I1": "At most one run per workspace and key is live or answered.",
    "I2": "N racers on one key: one live run, one distinct answer.",
    "I3": "STARTED is visible to other connections before the provider is called.",
    "I4": "No lock and no connection is held while the provider works.",
    "I5": "All callers of a key that get an answer get the same one.",
    "I6": "Every send has a committed row before it.",
    "I7": "Runs of a key beyond the first never outnumber crashes, suspensions, calls after a failure, long outages.",
    "I8": "A fenced owner changes no other row.",
    "I9": "A caller's rollback removes no run.",
    "I10": "FAILED and CANCELLED free the key at once, a dead owner's key is free after its lease.",
    "I11": "Cancelling anywhere leaves no STARTED row and no connection checked out.",
    "I12": "Finish and drain may be repeated.",
    "I13": "Nothing of one workspace is visible to another.",
    "I14": "No payload makes finish raise.",
    "I15": "The same key with another request never returns the stored answer.",
    "I16": "A finished row never changes, but for expiry, retention, late accounting and replay counts.",
    "I17": "A secret appears in no row, log, spool, repr, traceback or exception chain.",
    "I18": "Prune skips live runs and live keys.",
    "I19": "Files are private to their owner.",
    "I20": "Every answered run with stored texts has both readable, under a concurrent prune as well.",
}


def main() -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.reliability", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    parser.add_argument("--tests", action="store_true", help="print what a crash run has to run")
    parser.add_argument("--tried", type=Path, help="JUnit XML of a crash run")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of that run")
    asked = parser.parse_args()
    named = dict(tests_with_promises())
    if asked.tests:
        elsewhere = (test for test in named if not test.startswith(LONG_SUITES))
        sys.stdout.write("\n".join([*LONG_SUITES, *elsewhere]) + "\n")
        return 0
    if asked.tried:
        CRASH.write_text(json.dumps(_tried(asked.tried, asked.rounds), indent=1) + "\n", encoding="utf-8")
    breaks = json.loads(SABOTAGE.read_text(encoding="utf-8"))["breaks"]
    run = json.loads(CRASH.read_text(encoding="utf-8"))
    if faults := disagreements(named, breaks, run["tests"]):
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    text = PAGE.read_text(encoding="utf-8")
    wanted = renewed(text, named, breaks, run)
    if wanted == text:
        return 0
    if not asked.check:
        PAGE.write_text(wanted, encoding="utf-8")
    sys.stderr.write(f"{PAGE.name}: {'stale, run `make docs`' if asked.check else 'written'}\n")
    return int(asked.check)


def disagreements(named: Named, breaks: Sequence[Mapping[str, str]], tests: Tests) -> list[str]:
    """Return one line for each promise that nobody tests, tries or breaks, and for each test or break that failed."""
    count = Counter(promise for promises in named.values() for promise in promises)
    tried = Counter(promise for test in named.keys() & tests.keys() for promise in named[test])
    broken = {entry["promise"] for entry in breaks}
    faults = [f"{promise}: no test names it" for promise in PROMISES if not count[promise]]
    faults += [f"{promise}: no test of the crash run names it" for promise in PROMISES if not tried[promise]]
    faults += [f"{promise}: no break tries it" for promise in PROMISES if promise not in broken]
    faults += [f"{test}: failed in the crash run" for test, outcome in tests.items() if outcome["failed"]]
    faults += [f"{entry['name']}: survived" for entry in breaks if not entry.get("caught_by")]
    return faults


def tests_with_promises() -> Iterator[tuple[str, set[str]]]:
    """Yield the tests that name promises, in their docstring or that of their file."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        common = _promises(ast.get_docstring(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                named = common | _promises(ast.get_docstring(node))
                if named:
                    yield f"{path.relative_to(ROOT)}::{node.name}", named


def renewed(text: str, named: Named, breaks: Sequence[Mapping[str, str]], run: Mapping[str, Any]) -> str:
    """Return the page with its tables renewed.

    Raises:
        ValueError: The page has lost its markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs {BEGIN} and {END} around its tables")
    tables = f"{_promise_table(named, breaks, run)}\n\n{_test_lists(named, run['tests'])}"
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def _promises(docstring: str | None) -> set[str]:
    return {found for found in re.findall(r"\bI\d{1,2}\b", docstring or "") if found in PROMISES}


def _promise_table(named: Named, breaks: Sequence[Mapping[str, str]], run: Mapping[str, Any]) -> str:
    tests: Tests = run["tests"]
    broken = Counter(entry["promise"] for entry in breaks)
    lines = [
        f"Tried on {run['date']}, rounds: {run['rounds']}.",
        "",
        "| promise | tests | tried | failed | breaks | caught |",
        "|---|---|---|---|---|---|",
    ]
    for promise, text in PROMISES.items():
        its = [test for test, promises in named.items() if promise in promises]
        tried, failed = (
            sum(tests[test][what] for test in its if test in tests) for what in ("tried", "failed")
        )
        lines.append(
            f"| {promise}: {text} | {len(its)} | {tried:,} | {failed} | {broken[promise]} | {broken[promise]} |"
        )
    others = sorted(set(broken) - set(PROMISES))
    lines += [f"| rules of: {name} | | | | {broken[name]} | {broken[name]} |" for name in others]
    total = sum(outcome["tried"] for outcome in tests.values())
    return "\n".join(
        [
            *lines,
            f"| all, each test once | {len(tests)} | {total:,} | 0 | {broken.total()} | {broken.total()} |",
        ]
    )


def _test_lists(named: Named, tests: Tests) -> str:
    """Return the tests of each promise, with how often each tried it."""
    blocks = []
    for promise in PROMISES:
        its = sorted(test for test, promises in named.items() if promise in promises)
        lines = (f"* `{test.removeprefix('tests/')}`: {_outcome(tests.get(test))}" for test in its)
        blocks.append(
            "\n".join([f"<details><summary>{promise}: its tests</summary>", "", *lines, "", "</details>"])
        )
    return "\n".join(blocks)


def _outcome(outcome: Mapping[str, int] | None) -> str:
    if outcome is None:
        return "not in that run"
    return f"{outcome['tried']:,} tried, {outcome['failed'] or 'none'} failed"


def _tried(report: Path, rounds: int) -> dict[str, object]:
    tests: dict[str, Counter[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest wrote it a moment ago
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        said = [each.get("value") for each in case.iter("property") if each.get("name") == "tried"]
        outcome = tests.setdefault(name, Counter(tried=0, failed=0))
        outcome["tried"] += int(said[0] or 1) if said else 1
        outcome["failed"] += any(child.tag in {"failure", "error"} for child in case)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        "tests": {name: dict(tests[name]) for name in sorted(tests)},
    }


if __name__ == "__main__":
    sys.exit(main())

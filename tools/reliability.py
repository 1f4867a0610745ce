"""docs/RELIABILITY.md: each promise beside the tests that name it and the breaks that they caught.

`python -m tools.reliability` writes the page, `--check` says whether it is stale. `--tests` prints what a crash run has
to run, and `--tried FILE --rounds N` takes its result (JUnit XML) into docs/crash.json first. Failures are recorded as
well; whatever disagrees is told on standard error, and the exit code is 1.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tests.sabotage.breaks import BREAKS

ROOT = Path(__file__).resolve().parents[1]
PAGE, CRASH, SABOTAGE = (ROOT / "docs" / name for name in ("RELIABILITY.md", "crash.json", "sabotage.json"))
LONG_SUITES = ("tests/crash", "tests/property")
Named = Mapping[str, set[str]]
"""Promises by test; none for most tests."""
Tests = Mapping[str, Mapping[str, int]]
"""How often each test `tried`, and `failed`."""
Breaks = Sequence[Mapping[str, str]]
"""The `name` and the `promise` of each break, and what test it was `caught_by`."""
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
    "I16": "A finished row never changes, but for expiry, retention, late accounting, replay counts and costs that were unknown.",
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
    named = dict(tests_and_promises())
    if asked.tests:
        elsewhere = (test for test in _naming(named) if not test.startswith(LONG_SUITES))
        sys.stdout.write("\n".join([*LONG_SUITES, *elsewhere]) + "\n")
        return 0
    if asked.tried:
        run = _tried(asked.tried, asked.rounds)
        if missing := sorted(set(_naming(named)) - set(run["tests"])):
            sys.stderr.write(
                "\n".join(f"{test}: not in that run, which is not recorded" for test in missing) + "\n"
            )
            return 1
        CRASH.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    breaks = json.loads(SABOTAGE.read_text(encoding="utf-8"))["breaks"]
    run = json.loads(CRASH.read_text(encoding="utf-8"))
    run["tests"] = {test: outcome for test, outcome in run["tests"].items() if test in named}
    faults = disagreements(named, breaks, run["tests"])
    text = PAGE.read_text(encoding="utf-8")
    wanted = renewed(text, named, breaks, run)
    if wanted != text and asked.check:
        faults.append(f"{PAGE.name}: stale, run `make docs`")
    elif wanted != text:
        PAGE.write_text(wanted, encoding="utf-8")
        sys.stderr.write(f"{PAGE.name}: written\n")
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return int(bool(faults))


def disagreements(named: Named, breaks: Breaks, tests: Tests) -> list[str]:
    """Return one line for each promise that is not tested, tried and broken, and for each result that is bad or old."""
    count = Counter(promise for promises in named.values() for promise in promises)
    tried = Counter(promise for test, outcome in tests.items() if outcome["tried"] for promise in named[test])
    broken = {entry["promise"] for entry in breaks}
    faults = [f"{promise}: no test names it" for promise in PROMISES if not count[promise]]
    faults += [f"{promise}: no test of the crash run tried it" for promise in PROMISES if not tried[promise]]
    faults += [f"{promise}: no break tries it" for promise in PROMISES if promise not in broken]
    faults += [f"{test}: failed in the crash run" for test, outcome in tests.items() if outcome["failed"]]
    faults += [
        f"{test}: skipped in the crash run"
        for test in _naming(named)
        if test in tests and not tests[test]["tried"]
    ]
    return [*faults, *_faults_of_breaks(named, breaks)]


def _faults_of_breaks(named: Named, breaks: Breaks) -> list[str]:
    """Return one line for each break that survived or was never made, and for each result of what is gone by now."""
    made = {(entry["name"], entry["promise"]) for entry in breaks}
    known = {(each.name, each.promise) for each in BREAKS}
    faults = [
        f"{name} ({promise}): never made, run `make sabotage`" for name, promise in sorted(known - made)
    ]
    faults += [
        f"{name} ({promise}): no such break, run `make sabotage`" for name, promise in sorted(made - known)
    ]
    faults += [f"{entry['name']}: survived" for entry in breaks if not entry.get("caught_by")]
    return faults + [
        f"{entry['name']}: was caught by {test}, which is gone: run `make sabotage`"
        for entry in breaks
        if (test := entry.get("caught_by")) and test not in named
    ]


def tests_and_promises() -> Iterator[tuple[str, set[str]]]:
    """Yield every test and the promises that it names, in its docstring or that of its file."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        common = _promises(ast.get_docstring(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT)}::{node.name}", common | _promises(ast.get_docstring(node))


def renewed(text: str, named: Named, breaks: Breaks, run: Mapping[str, Any]) -> str:
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


def _naming(named: Named) -> list[str]:
    return [test for test, promises in named.items() if promises]


def _promises(docstring: str | None) -> set[str]:
    return {found for found in re.findall(r"\bI\d{1,2}\b", docstring or "") if found in PROMISES}


def _promise_table(named: Named, breaks: Breaks, run: Mapping[str, Any]) -> str:
    tests: Tests = run["tests"]
    broken = Counter(entry["promise"] for entry in breaks)
    caught = Counter(entry["promise"] for entry in breaks if entry.get("caught_by"))
    lines = [
        f"Tried on {run['date']}, rounds: {run['rounds']}.",
        "",
        "| promise | tests | tried | failed | breaks | caught |",
        "|---|---|---|---|---|---|",
    ]
    for promise, text in PROMISES.items():
        its = [test for test, promises in named.items() if promise in promises]
        tried, failed = _sums(tests, its)
        lines.append(
            f"| {promise}: {text} | {len(its)} | {tried:,} | {failed} | {broken[promise]} | {caught[promise]} |"
        )
    others = sorted(set(broken) - set(PROMISES))
    lines += [f"| rules of: {name} | | | | {broken[name]} | {caught[name]} |" for name in others]
    tried, failed = _sums(tests, tests)
    lines.append(
        f"| all, each test once | {len(tests)} | {tried:,} | {failed} | {broken.total()} | {caught.total()} |"
    )
    return "\n".join(lines)


def _sums(tests: Tests, wanted: Iterable[str]) -> tuple[int, int]:
    """Return how often these tests of a run tried something, and how often they failed."""
    outcomes = [tests[test] for test in wanted if test in tests]
    return sum(each["tried"] for each in outcomes), sum(each["failed"] for each in outcomes)


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


def _tried(report: Path, rounds: int) -> dict[str, Any]:
    """Return how often each test of a run tried, and failed; what was skipped has tried nothing."""
    tests: dict[str, Counter[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest wrote it a moment ago
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        said = [each.get("value") for each in case.iter("property") if each.get("name") == "tried"]
        ended = {child.tag for child in case}
        outcome = tests.setdefault(name, Counter(tried=0, failed=0))
        outcome["tried"] += 0 if "skipped" in ended else int(said[0] or 1) if said else 1
        outcome["failed"] += bool(ended & {"failure", "error"})
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        "tests": {name: dict(tests[name]) for name in sorted(tests)},
    }


if __name__ == "__main__":
    sys.exit(main())

"""docs/RELIABILITY.md: each promise beside the tests that name it and the breaks that they caught.

`python -m tools.reliability` writes the page, `--check` says whether it is stale, and `--tried FILE --rounds N` first
takes the result of a crash run (JUnit XML) into docs/crash.json.
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
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
PAGE, CRASH, SABOTAGE = (ROOT / "docs" / name for name in ("RELIABILITY.md", "crash.json", "sabotage.json"))
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
    parser.add_argument("--tried", type=Path, help="JUnit XML of a crash run")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of that run")
    asked = parser.parse_args()
    if asked.tried:
        CRASH.write_text(json.dumps(_tried(asked.tried, asked.rounds), indent=1) + "\n", encoding="utf-8")
    breaks = json.loads(SABOTAGE.read_text(encoding="utf-8"))["breaks"]
    named = Counter(promise for _, promises in tests_with_promises() for promise in promises)
    if faults := disagreements(named, breaks):
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    text = PAGE.read_text(encoding="utf-8")
    wanted = renewed(text, named, breaks)
    if wanted == text:
        return 0
    if not asked.check:
        PAGE.write_text(wanted, encoding="utf-8")
    sys.stderr.write(f"{PAGE.name}: {'stale, run `make docs`' if asked.check else 'written'}\n")
    return int(asked.check)


def disagreements(named: Mapping[str, int], breaks: Sequence[Mapping[str, str]]) -> list[str]:
    """Return one line for each promise that no test names, that no break tries, or whose break survived."""
    tried = {entry["promise"] for entry in breaks}
    faults = [f"{promise}: no test names it" for promise in PROMISES if not named.get(promise)]
    faults += [f"{promise}: no break tries it" for promise in PROMISES if promise not in tried]
    faults += [f"{entry['name']}: survived" for entry in breaks if not entry.get("caught_by")]
    return faults


def tests_with_promises() -> Iterator[tuple[str, set[str]]]:
    """Yield each test function with the promises that its docstring, or that of its file, names."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        common = _promises(ast.get_docstring(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT)}::{node.name}", common | _promises(ast.get_docstring(node))


def renewed(text: str, named: Mapping[str, int], breaks: Sequence[Mapping[str, str]]) -> str:
    """Return the page with its tables renewed.

    Raises:
        ValueError: The page has lost its markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs {BEGIN} and {END} around its tables")
    return f"{before}{BEGIN}\n{_promise_table(named, breaks)}\n\n{_crash_table()}\n{END}{after}"


def _promises(docstring: str | None) -> set[str]:
    return {found for found in re.findall(r"\bI\d{1,2}\b", docstring or "") if found in PROMISES}


def _promise_table(named: Mapping[str, int], breaks: Sequence[Mapping[str, str]]) -> str:
    tried = Counter(entry["promise"] for entry in breaks)
    lines = ["| promise | tests that name it | breaks tried | caught |", "|---|---|---|---|"]
    for promise, text in PROMISES.items():
        lines.append(f"| {promise}: {text} | {named[promise]} | {tried[promise]} | {tried[promise]} |")
    others = sorted(set(tried) - set(PROMISES))
    lines += [f"| rules of: {name} | | {tried[name]} | {tried[name]} |" for name in others]
    return "\n".join([*lines, f"| all | | {tried.total()} | {tried.total()} |"])


def _crash_table() -> str:
    if not CRASH.is_file():
        return "The crash run was not recorded yet: `make crash`."
    run = json.loads(CRASH.read_text(encoding="utf-8"))
    lines = [
        f"Crash run of {run['date']}, rounds: {run['rounds']}.",
        "",
        "| suite | tries | failed |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {tries} | {run['failed'].get(name, 0)} |" for name, tries in run["tries"].items()
    ]
    return "\n".join(lines)


def _tried(report: Path, rounds: int) -> dict[str, object]:
    tries: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest wrote it a moment ago
        name = case.get("classname", "").replace(".", "/") + ".py"
        tries[name] += 1
        failed[name] += any(child.tag in {"failure", "error"} for child in case)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        "tries": dict(sorted(tries.items())),
        "failed": {name: count for name, count in failed.items() if count},
    }


if __name__ == "__main__":
    sys.exit(main())

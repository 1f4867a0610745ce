"""The table of docs/FAULTS.md, made from the rows that the fault matrix tests: `python -m tools.fault_table`."""

import argparse
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.crash.faults import FAULTS, Falls, Fault

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "FAULTS.md"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
HEAD = ("Fault", "Error", "Retried under `always`", "Falls back", "Possibly paid", "What to do")


def main() -> int:
    """Write the table, or with `--check` say whether it is stale; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.fault_table", description=inspect.getdoc(main))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is stale")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    wanted = renewed(text)
    if wanted == text:
        return 0
    if not check:
        PAGE.write_text(wanted, encoding="utf-8")
    sys.stderr.write(f"{PAGE.name}: {'stale, run `python -m tools.fault_table`' if check else 'written'}\n")
    return int(check)


def renewed(text: str) -> str:
    """Return the page with its table renewed.

    Raises:
        ValueError: The page has lost its markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs {BEGIN} and {END} around its table")
    return f"{before}{BEGIN}\n{_table(map(_row, FAULTS))}\n{END}{after}"


def _row(fault: Fault) -> tuple[str, ...]:
    if fault.kind is None:
        return (fault.title, "none, the answer is accepted", "", "", "", fault.todo)
    return (
        fault.title,
        f"`{fault.kind.error.__name__}`",
        _retried(fault),
        _falls(fault),
        fault.paid.value,
        fault.todo,
    )


def _retried(fault: Fault) -> str:
    if not fault.retried:
        return "no"
    return "yes" if fault.wait_s is None else "yes, after that wait"


def _falls(fault: Fault) -> str:
    if fault.kind is None or fault.falls is not Falls.IF_SET:
        return fault.falls.value
    return f"if `LLM_FALLBACK_ON` has `{fault.kind.code}`"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())

"""A run as people read it: targets in the terminal, tables between markers in the documents. All from its JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.blocks import BLOCKS
from bench.records import Document
from bench.tables import number

ROOT = Path(__file__).resolve().parents[1]
PLOT = ROOT / "docs" / "bench.svg"
DOCUMENTS = ("README.md", "docs/PERFORMANCE.md")


def target_line(row: Mapping[str, Any]) -> str:
    """Return one target as `PASS|FAIL name measured limit`."""
    sign = ">=" if row["at_least"] else "<="
    measured = row["why"] if row["measured"] is None else f"{number(row['measured'])} {row['unit']}"
    return f"{row['verdict']:5} {row['name']:66} {measured:>12}  {sign} {row['limit']:g}"


def stale_documents(document: Document) -> dict[Path, str]:
    """Return the documents whose tables are not those of `document`, each with the text that it should have.

    Raises:
        ValueError: A document opens a block and does not close it.
    """
    wanted = {
        ROOT / name: _renewed((ROOT / name).read_text(encoding="utf-8"), document) for name in DOCUMENTS
    }
    return {path: text for path, text in wanted.items() if text != path.read_text(encoding="utf-8")}


def _renewed(text: str, document: Document) -> str:
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text:
            continue
        before, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"{begin} has no {end}")
        text = f"{before}{begin}\n{make(document)}\n{end}{rest.split(end, 1)[1]}"
    return text

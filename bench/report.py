"""A run as people read it: targets in the terminal, tables between markers in the documents. All from its JSON."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from app.docs import with_blocks
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
    blocks = {name: partial(make, document) for name, make in BLOCKS.items()}
    wanted = {
        ROOT / name: with_blocks((ROOT / name).read_text(encoding="utf-8"), blocks) for name in DOCUMENTS
    }
    return {path: text for path, text in wanted.items() if text != path.read_text(encoding="utf-8")}

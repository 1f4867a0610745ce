"""Runs on the disk: one file of JSON a mode, short enough to be committed and compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MODES = ("quick", "bench", "full")
"""From the shortest to the longest."""
RECORDED = ("full", "bench")
"""Runs that the documents are made of, the better one first; a quick one is for the terminal."""
DIGITS = 5
"""Of a figure; the rest is noise."""

Document = Mapping[str, Any]


def recorded() -> Document | None:
    """Return the run that the documents show; None before the first."""
    for mode in RECORDED:
        if (file := RESULTS / f"{mode}.json").is_file():
            document: Document = json.loads(file.read_text(encoding="utf-8"))
            return document
    return None


def record(document: Document) -> Path:
    """Write a run to the file of its mode and return the file."""
    file = RESULTS / f"{document['mode']}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text_of(document), encoding="utf-8")
    return file


def text_of(document: Document) -> str:
    """Return JSON with one round, or one target, a line."""
    parts = [f"{json.dumps(name)}: {_block(value)}" for name, value in _rounded(document).items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _block(value: Any) -> str:
    if isinstance(value, dict) and all(isinstance(each, list) for each in value.values()):
        return (
            "{\n" + ",\n".join(f" {json.dumps(name)}: {_lines(each)}" for name, each in value.items()) + "\n}"
        )
    return _lines(value) if isinstance(value, list) else json.dumps(value)


def _lines(values: list[Any]) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(value)}" for value in values) + "\n ]"


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {name: _rounded(each) for name, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
        case _:
            return value

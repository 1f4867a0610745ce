"""Figures as text: few digits, and tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # noqa: PLR2004  # three digits are there already
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def best_of(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the round with the least CPU per call."""
    return min(rounds, key=lambda cell: cell["cpu_ms"])


def us(figures: Mapping[str, float]) -> Iterable[tuple[str, str]]:
    """Return named microseconds as rows."""
    return ((name.replace("  ", "&nbsp;&nbsp;"), number(value)) for name, value in figures.items())


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; figures stand to the right."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

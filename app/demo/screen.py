"""How the demo looks: one panel a scene, and tables whose every cell was read from somewhere."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

WIDTH = 112


class Screen:
    """Writes the scenes; numbered, in order."""

    def __init__(self) -> None:
        self._console = Console(width=min(WIDTH, int(os.environ.get("COLUMNS", WIDTH))), highlight=False)
        self._scenes = 0

    def title(self, text: str, below: str) -> None:
        """Write the first lines."""
        self._console.print(Panel(f"[bold]{escape(text)}[/]\n{escape(below)}", border_style="cyan"))

    def scene(self, title: str, why: str) -> None:
        """Begin a scene."""
        self._scenes += 1
        self._console.print(f"\n[bold cyan]{self._scenes}. {escape(title)}[/]  [dim]{escape(why)}[/]")

    def say(self, label: str, text: str) -> None:
        """Write one fact."""
        self._console.print(f"   [bold]{escape(label)}[/] {escape(text)}")

    def line(self, text: str = "") -> None:
        """Write one line as it is."""
        self._console.print(escape(text))

    def table(self, rows: Sequence[Mapping[str, Any]], *columns: str) -> None:
        """Write rows; a column that no row fills is left out."""
        shown = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("  ")
        for name in shown:
            numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row("  ", *(_cell(row.get(name)) for name in shown))
        self._console.print(table)

    def ask(self, question: str) -> bool:
        """Return whether the person says yes; without a terminal nobody does."""
        if not self._console.is_terminal:
            self.line(f"   {question} No terminal to ask: skipped.")
            return False
        return self._console.input(f"   {escape(question)} [y/N] ").strip().lower() in {"y", "yes"}


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    colour = {
        "SUCCEEDED": "green",
        "FAILED": "red",
        "live": "cyan",
        "cache": "magenta",
        "replay": "magenta",
    }.get(str(value))
    return f"[{colour}]{escape(str(value))}[/]" if colour else escape(str(value))

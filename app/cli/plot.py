"""Draws the lines of a report as a picture; the only file that needs matplotlib, and that without its global state."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INCHES = (10.0, 5.0)
MAX_LABELS = 31
"""Beyond that only every so-manieth line is named."""


def draw(file: Path, bars: Sequence[tuple[str, float]], by: Sequence[str]) -> None:
    """Write a PNG with one bar of dollars for each line.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(range(len(bars)), [dollars for _, dollars in bars])
    step = max(1, -(-len(bars) // MAX_LABELS))
    named = range(0, len(bars), step)
    axes.set_xticks(list(named), [bars[place][0] for place in named], rotation=60, ha="right")
    axes.set_ylabel("USD")
    axes.set_title(f"known cost by {' and '.join(by)}")
    figure.savefig(file, format="png", dpi=120)

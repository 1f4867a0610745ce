"""The picture of the README: CPU per call and calls per second, on logarithmic axes, for light and dark pages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.cases import CASES
from bench.figures import Figure, NotMeasured, cpu, rate
from bench.tables import number

_CASES = ("raw", "floor", "unpersisted", "sqlite", "postgres", "acompletion", "router")
_COLOURS = {"bare": "#8c959f", "ours": "#1a7f64", "acompletion": "#d97742", "router": "#d97742"}
_INK = "#7d8590"
"""Readable on white and on black."""
_IN_FLIGHT = (1, 64)
_PALE = 0.5
_HEIGHT = 0.36


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Write the picture of a run as SVG, the same bytes for the same figures.

    Raises:
        NotMeasured: A case that is to be shown is not there.
    """
    import matplotlib as mpl  # noqa: PLC0415  # of the benchmark's own lock

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.family": "sans-serif", "font.size": 9}
        | dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK
        )
    )
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
    _panel(axes[0], document, cpu, "client CPU per call, ms (less is better)")
    _panel(axes[1], document, rate, "calls per second (more is better)")
    axes[0].set_yticks(range(len(_CASES)), [CASES[case].title for case in _CASES])
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _panel(axis: Any, document: Mapping[str, Any], figure: Any, title: str) -> None:
    """Draw one bar per case and number in flight; the paler one is the first."""
    for place, case in enumerate(_CASES):
        for step, in_flight in enumerate(_IN_FLIGHT):
            value = _value(figure(case, in_flight), document)
            where = place + (step - 0.5) * _HEIGHT
            shade = 1.0 if step else _PALE
            axis.barh(where, value, _HEIGHT * 0.92, color=_COLOURS[CASES[case].home], alpha=shade)
            axis.annotate(
                f"{number(value)} at {in_flight}", (value, where), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=7,
            )  # fmt: skip
    axis.set_xscale("log")
    axis.margins(x=0.22)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("pale: 1 call in flight, full: 64", fontsize=7)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.grid(axis="x", color=_INK, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _value(figure: Figure, document: Mapping[str, Any]) -> float:
    try:
        return figure.of(document["rounds"])
    except NotMeasured as missing:
        raise NotMeasured(f"the plot needs it: {missing}") from None

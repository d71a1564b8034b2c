"""How every figure looks: one palette that colour-blind readers can tell apart, thin axes, intervals and bands.

Figures are built as objects, without pyplot and its global state, so that they can be drawn in any process.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

BLUE, ORANGE, GREEN, PINK, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
GREY = "#6B6B6B"
_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
}


def panels(columns: int = 1, rows: int = 1, *, width: float = 7.0, height: float = 3.2, **options: Any) -> Figure:
    """An empty figure with a grid of axes.

    Args:
        columns: Axes side by side.
        rows: Axes above each other.
        width: Of the figure, in inches.
        height: Of the figure, in inches.
        **options: Passed to `Figure.subplots`, such as `sharey=True` or `width_ratios=[2, 1]`.

    Returns:
        The figure; its axes are `figure.axes`, row by row.
    """
    ratios = {name: options.pop(name) for name in ("width_ratios", "height_ratios") if name in options}
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.subplots(rows, columns, squeeze=False, **ratios, **options)
    for axes in figure.axes:
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    return figure


def title(axes: Axes, text: str) -> None:
    """A short bold title, left-aligned over the axes.

    Args:
        axes: Where.
        text: A letter for the panel and a few words.
    """
    axes.set_title(text, loc="left", fontsize=9.5, fontweight="bold")


def curve(axes: Axes, x: ArrayLike, y: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, label: str) -> None:
    """A line with its interval at each point.

    Args:
        axes: Where to draw.
        x: Positions.
        y: Values.
        low: Lower ends of the intervals.
        high: Upper ends of the intervals.
        colour: Of line, markers and interval.
        label: Entry in the legend.
    """
    values = np.asarray(y, dtype=float)
    errors = np.clip([values - np.asarray(low, dtype=float), np.asarray(high, dtype=float) - values], 0, None)
    style: dict[str, Any] = {"capsize": 2, "elinewidth": 1, "marker": "o", "linewidth": 1.6, "markersize": 4.5}
    axes.errorbar(np.asarray(x), values, yerr=errors, color=colour, label=label, clip_on=False, **style)


def interval(axes: Axes, value: float, height: float, low: float, high: float, colour: str, label: str) -> None:
    """One number with its interval, lying at some height.

    Args:
        axes: Where to draw.
        value: The number.
        height: Where on the vertical axis.
        low: Lower end of the interval.
        high: Upper end of the interval.
        colour: Of marker and interval.
        label: Entry in the legend.
    """
    errors = np.clip([[value - low], [high - value]], 0, None)
    style: dict[str, Any] = {"capsize": 2, "elinewidth": 1, "marker": "o", "markersize": 4.5, "linestyle": "none"}
    axes.errorbar([value], [height], xerr=errors, color=colour, label=label, clip_on=False, **style)


def band(axes: Axes, x: ArrayLike, middle: ArrayLike, low: ArrayLike, high: ArrayLike, label: str) -> None:
    """The range of a random or shuffled control, in grey.

    Args:
        axes: Where to draw.
        x: Positions.
        middle: Mean of the control.
        low: Lower end of its range.
        high: Upper end of its range.
        label: Entry in the legend.
    """
    places = np.asarray(x)
    axes.fill_between(places, np.asarray(low, float), np.asarray(high, float), color=GREY, alpha=0.22, linewidth=0)
    axes.plot(places, np.asarray(middle, float), color=GREY, linestyle="--", linewidth=1.1, label=label)


def legend_below(figure: Figure, columns: int = 3) -> None:
    """One legend for all axes, under them and outside the data; entries of the same name appear once.

    Args:
        figure: With labelled artists.
        columns: Entries per row.
    """
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )

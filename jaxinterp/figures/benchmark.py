"""What the same work takes with this package and with its peers: one panel a task."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_OURS = "jaxinterp"
_COLOURS = {
    _OURS: theme.BLUE,
    "torch": theme.GREY,
    "transformer_lens": theme.ORANGE,
    "nnsight": theme.GREEN,
    "pyvene": theme.PINK,
    "scikit_learn": theme.SKY,
    "faiss": theme.RED,
}
_NAMES: dict[str, str] = {"transformer_lens": "TransformerLens", "torch": "torch hooks", "scikit_learn": "scikit-learn"}
_COLUMNS = 3
_LONGEST = 44


def draw(table: pl.DataFrame) -> Figure:
    """Wall seconds of every task: bars to the median, a mark at the minimum; who could not be measured is named.

    Args:
        table: Columns `task`, `title`, `workload`, `peer`, `variant`, `start`, `gate`, `wall_min`, `wall_median`,
            `ratio_to_ours`; one row for each task, peer, variant and start.

    Returns:
        The figure.

    Raises:
        ValueError: The table is empty.
    """
    shown = [_shown(table.filter(pl.col("task") == task)) for task in table["task"].unique(maintain_order=True)]
    if not shown:
        raise ValueError("the benchmark's table has no rows; there is nothing to draw")
    rows = math.ceil(len(shown) / _COLUMNS)
    groups = [shown[first : first + _COLUMNS] for first in range(0, len(shown), _COLUMNS)]
    heights = [max(part.height for part in group) + 2.2 for group in groups]
    columns = min(_COLUMNS, len(shown))
    figure = theme.panels(columns, rows, width=5.0 * columns, height=0.2 * sum(heights) + 0.3, height_ratios=heights)
    for axes, part in zip(figure.axes, shown, strict=False):
        _draw_task(axes, part)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    return figure


def _shown(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of a task that are drawn: warm runs, or cold starts where the task is one."""
    cold = rows.filter(pl.col("start").str.starts_with("cold"))
    warm = rows.filter((pl.col("start") == "warm") | (pl.col("gate") == "not measured"))
    chosen = (cold if cold.height else warm).unique(["peer", "variant", "start"], maintain_order=True)
    return chosen.sort(pl.col("peer") != _OURS, "wall_median", maintain_order=True, nulls_last=True)


def _draw_task(axes: Axes, rows: pl.DataFrame) -> None:
    places = range(rows.height)
    longest = rows["wall_median"].max()
    for place, row in zip(places, rows.iter_rows(named=True), strict=True):
        colour = _COLOURS.get(row["peer"], theme.PINK)
        if row["wall_median"] is None:
            reason = "gate failed" if row["gate"] == "failed" else "not possible"
            # In the axes' own width, since there is no time to stand at.
            axes.text(0.01, place, reason, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=colour)
            continue
        axes.barh(place, row["wall_median"], height=0.66, color=colour)
        axes.plot(row["wall_min"], place, "|", color="white", markersize=7, markeredgewidth=1.2)
        axes.annotate(_value(row), (row["wall_median"], place), (4, 0), textcoords="offset points", va="center", size=7)
    axes.set_yticks(places, [_label(row) for row in rows.iter_rows(named=True)], fontsize=7)
    for tick, peer in zip(axes.get_yticklabels(), rows["peer"], strict=True):
        tick.set_fontweight("bold" if peer == _OURS else "normal")
    axes.set_ylim(rows.height - 0.5, -0.5)
    if isinstance(longest, float):
        axes.set_xlim(0, 1.4 * longest)
        axes.set_xlabel("wall seconds", fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.locator_params(axis="x", nbins=5)
    else:
        axes.set_xticks([])
    axes.grid(visible=False)
    theme.title(axes, f"{rows['workload'][0]}  {rows['title'][0]}")


def _label(row: dict[str, Any]) -> str:
    details = [row["variant"]] if row["variant"] not in ("", "default") else []
    if row["start"].startswith("cold"):
        details.append(row["start"])
    name = _NAMES.get(row["peer"]) or str(row["peer"])
    text = f"{name}: {', '.join(details)}" if details else name
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _value(row: dict[str, Any]) -> str:
    seconds = f"{row['wall_median']:.3g} s"
    if row["peer"] == _OURS or row["ratio_to_ours"] is None:
        return seconds
    return f"{seconds}, {row['ratio_to_ours']:.3g}x ours"

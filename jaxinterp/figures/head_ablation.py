"""What happens without some heads: each alone, the first few together, chosen sets against random ones."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxinterp.figures import theme

_ROWS = (
    ("nothing taken out", "none", "zero", "all tokens"),
    ("heads that attend to the target", "attends to target", "zero", "all tokens"),
    ("  mean instead of zero", "attends to target", "mean", "all tokens"),
    ("  at “ (” only", "attends to target", "zero", "verdict"),
    ("  at the result's last digit only", "attends to target", "zero", "result"),
    ("random, outside these", "random, outside the set", "zero", "all tokens"),
    ("random, outside the circuit too", "random, outside the circuit", "zero", "all tokens"),
)


def draw(table: pl.DataFrame) -> Figure:
    """Three panels: single heads, cumulative sets, and sets against controls.

    Args:
        table: Columns `stage`, `measure`, `condition`, `method`, `position`, `n_heads`, `layer`, `head`, `value`,
            `low`, `high`; values in [0, 1].

    Returns:
        The figure.
    """
    figure = theme.panels(3, width=10.2, height=3.6, width_ratios=[1.0, 0.8, 1.25])
    single, cumulative, sets = figure.axes
    _draw_single(single, table.filter(pl.col("stage") == "selection"))
    evaluated = table.filter(pl.col("stage") == "evaluation")
    _draw_cumulative(cumulative, evaluated)
    _draw_sets(sets, evaluated)
    theme.legend_below(figure, columns=4)
    return figure


def _grid(table: pl.DataFrame, measure: str) -> np.ndarray:
    rows = table.filter(pl.col("measure") == measure)
    layers, columns = rows["layer"].to_numpy(), rows["head"].to_numpy()
    grid = np.full((layers.max() + 1, columns.max() + 1), np.nan)
    grid[layers, columns] = rows["value"].to_numpy()
    return grid


def _draw_single(axes: Axes, table: pl.DataFrame) -> None:
    effects, attention = _grid(table, "flips"), _grid(table, "attention from verdict")
    image = axes.imshow(100 * effects, cmap="Blues", vmin=0, vmax=100, origin="lower", aspect="auto")
    for layer, head in zip(*np.nonzero(effects >= 0.005), strict=True):
        value = effects[layer, head]
        colour = "white" if value > 0.55 else "black"
        axes.text(head, layer, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    for layer, head in zip(*np.nonzero(attention > 0.1), strict=True):
        frame = Rectangle((head - 0.46, layer - 0.46), 0.92, 0.92, fill=False, edgecolor=theme.RED, linewidth=1.4)
        axes.add_patch(frame)
    axes.plot([], [], "s", fillstyle="none", color=theme.RED, markersize=7, label="attends to the target (> 0.1)")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_label("flipped acceptances (%)", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    axes.grid(visible=False)
    axes.set_xticks(range(effects.shape[1]))
    axes.set_yticks(range(effects.shape[0]))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    theme.title(axes, "a  One head zeroed")


def _draw_cumulative(axes: Axes, table: pl.DataFrame) -> None:
    curve = table.filter(pl.col("condition") == "largest effects").sort("n_heads")
    for measure, colour, label in (
        ("flips", theme.BLUE, "acceptances that flip"),
        ("rejections kept", theme.ORANGE, "rejections that stay"),
    ):
        rows = curve.filter(pl.col("measure") == measure)
        percent = [100 * rows[column].to_numpy() for column in ("value", "low", "high")]
        theme.curve(axes, rows["n_heads"].to_list(), *percent, colour=colour, label=label)
    axes.set_ylim(-3, 103)
    axes.set_xticks(curve["n_heads"].unique().sort().to_list())
    axes.set_xlabel("heads zeroed, largest single effect first")
    axes.set_ylabel("verdicts (%)")
    theme.title(axes, "b  The first few together")


def _draw_sets(axes: Axes, table: pl.DataFrame) -> None:
    for place, (_, condition, method, position) in enumerate(_ROWS):
        where = (pl.col("condition") == condition) & (pl.col("method") == method) & (pl.col("position") == position)
        for measure, colour, shift, label in (
            ("flips", theme.BLUE, -0.16, "acceptances that flip"),
            ("rejections kept", theme.ORANGE, 0.16, "rejections that stay"),
        ):
            rows = table.filter(where & (pl.col("measure") == measure))
            height = place + shift
            if rows["draw"].null_count() < rows.height:
                jitter = np.linspace(-0.1, 0.1, rows.height)
                axes.plot(
                    100 * rows["value"], height + jitter, "o", color=colour, markersize=2.5, alpha=0.45, clip_on=False
                )
                axes.plot(
                    100 * rows["value"].to_numpy().mean(), height, "D", color=colour, markersize=5.5, clip_on=False
                )
            elif rows.height:
                value, low, high = (100 * rows[column][0] for column in ("value", "low", "high"))
                theme.interval(axes, value, height, low, high, colour=colour, label=label)
    axes.plot([], [], "D", color=theme.GREY, markersize=5, label="mean of the random draws (small dots)")
    axes.set_yticks(range(len(_ROWS)), [name for name, *_ in _ROWS])
    axes.set_ylim(len(_ROWS) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("verdicts (%)")
    theme.title(axes, "c  Sets of heads and controls")

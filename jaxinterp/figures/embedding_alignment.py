"""How alike two embedding tables are, and how well a linear map carries one to the other."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_METHODS = {"least_squares": "-", "procrustes": ":"}


def draw(table: pl.DataFrame) -> Figure:
    """Three panels: correlations beside their nulls, and two measures of the maps over the number of training pairs.

    Args:
        table: Columns `part`, `measure`, `direction`, `method`, `pairs`, `value`, `low`, `high`, `control`.

    Returns:
        The figure.
    """
    drawn = theme.panels(3, width=9.6, height=3.6, width_ratios=[1.25, 1, 1])
    _draw_correlations(drawn.axes[0], table.filter(pl.col("part") == "correlation"))
    maps = table.filter(pl.col("part") == "map")
    for axes, measure in zip(drawn.axes[1:], ("top-1", "cosine"), strict=True):
        here = maps.filter(pl.col("measure") == measure)
        directions = here["direction"].unique(maintain_order=True).to_list()
        for direction, colour in zip(directions, (theme.BLUE, theme.RED), strict=True):
            for method, line in _METHODS.items():
                chosen = pl.col("direction") == direction, pl.col("method") == method
                part = here.filter(*chosen).sort("pairs")
                label = f"{direction}, {method.replace('_', ' ')}"
                columns = (part[name].to_list() for name in ("pairs", "value", "low", "high"))
                theme.curve(axes, *columns, colour=colour, label=label)
                axes.containers[-1][0].set(linestyle=line)
        shuffled = here.filter(pl.col("control"))
        middle = float(shuffled["value"].to_numpy().mean())
        axes.axhline(middle, color=theme.GREY, linestyle="--", linewidth=1.1, label="fitted on shuffled pairs")
        axes.set_xscale("log")
        axes.set_xlabel("training pairs")
        axes.set_ylim(-0.05, 1.02)
    theme.title(drawn.axes[1], "Held-out token found among all")
    drawn.axes[1].set_ylabel("top-1 share")
    theme.title(drawn.axes[2], "Held-out cosine")
    drawn.axes[2].set_ylabel("cosine to the true row (centred)")
    theme.legend_below(drawn, columns=4)
    return drawn


def _draw_correlations(axes: Axes, table: pl.DataFrame) -> None:
    kinds = (
        ("r", theme.BLUE, "all matched tokens"),
        ("r of words", theme.GREEN, "words only"),
        ("relabelled", theme.GREY, "null: tokens relabelled"),
        ("relabelled within rank bins", theme.ORANGE, "null: relabelled within rank bins"),
    )
    variants = table["method"].unique(maintain_order=True).to_list()
    present = [kind for kind in kinds if kind[0] in table["measure"].to_list()]
    width = 0.8 / len(present)
    for place, (measure, colour, label) in enumerate(present):
        part = table.filter(pl.col("measure") == measure)
        x = np.array([variants.index(name) for name in part["method"]]) + (place + 0.5) * width - 0.4
        errors = np.clip([part["value"] - part["low"], part["high"] - part["value"]], 0, None)
        axes.bar(x, part["value"], width * 0.92, color=colour, label=label)
        axes.errorbar(x, part["value"], yerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(variants)), [name.replace(", ", ",\n") for name in variants])
    theme.title(axes, "Pairwise cosines agree")
    axes.set_ylabel("Pearson's r between the models")

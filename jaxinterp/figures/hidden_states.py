"""How far two models' hidden states agree over the depth of the network, and which maps carry them over."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_GEOMETRY = (("r", theme.BLUE, "r of pairwise cosines"), ("shared neighbours", theme.ORANGE, "shared neighbours"))
_METHODS = (
    ("refitted", theme.GREEN, "map refitted at the layer"),
    ("embedding map", theme.BLUE, "map fitted on embeddings"),
    ("embedding map, procrustes", theme.SKY, "the same, only turned and scaled"),
)
_CONTROLS = (("given, shuffled", ":"), ("refitted, shuffled", "--"))


def draw(table: pl.DataFrame) -> Figure:
    """For each protocol a row of panels: the geometries, and what maps find in each direction.

    Args:
        table: Columns `protocol`, `part`, `place`, `target_layer`, `direction`, `method`, `measure`, `value`, `low`,
            `high`, `control`.

    Returns:
        The figure.
    """
    protocols = table["protocol"].unique(maintain_order=True).to_list()
    directions = table["direction"].drop_nulls().unique(maintain_order=True).to_list()
    drawn = theme.panels(1 + len(directions), len(protocols), width=10.0, height=3.0 * len(protocols) + 0.6)
    end = table["target_layer"].max()
    assert isinstance(end, int)
    placed = table.with_columns(
        x=pl.when(pl.col("place") == "final norm").then(end + 2.5).otherwise(pl.col("target_layer") + 1.0)
    )
    for row, protocol in enumerate(protocols):
        here = placed.filter(pl.col("protocol") == protocol).sort("x")
        first, *others = drawn.axes[row * (1 + len(directions)) : (row + 1) * (1 + len(directions))]
        _draw_geometry(first, here.filter(pl.col("part") == "geometry"))
        theme.title(first, f"Words {protocol}: geometries agree")
        for axes, direction in zip(others, directions, strict=True):
            _draw_maps(axes, here.filter(pl.col("part") == "map", pl.col("direction") == direction))
            theme.title(axes, f"Words {protocol}: {direction}")
        for axes in (first, *others):
            ticks = sorted({0, *range(4, end + 2, 4)})
            axes.set_xticks([*ticks, end + 2.5], [*("embed." if tick == 0 else str(tick) for tick in ticks), "norm"])
            axes.set_ylim(-0.04, 1.02)
            if protocol == protocols[-1]:
                axes.set_xlabel("blocks passed in the target")
    theme.legend_below(drawn, columns=4)
    return drawn


def _draw_geometry(axes: Axes, table: pl.DataFrame) -> None:
    for name, colour, label in _GEOMETRY:
        part = table.filter(pl.col("measure") == name)
        points = (part[column].to_numpy() for column in ("x", "value", "low", "high"))
        theme.curve(axes, *points, colour=colour, label=label)
        null = table.filter(pl.col("measure") == f"{name}, relabelled within rank bins")
        axes.plot(null["x"], null["value"], color=colour, linestyle="--", linewidth=1.1)
    axes.plot([], [], color=theme.GREY, linestyle="--", linewidth=1.1, label="words relabelled within rank bins")
    axes.set_ylabel("agreement")


def _draw_maps(axes: Axes, table: pl.DataFrame) -> None:
    top1 = table.filter(pl.col("measure") == "top-1")
    for method, colour, label in _METHODS:
        part = top1.filter(pl.col("method") == method)
        points = (part[column].to_numpy() for column in ("x", "value", "low", "high"))
        theme.curve(axes, *points, colour=colour, label=label)
    for method, line in _CONTROLS:
        part = top1.filter(pl.col("method") == method)
        kind = method.split(",")[0].replace("given", "fitted on embeddings")
        label = f"{kind}, tokens shuffled"
        axes.plot(part["x"], np.asarray(part["value"]), color=theme.GREY, linestyle=line, linewidth=1.1, label=label)
    axes.set_ylabel("held-out words found (top-1)")

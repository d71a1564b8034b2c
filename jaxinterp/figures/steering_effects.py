"""What concept vectors do to the next word, beside everything that should do less."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_KINDS = ("activation", "embedding")
_COLOURS = {"native": theme.BLUE, "transferred": theme.RED, "shuffled": theme.ORANGE, "random": theme.GREY}


def draw(table: pl.DataFrame) -> Figure:
    """Two panels for each direction and concept: the evaluation with all its controls, and the selection over depths.

    Args:
        table: Columns `stage`, `direction`, `concept`, `kind`, `vector`, `draw`, `depth`, `measure`, `allowed`,
            `value`, `low`, `high`; effects in nats.

    Returns:
        The figure.
    """
    concepts = table["concept"].drop_nulls().unique(maintain_order=True).to_list()
    directions = table["direction"].unique(maintain_order=True).to_list()
    width = max(7.0, 2.9 * len(concepts) + 0.6)
    figure = theme.panels(len(concepts), 2 * len(directions), width=width, height=9.6, sharey="row")
    grid = np.array(figure.axes).reshape(2 * len(directions), len(concepts))
    for place, direction in enumerate(directions):
        giver, taker = direction.split(" to ")
        for column, concept in enumerate(concepts):
            here = table.filter(pl.col("direction") == direction, pl.col("concept") == concept)
            _draw_effects(grid[2 * place, column], here)
            _draw_depths(grid[2 * place + 1, column], here)
            theme.title(grid[2 * place, column], f"{concept}, on the {taker} model")
        grid[2 * place, 0].set_ylabel(f"held-out prompts:\nchange of log-odds (nats)\ncarried from the {giver} model")
        grid[2 * place + 1, 0].set_ylabel("selection prompts:\nat the best allowed scale")
    theme.legend_below(figure, columns=4)
    return figure


def _draw_effects(axes: Axes, table: pl.DataFrame) -> None:
    effects = table.filter(pl.col("stage") == "evaluation", pl.col("measure") == "contrast")
    direct = table.filter(pl.col("stage") == "direct path")
    for place, kind in enumerate(_KINDS):
        for offset, vector in zip((-0.3, -0.12), ("native", "transferred"), strict=True):
            row = effects.filter(pl.col("kind") == kind, pl.col("vector") == vector)
            colour = _COLOURS[vector]
            columns = (row[name].to_list() for name in ("value", "low", "high"))
            theme.curve(axes, [place + offset], *columns, colour=colour, label=f"{vector} vector")
            after = direct.filter(pl.col("kind") == kind, pl.col("vector") == vector)["value"]
            axes.plot([place + offset + 0.07], after, "o", markersize=4.5, markerfacecolor="white", color=colour)
        for offset, vector, mark in ((0.1, "shuffled", "x"), (0.3, "random", ".")):
            part = effects.filter(pl.col("vector") == vector, pl.col("kind").is_in([kind, "random"]))["value"]
            spread = np.linspace(-0.05, 0.05, len(part))
            label = {"shuffled": "carried by a shuffled map", "random": "random vector"}[vector]
            axes.plot(place + offset + spread, part, mark, color=_COLOURS[vector], alpha=0.8, label=label)
    label = "added after the last block only"
    axes.plot([], [], "o", markersize=4.5, markerfacecolor="white", color="black", label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(_KINDS)), [f"from {kind}s" for kind in _KINDS])
    axes.set_xlim(-0.5, len(_KINDS) - 0.5)


def _draw_depths(axes: Axes, table: pl.DataFrame) -> None:
    effects = table.filter(pl.col("stage") == "selection", pl.col("measure") == "contrast", pl.col("allowed"))
    best = effects.group_by("kind", "vector", "draw", "depth").agg(pl.col("value").max()).sort("depth")
    random = best.filter(pl.col("vector") == "random").group_by("depth", maintain_order=True)
    bounds = random.agg(
        pl.col("value").mean(), low=pl.col("value").quantile(0.025), high=pl.col("value").quantile(0.975)
    )
    label = "random vectors: mean and middle 95 %"
    theme.band(axes, *(bounds[name].to_list() for name in ("depth", "value", "low", "high")), label=label)
    for kind, line in zip(_KINDS, ("-", ":"), strict=True):
        for vector in ("native", "transferred"):
            part = best.filter(pl.col("kind") == kind, pl.col("vector") == vector)
            axes.plot(part["depth"], part["value"], line, marker="o", markersize=3.5, color=_COLOURS[vector])
        axes.plot([], [], line, color="black", label=f"from {kind}s")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("relative depth")

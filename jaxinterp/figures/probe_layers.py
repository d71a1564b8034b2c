"""Probe accuracy over layers against shuffled labels and on minimal pairs."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_TITLES = {
    "verdict": "a  At the token that opens the verdict",
    "result": "b  One token earlier: last digit of the result",
}


def draw(table: pl.DataFrame) -> Figure:
    """One panel per position.

    Args:
        table: Columns `measure` (balanced accuracy, shuffled labels, minimal pairs), `position` (verdict, result),
            `layer` (-1 for the embedding), `value`, `low` and `high` in [0, 1].

    Returns:
        The figure.
    """
    drawn = theme.panels(2, sharey=True, width=7.4, height=3.5)
    for axes, (position, title) in zip(drawn.axes, _TITLES.items(), strict=True):
        here = table.filter(pl.col("position") == position).sort("layer")
        percent = {
            name: [
                100 * here.filter(pl.col("measure") == name)[column].to_numpy() for column in ("value", "low", "high")
            ]
            for name in ("shuffled labels", "minimal pairs", "balanced accuracy")
        }
        layers = here.filter(pl.col("measure") == "balanced accuracy")["layer"].to_list()
        places = list(range(len(layers)))
        theme.band(axes, places, *percent["shuffled labels"], label="shuffled labels (mean, 95 % range)")
        axes.axhline(99, color=theme.GREY, linewidth=0.8, linestyle=":", label="criterion: 99 %")
        theme.curve(axes, places, *percent["minimal pairs"], colour=theme.RED, label="minimal pairs")
        theme.curve(axes, places, *percent["balanced accuracy"], colour=theme.BLUE, label="held-out traces")
        theme.title(axes, title)
        axes.set_xlabel("residual stream after block")
        axes.set_xticks(places, ["embed." if layer < 0 else str(layer) for layer in layers])
        axes.set_ylim(35, 102)
    drawn.axes[0].set_ylabel("balanced accuracy of the probe (%)")
    theme.legend_below(drawn, columns=4)
    return drawn

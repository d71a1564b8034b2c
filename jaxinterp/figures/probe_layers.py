"""Probe accuracy over layers against shuffled labels, scikit-learn's and on minimal pairs."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_TITLES = {
    "verdict": "a  At the token that opens the verdict",
    "result": "b  One token earlier: last digit of the result",
    "first partial result": "c  Earlier: end of the first partial result",
    "end of the expression": "d  Earlier still: end of the expression",
}


def draw(table: pl.DataFrame) -> Figure:
    """One panel per position.

    Args:
        table: Columns `measure` (balanced accuracy, scikit-learn, shuffled labels, minimal pairs), `position`, `layer`
            (-1 for the embedding), `value`, `low` and `high` in [0, 1].

    Returns:
        The figure.
    """
    drawn = theme.panels(2, 2, sharey=True, sharex=True, width=7.6, height=6.0)
    for axes, (position, title) in zip(drawn.axes, _TITLES.items(), strict=True):
        here = table.filter(pl.col("position") == position).sort("layer")
        percent = {
            name: [
                100 * here.filter(pl.col("measure") == name)[column].cast(pl.Float64).to_numpy()
                for column in ("value", "low", "high")
            ]
            for name in ("shuffled labels", "minimal pairs", "balanced accuracy", "scikit-learn")
        }
        layers = here.filter(pl.col("measure") == "balanced accuracy")["layer"].to_list()
        places = list(range(len(layers)))
        theme.band(axes, places, *percent["shuffled labels"], label="shuffled labels (mean, 95 % range)")
        axes.axhline(99, color=theme.GREY, linewidth=0.8, linestyle=":", label="criterion: 99 %")
        theme.curve(axes, places, *percent["minimal pairs"], colour=theme.RED, label="minimal pairs")
        theme.curve(axes, places, *percent["balanced accuracy"], colour=theme.BLUE, label="held-out traces")
        reference = np.asarray(percent["scikit-learn"][0])
        axes.plot(places, reference, "x", color=theme.ORANGE, markersize=5, zorder=4, label="the same, scikit-learn")
        theme.title(axes, title)
        axes.set_xticks(places, ["embed." if layer < 0 else str(layer) for layer in layers])
        axes.set_ylim(35, 102)
    for axes in drawn.axes[2:]:
        axes.set_xlabel("residual stream after block")
    for axes in drawn.axes[::2]:
        axes.set_ylabel("balanced accuracy of the probe (%)")
    theme.legend_below(drawn, columns=3)
    return drawn

"""How many verdicts there are of each kind in each split, and how often they are true of the printed result."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.figures import theme


def draw(table: pl.DataFrame) -> Figure:
    """Two panels: chosen cases by split, and attempts by verdict and truth.

    Args:
        table: Columns `split`, `valid`, `reached`, `chosen`, `prefix`.

    Returns:
        The figure.
    """
    figure = theme.panels(2, width=8.6, height=3.0, width_ratios=[1.4, 1.0])
    left, right = figure.axes
    attempts = table.filter(pl.col("prefix").is_not_null())
    splits = attempts["split"].unique(maintain_order=True).to_list()
    for valid, colour, shift, label in ((True, theme.BLUE, -0.2, "accepted"), (False, theme.ORANGE, 0.2, "rejected")):
        kind = attempts.filter(pl.col("valid") == valid)
        counts = [kind.filter(pl.col("chosen") & (pl.col("split") == split)).height for split in splits]
        bars = left.bar(np.arange(len(splits)) + shift, counts, 0.4, color=colour, label=label)
        left.bar_label(bars, fontsize=8)
        truth = [kind.filter(pl.col("reached") == reached).height for reached in (True, False)]
        right.bar_label(right.bar(np.arange(2) + shift, truth, 0.4, color=colour, label=label), fontsize=8)
    left.set_xticks(range(len(splits)), [split.replace(", ", ",\n") for split in splits])
    left.set_ylabel("cases")
    theme.title(left, "a  Cases in each split")
    right.set_xticks(range(2), ["result is\nthe target", "result is\nnot the target"])
    right.set_ylabel("attempts in all traces")
    theme.title(right, "b  Verdicts and what was printed")
    theme.legend_below(figure, columns=2)
    return figure

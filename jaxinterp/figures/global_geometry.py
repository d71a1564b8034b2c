"""How alike the token tables of several models are: correlations of all pairs, and each measure beside its nulls."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_NULLS = (
    ("relabelled", theme.GREY, "null: tokens relabelled"),
    ("relabelled within rank bins", theme.ORANGE, "null: relabelled within rank bins"),
    ("random tables", theme.PINK, "null: random tables of the same covariance"),
)
_OTHERS = (
    ("debiased CKA", theme.GREEN),
    ("shared neighbours", theme.RED),
    ("Procrustes distance", "black"),
)


def draw(table: pl.DataFrame) -> Figure:
    """Heat maps of r, one row for each matrix and one column for each variant; below them the nulls.

    Args:
        table: Columns `part`, `matrix`, `pool`, `first`, `second`, `method`, `measure`, `value`, `low`, `high`.

    Returns:
        The figure.
    """
    compared = table.filter(pl.col("part") == "correlation")
    matrices = compared["matrix"].unique(maintain_order=True).to_list()
    variants = compared["method"].unique(maintain_order=True).to_list()
    pairs = table.filter(pl.col("part") == "other", pl.col("pool") == "pair").select("matrix", "first", "second")
    pairs = pairs.unique(maintain_order=True)
    heights = [2.7] * len(matrices) + [1.3 + 0.45 * len(pairs)]
    drawn = theme.panels(
        len(variants), len(heights), width=3.5 * len(variants), height=sum(heights) + 0.6, height_ratios=heights
    )
    places = iter(drawn.axes)
    for matrix in matrices:
        roles = table.filter(pl.col("part") == "model", pl.col("matrix") == matrix)["first"].to_list()
        largest = compared.filter(pl.col("measure") == "r")["value"].to_numpy().max()
        for variant in variants:
            chosen = pl.col("matrix") == matrix, pl.col("method") == variant, pl.col("measure") == "r"
            axes = next(places)
            _draw_matrix(axes, compared.filter(*chosen), roles, max(0.5, float(largest)))
            theme.title(axes, f"{matrix}: r, {variant}")
    labels = [_label(row, matrices) for row in pairs.iter_rows(named=True)]
    for variant in variants[:2]:
        axes = next(places)
        _draw_nulls(axes, compared.filter(pl.col("method") == variant, pl.col("pool") == "pair"), pairs)
        theme.title(axes, f"r and its nulls, {variant}")
    axes = next(places)
    _draw_others(axes, table.filter(pl.col("part") == "other", pl.col("pool") == "pair"), pairs)
    theme.title(axes, "Other measures (open: relabelled)")
    for axes in drawn.axes[-len(variants) :]:
        axes.set_yticks(range(len(labels)), labels if axes is drawn.axes[-len(variants)] else [""] * len(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color="black", linewidth=0.8)
    theme.legend_below(drawn, columns=4)
    return drawn


def _label(pair: dict[str, str], matrices: list[str]) -> str:
    names = f"{pair['first']}\n{pair['second']}"
    return names if len(matrices) == 1 else f"{names}, {pair['matrix']}"


def _draw_matrix(axes: Axes, table: pl.DataFrame, roles: list[str], largest: float) -> None:
    values = np.full((len(roles), len(roles)), np.nan)
    for row in table.iter_rows(named=True):
        place = roles.index(row["first"]), roles.index(row["second"])
        values[place if row["pool"] == "pair" else place[::-1]] = row["value"]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=largest)
    for (across, down), value in np.ndenumerate(values.T):
        if across == down:
            axes.text(across, down, "1", ha="center", va="center", color=theme.GREY)
        elif not np.isnan(value):
            colour = "white" if value > 0.6 * largest else "black"
            axes.text(across, down, f"{value:.3f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(roles)), roles, rotation=20 if len(roles) > 3 else 0)
    axes.set_yticks(range(len(roles)), roles)
    axes.grid(visible=False)
    axes.set_xlabel("above the diagonal: tokens of the pair;\nbelow: tokens that all models share", fontsize=7.5)


def _rows_of(table: pl.DataFrame, pair: dict[str, str]) -> dict[str, dict[str, float]]:
    chosen = table.filter(*(pl.col(name) == value for name, value in pair.items()))
    return {row["measure"]: row for row in chosen.iter_rows(named=True)}


def _draw_nulls(axes: Axes, table: pl.DataFrame, pairs: pl.DataFrame) -> None:
    for place, pair in enumerate(pairs.iter_rows(named=True)):
        rows = _rows_of(table, pair)
        r = rows["r"]
        theme.interval(axes, r["value"], place - 0.25, r["low"], r["high"], theme.BLUE, "r, all shared tokens")
        rho = rows["rank correlation"]
        theme.interval(
            axes, rho["value"], place - 0.1, rho["low"], rho["high"], theme.SKY, "rank correlation, a sample"
        )
        for step, (measure, colour, label) in enumerate(_NULLS):
            if measure in rows:
                null = rows[measure]
                height = place + 0.05 + 0.13 * step
                theme.interval(axes, null["value"], height, null["low"], null["high"], colour, label)
    axes.set_xlabel("correlation")


def _draw_others(axes: Axes, table: pl.DataFrame, pairs: pl.DataFrame) -> None:
    for place, pair in enumerate(pairs.iter_rows(named=True)):
        rows = _rows_of(table, pair)
        for step, (measure, colour) in enumerate(_OTHERS):
            height = place - 0.2 + 0.2 * step
            found, null = rows[measure], rows[f"{measure}, relabelled"]
            theme.interval(axes, found["value"], height, found["low"], found["high"], colour, measure)
            axes.plot([null["value"]], [height], "o", markerfacecolor="white", color=colour, markersize=5)
    axes.set_xlabel("value")

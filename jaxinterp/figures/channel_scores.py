"""Scores of heads against what taking heads out does, and units without heads."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxinterp.figures import theme

_COLOURS = {
    "diag": theme.BLUE,
    "data at verdict": theme.GREEN,
    "data at result": theme.SKY,
    "matrix": theme.PINK,
    "probe": theme.ORANGE,
    "attention": theme.RED,
    "single effect": "black",
}
_CONDITIONS = (
    ("accepted", "accepted"),
    ("without random heads", "accepted, without\nrandom heads"),
    ("without heads that attend to the target", "accepted, without heads\nthat attend to the target"),
    ("without the circuit", "accepted, without\nthe circuit"),
    ("rejected", "rejected"),
)


def draw(table: pl.DataFrame) -> Figure:
    """Four panels: rank correlations, curves among the found heads and among all, and activations of units.

    Args:
        table: Columns `stage`, `order`, `pool`, `units`, `condition`, `measure`, `n_heads`, `draw`, `value`, `low`,
            `high`.

    Returns:
        The figure.
    """
    figure = theme.panels(2, 2, width=10.2, height=7.2, width_ratios=[1.0, 1.0])
    correlations, few, every, activity = figure.axes
    _draw_correlations(correlations, table.filter(stage="correlation"))
    curves = table.filter(stage="curve")
    _draw_curves(few, curves.filter(pool="attends to target"))
    theme.title(few, "b  Heads that attend to the target")
    _draw_curves(every, curves.filter(pool="all heads"))
    theme.title(every, "c  All heads")
    _draw_activity(activity, table.filter(stage="activity", measure="activation"))
    theme.legend_below(figure, columns=4)
    return figure


def _draw_correlations(axes: Axes, table: pl.DataFrame) -> None:
    orders = table.filter(units="valid")["order"].unique(maintain_order=True).to_list()
    for place, order in enumerate(orders):
        rows = table.filter(order=order)
        for measure, shift, filled in (
            ("Spearman with margin lost", -0.15, True),
            ("Spearman with flips", 0.15, False),
        ):
            some = rows.filter(measure=measure)
            value, low, high = some.filter(units="valid").select("value", "low", "high").row(0)
            theme.interval(axes, value, place + shift, low, high, colour=_COLOURS[order], label="_")
            if not filled:
                axes.plot(
                    value, place + shift, "o", markersize=4.5, markerfacecolor="white", color=_COLOURS[order], zorder=5
                )
            random = some.filter(units="random")["value"]
            axes.plot(random, np.full(len(random), place + shift), "|", color=theme.GREY, markersize=6, alpha=0.7)
    axes.plot([], [], "o", color=theme.GREY, label="with the margin lost")
    axes.plot([], [], "o", color=theme.GREY, markerfacecolor="white", label="with flips")
    axes.plot([], [], "|", color=theme.GREY, markersize=6, label="made of random units")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(orders)), orders)
    axes.set_ylim(len(orders) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("Spearman correlation over all heads")
    theme.title(axes, "a  Score and what taking out one head does")


def _draw_curves(axes: Axes, table: pl.DataFrame) -> None:
    random = (
        table.filter(order="random")
        .group_by("n_heads")
        .agg(pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max())
    )
    if random.height:
        columns = (random.sort("n_heads")[name].to_numpy() for name in ("n_heads", "value", "low", "high"))
        places, *percent = columns
        theme.band(axes, places, *(100 * numbers for numbers in percent), label="random orders: mean and range")
    for order, colour in _COLOURS.items():
        rows = table.filter(order=order).sort("n_heads")
        axes.plot(
            rows["n_heads"], 100 * rows["value"], marker="o", markersize=3.5, color=colour, label=order, alpha=0.85
        )
    axes.axhline(90, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(-3, 103)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("heads zeroed, highest score first")
    axes.set_ylabel("acceptances that flip (%)")


def _draw_activity(axes: Axes, table: pl.DataFrame) -> None:
    labels: list[str] = []
    kinds = (
        ("ranking", theme.BLUE, -0.22, "valid units of the ranking"),
        ("nearest in each layer", theme.GREEN, 0.0, "valid units nearest to each probe"),
        ("random", theme.GREY, 0.22, "random units (mean of the draws)"),
    )
    for condition, words in _CONDITIONS:
        here = table.filter(condition=condition)
        if not here.height:
            continue
        place = len(labels)
        labels.append(words)
        for units, colour, shift, label in kinds:
            some = here.filter(units=units)
            if some["draw"].null_count() == some.height == 1:
                theme.interval(axes, *_placed(some, place + shift), colour=colour, label=label)
            elif some.height:
                values = some["value"].to_numpy()
                axes.plot(values, np.full(len(values), place + shift), "o", color=colour, markersize=2.5, alpha=0.45)
                axes.plot(values.mean(), place + shift, "D", color=colour, markersize=5)
    axes.plot([], [], "D", color=theme.GREY, markersize=5, label="random units (mean of the draws)")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("mean activation at the verdict's opening")
    theme.title(axes, "d  Units without heads")


def _placed(row: pl.DataFrame, height: float) -> tuple[float, float, float, float]:
    value, low, high = row.select("value", "low", "high").row(0)
    return value, height, low, high

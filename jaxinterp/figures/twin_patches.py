"""How often a patch from a twin turns the verdict: what is patched, from where, and in which layer."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_ROWS = (
    ("outputs of heads that attend to the target", "attends to target", "outputs", "verdict", "twin"),
    ("    from another pair, other verdict", "attends to target", "outputs", "verdict", "another pair, other verdict"),
    ("    from another pair, same verdict", "attends to target", "outputs", "verdict", "another pair, same verdict"),
    ("    at all tokens", "attends to target", "outputs", "all tokens", "twin"),
    ("    where they look, at “ (”", "attends to target", "patterns", "verdict", "twin"),
    ("    where they look, at all tokens", "attends to target", "patterns", "all tokens", "twin"),
    ("    what they read there", "attends to target", "values", "all tokens", "twin"),
    ("    both", "attends to target", "patterns and values", "all tokens", "twin"),
    ("outputs of the circuit", "circuit", "outputs", "verdict", "twin"),
    ("    from another pair, other verdict", "circuit", "outputs", "verdict", "another pair, other verdict"),
    ("    where they look, at “ (”", "circuit", "patterns", "verdict", "twin"),
    ("first three that attend to the target", "first three that attend to target", "outputs", "verdict", "twin"),
    ("three with the largest effects", "three largest effects", "outputs", "verdict", "twin"),
    ("all heads of the model", "all heads", "outputs", "verdict", "twin"),
    ("random, outside the set", "random, outside the set", "outputs", "verdict", "twin"),
    ("random, outside the circuit too", "random, outside the circuit", "outputs", "verdict", "twin"),
)
_WAYS = (
    ("into rejected", theme.BLUE, -0.16, "accepted twin into rejected prefix"),
    ("into accepted", theme.ORANGE, 0.16, "rejected twin into accepted prefix"),
)
_DIFFERENCES = ("tens", "ones", "both digits")


def draw(table: pl.DataFrame) -> Figure:
    """Three panels: sets of heads and controls, layers, and single heads by the digits that differ.

    Args:
        table: Columns `condition`, `what`, `position`, `donor`, `direction`, `differs`, `measure`, `heads`, `layer`,
            `draw`, `value`, `low`, `high`; shares in [0, 1].

    Returns:
        The figure.
    """
    flips = table.filter(pl.col("measure") == "flips")
    figure = theme.panels(3, width=12.0, height=4.8, width_ratios=[1.2, 0.9, 0.8])
    sets, layers, digits = figure.axes
    every = flips.filter(pl.col("differs") == "all")
    _draw_sets(sets, every)
    _draw_layers(layers, every)
    _draw_digits(digits, flips)
    theme.legend_below(figure, columns=3)
    return figure


def _draw_sets(axes: Axes, table: pl.DataFrame) -> None:
    labels: list[str] = []
    for name, condition, what, position, donor in _ROWS:
        rows = table.filter(condition=condition, what=what, position=position, donor=donor)
        if not rows.height:
            continue
        height = len(labels)
        labels.append(name)
        for direction, colour, shift, label in _WAYS:
            some = rows.filter(direction=direction)
            percent = [100 * some[column].to_numpy() for column in ("value", "low", "high")]
            if some["draw"].null_count() == some.height == 1:
                value, low, high = (float(column[0]) for column in percent)
                theme.interval(axes, value, height + shift, low, high, colour=colour, label=label)
            elif some.height:
                spread = height + shift + np.linspace(-0.1, 0.1, some.height)
                axes.plot(percent[0], spread, "o", color=colour, markersize=2.5, alpha=0.45, clip_on=False)
                axes.plot(percent[0].mean(), height + shift, "D", color=colour, markersize=5.5, clip_on=False)
    axes.plot([], [], "D", color=theme.GREY, markersize=5, label="mean of the random draws (small dots)")
    axes.set_yticks(range(len(labels)), [label.lstrip() for label in labels])
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_color("black" if label == label.lstrip() else theme.GREY)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("verdicts that turn (%)")
    theme.title(axes, "a  What is patched into the twin")


def _draw_layers(axes: Axes, table: pl.DataFrame) -> None:
    for condition, line in (("residual stream", "-"), ("all heads of a layer", ":")):
        rows = table.filter(pl.col("condition") == condition, pl.col("donor") == "twin").sort("layer")
        for direction, colour, shift, _ in _WAYS:
            some = rows.filter(direction=direction)
            percent = [100 * some[column].to_numpy() for column in ("value", "low", "high")]
            places = some["layer"].to_numpy() + shift / 2
            axes.fill_between(places, percent[1], percent[2], color=colour, alpha=0.15, linewidth=0)
            axes.plot(places, percent[0], line, marker="o", color=colour, clip_on=False)
        axes.plot([], [], line, color="black", label=condition)
    same = table.filter(condition="residual stream", donor="another pair, same verdict").sort("layer")
    worst = same.group_by("layer", maintain_order=True).agg(pl.col("value").max())
    label = "residual stream of another pair, same verdict"
    axes.plot(worst["layer"], 100 * worst["value"], "--", color=theme.GREY, linewidth=1.1, label=label)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("layer")
    axes.set_ylabel("verdicts that turn (%)")
    theme.title(axes, "b  By layer")


def _draw_digits(axes: Axes, table: pl.DataFrame) -> None:
    names = {
        "first three that attend to target": "first three that\nattend to target",
        "three largest effects": "three largest\neffects",
    }
    rows = table.filter(
        pl.col("condition").is_in(["single", *names]),
        pl.col("differs") != "all",
        pl.col("donor") == "twin",
        pl.col("direction") == "into rejected",
    ).with_columns(
        name=pl.when(pl.col("condition") == "single").then("heads").otherwise(pl.col("condition").replace(names))
    )
    labels = rows["name"].unique(maintain_order=True).to_list()
    grid = np.full((len(labels), len(_DIFFERENCES)), np.nan)
    for name, differs, value in rows.select("name", "differs", "value").iter_rows():
        grid[labels.index(name), _DIFFERENCES.index(differs)] = value
    axes.imshow(100 * grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for place in zip(*np.nonzero(~np.isnan(grid)), strict=True):
        colour = "white" if grid[place] > 0.55 else "black"
        axes.text(place[1], place[0], f"{100 * grid[place]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.grid(visible=False)
    axes.set_xticks(range(len(_DIFFERENCES)), _DIFFERENCES)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("digits in which targets differ")
    theme.title(axes, "c  Into rejected, by digit (%)")

"""What was written without heads or units: outcomes under the headline rule, and success under all three."""

from __future__ import annotations

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_ROWS = (
    ("nothing taken out", "none", "token", None),
    ("units: valid", "valid units", "token", None),
    ("units: valid and invalid", "units of both polarities", "token", None),
    ("units: random", "random units", "token", None),
    ("heads that attend to the target", "attends to target", "text", None),
    ("  at “ (” only", "attends to target", "token", None),
    ("  by the paper's definition", "paper's definition", "text", None),
    ("the circuit's first head", "largest effects", "text", 1),
    ("  first two", "largest effects", "text", 2),
    ("  first three", "largest effects", "text", 3),
    ("random heads, of all", "random heads, all", "text", None),
    ("random heads, outside the circuit", "random heads, outside the circuit", "text", None),
)
_COLOURS = {
    "success": theme.BLUE,
    "partial": theme.SKY,
    "failure": theme.ORANGE,
    "unknown": theme.GREY,
}
_RULES = (
    ("rule A", theme.GREEN, -0.22, "A  first word is “not”"),
    ("rule B", theme.PINK, 0.0, "B  neither “this works” nor an answer in 50 tokens"),
    ("rule C", theme.BLUE, 0.22, "C  goes on trying"),
)


def draw(table: pl.DataFrame) -> Figure:
    """Two panels: shares of outcomes by rule C, and success by each rule.

    Args:
        table: Columns `measure`, `condition`, `reads`, `count`, `outcome`, `draw`, `value`, `low`, `high`, `n`; values
            in [0, 1].

    Returns:
        The figure.
    """
    figure = theme.panels(2, width=9.6, height=4.6, sharey=True, width_ratios=[1.0, 1.0])
    bars, rules = figure.axes
    pooled = table.filter(pl.col("draw").is_null())
    for place, (_, condition, reads, count) in enumerate(_ROWS):
        here = pooled.filter(condition=condition, reads=reads)
        if count is not None:
            here = here.filter(count=count)
        if here["value"].is_not_null().any():
            _draw_outcomes(bars, here.filter(measure="rule C"), place)
            _draw_rules(rules, here.filter(outcome="success"), place)
        else:
            for axes in figure.axes:
                axes.text(2, place, "no such heads", va="center", fontsize=8, color=theme.GREY)
    for axes, title in ((bars, "a  What is written, by rule C"), (rules, "b  Success by each rule")):
        axes.set_xlim(0, 101)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
        axes.set_xlabel("traces (%)")
        theme.title(axes, title)
    bars.set_yticks(range(len(_ROWS)), [name for name, *_ in _ROWS])
    bars.set_ylim(len(_ROWS) - 0.4, -0.6)
    theme.legend_below(figure, columns=4)
    return figure


def _draw_outcomes(axes: Axes, rows: pl.DataFrame, place: int) -> None:
    left = 0.0
    for outcome, colour in _COLOURS.items():
        share = 100 * float(rows.filter(outcome=outcome)["value"].to_numpy().sum())
        axes.barh(place, share, 0.7, left=left, color=colour, label=outcome)
        left += share


def _draw_rules(axes: Axes, rows: pl.DataFrame, place: int) -> None:
    for rule, colour, shift, label in _RULES:
        found = rows.filter(measure=rule)
        value, low, high = (100 * found[column][0] for column in ("value", "low", "high"))
        theme.interval(axes, value, place + shift, low, high, colour=colour, label=label)

"""How well models verify attempts that they are only shown how to verify."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_MEASURES = (
    ("balanced accuracy", theme.BLUE, "balanced accuracy"),
    ("right on valid", theme.GREEN, "right where “this” is right"),
    ("right on invalid", theme.ORANGE, "right where “not” is right"),
    ("pairs in order", theme.PINK, "twins told apart by the margin"),
    ("names a verdict", theme.GREY, "most probable word is a verdict"),
)


def draw(table: pl.DataFrame) -> Figure:
    """One panel per model: every measure for each number of worked traces.

    Args:
        table: Columns `model`, `shots`, `condition`, `measure`, `value`, `low`, `high`; shares in [0, 1].

    Returns:
        The figure.
    """
    models = table["model"].unique(maintain_order=True).to_list()
    figure = theme.panels(len(models), width=max(4.6, 4.2 * len(models)), height=3.2, sharey=True)
    for letter, axes, model in zip("abcdefgh", figure.axes, models, strict=False):
        here = table.filter(pl.col("model") == model)
        shots = here["shots"].unique().sort().to_list()
        for place, count in enumerate(shots):
            rows = here.filter(pl.col("shots") == count)
            asked = rows.filter(pl.col("condition") == "asked")
            for number, (measure, colour, label) in enumerate(_MEASURES):
                row = asked.filter(pl.col("measure") == measure).row(0, named=True)
                height = place + 0.14 * (number - (len(_MEASURES) - 1) / 2)
                numbers = [100 * row[name] for name in ("value", "low", "high")]
                theme.interval(axes, numbers[0], height, numbers[1], numbers[2], colour=colour, label=label)
            shuffled = rows.filter(pl.col("condition") == "shuffled verdicts").row(0, named=True)
            span = [100 * shuffled[name] for name in ("low", "high")]
            label = "shuffled verdicts, middle 95 %"
            axes.fill_betweenx(
                [place - 0.42, place + 0.42], *span, color=theme.GREY, alpha=0.2, linewidth=0, label=label
            )
        axes.axvline(60, color=theme.RED, linewidth=1, linestyle="--", label="gate for balanced accuracy")
        axes.set_yticks(range(len(shots)), [f"{count} worked traces" for count in shots])
        axes.set_ylim(len(shots) - 0.5, -0.5)
        axes.set_xlim(-3, 103)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
        axes.set_xlabel("share (%)")
        theme.title(axes, f"{letter}  {model}")
    theme.legend_below(figure, columns=3)
    return figure

"""How training went, from the logs of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_SUPERVISED = (
    ("Loss", "nats per token", ("loss", "held_out")),
    ("Likeliest token is right", "share", ("verdict", "digits", "yes_no")),
    ("Speed", "tokens a second", ("tokens_per_second",)),
)
_PRACTISED = (
    ("Reward", "mean, share", ("reward", "correct")),
    ("Entropy of styles", "nats", ("style_entropy",)),
    ("Verdicts that are true", "share", ("accepted_true", "rejected_true")),
    ("Attempts", "a response", ("attempts",)),
    ("Divergence from the start", "nats a token", ("kl",)),
    ("Cut off, teaching nothing", "share", ("truncated", "dead_groups")),
)
_COLOURS = (theme.BLUE, theme.ORANGE, theme.GREEN, theme.PINK, theme.SKY, theme.RED)
_LINES = ("-", "--", ":")
_POINTS = 60


def draw(logs: Mapping[str, pl.DataFrame]) -> Figure:
    """Panels over the steps of training; a colour for each run, and a line for each measure of a panel.

    Args:
        logs: By the name of the run: logs of supervised training, or of practice. Long ones are shown as means over
            neighbouring steps, some sixty points a line.

    Returns:
        The figure.

    Raises:
        ValueError: There is no log, some are of another kind than others, or they are too many to tell apart.
    """
    kinds = {"reward" in log.columns for log in logs.values()}
    if len(kinds) != 1 or len(logs) > len(_COLOURS):
        raise ValueError(
            f"{len(logs)} logs cannot be drawn together; name 1 to {len(_COLOURS)}, all of supervised training or all "
            "of practice"
        )
    wanted = _PRACTISED if kinds.pop() else _SUPERVISED
    known = [panel for panel in wanted if any(column in log.columns for log in logs.values() for column in panel[2])]
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    figure = theme.panels(columns, rows, width=3.4 * columns, height=2.6 * rows)
    for place, (axes, (name, unit, measures)) in enumerate(zip(figure.axes, known, strict=False)):
        _panel(axes, logs, measures)
        axes.set_ylabel(unit)
        axes.set_xlabel("step")
        theme.title(axes, f"{'abcdef'[place]}  {name}")
    for axes in figure.axes[len(known) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, logs: Mapping[str, pl.DataFrame], measures: tuple[str, ...]) -> None:
    for (run, log), colour in zip(logs.items(), _COLOURS, strict=False):
        for measure, line in zip(measures, _LINES, strict=False):
            if measure not in log.columns:
                continue
            told = [run] if len(logs) > 1 else []
            told += [measure.replace("_", " ")] if len(measures) > 1 else []
            steps, values = _thinned(log, measure)
            axes.plot(steps, values, line, color=colour, linewidth=1.4, label=", ".join(told))
    if axes.get_legend_handles_labels()[1] and any(axes.get_legend_handles_labels()[1]):
        axes.legend(loc="best", frameon=False, fontsize=7)


def _thinned(log: pl.DataFrame, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbouring rows; rows without the measure are left out."""
    known = log.select("step", pl.col(measure).cast(pl.Float64)).drop_nulls()
    parts = np.array_split(known.to_numpy(), min(_POINTS, max(known.height, 1)))
    means = np.array([part.mean(axis=0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]

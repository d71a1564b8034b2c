"""What training by reinforcement changed: weights, answers to plain questions, problems solved, and styles."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_KINDS = ("out", "gate", "up", "Q", "K", "V", "O")
_CONDITIONS = (
    ("nothing", "none"),
    ("attend to target", "target"),
    ("circuit", "circuit"),
    ("circuit's first", "first of the circuit"),
    ("random, all", "random, all"),
    ("random, outside", "random, outside"),
)
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "columnspacing": 1.2, "handletextpad": 0.5}
_MODELS = (("start", "before"), ("model", "after"))
_STYLE_COLOURS = (theme.BLUE, theme.SKY, theme.GREEN, theme.PINK, theme.ORANGE, theme.RED, "#C9B458", theme.GREY)


def draw(table: pl.DataFrame) -> Figure:
    """Four panels: cosines of listed vectors, answers without heads, problems solved, and styles.

    Args:
        table: Columns `part`, `measure`, `model`, `condition`, `kind`, `value`, `low`, `high`, `control`.

    Returns:
        The figure.
    """
    figure = theme.panels(2, 2, width=10.2, height=6.4, width_ratios=[1.0, 1.3])
    weights, answers, solved, styles = figure.axes
    _draw_weights(weights, table.filter(part="weights", measure="cosine"))
    _draw_answers(answers, table.filter(part="questions"))
    behaviour = table.filter(part="behaviour")
    _draw_solved(solved, behaviour)
    _draw_styles(styles, behaviour)
    return figure


def _draw_weights(axes: Axes, rows: pl.DataFrame) -> None:
    for place, kind in enumerate(_KINDS):
        here = rows.filter(kind=kind)
        for listed, colour, mark, label in (
            (True, theme.BLUE, "o", "listed units and heads"),
            (False, theme.GREY, "_", "mean of all others"),
        ):
            values = 1 - here.filter(pl.col("control") != listed)["value"].to_numpy()
            spread = np.linspace(-0.2, 0.2, len(values)) if listed else np.zeros(len(values))
            size = 3.5 if listed else 16
            axes.plot(
                place + spread,
                np.clip(values, 1e-8, None),
                mark,
                color=colour,
                markersize=size,
                alpha=0.7,
                label=label if place == 0 else None,
            )
    axes.set_yscale("log")
    axes.set_xticks(range(len(_KINDS)), _KINDS)
    axes.set_xlabel("vector of a unit, matrix of a head")
    axes.set_ylabel("1 - cosine, before and after")
    axes.set_ylim(top=axes.get_ylim()[1] * 6)
    axes.legend(loc="upper left", **_LEGEND)
    theme.title(axes, "a  Weights")


def _draw_answers(axes: Axes, rows: pl.DataFrame) -> None:
    for place, (_, condition) in enumerate(_CONDITIONS):
        for (model, when), base in zip(_MODELS, (-0.2, 0.2), strict=True):
            for measure, colour, shift, answer in (
                ("Yes to right attempts", theme.BLUE, -0.07, "Yes to right attempts"),
                ("No to wrong attempts", theme.ORANGE, 0.07, "No to wrong attempts"),
            ):
                found = rows.filter(condition=condition, model=model, measure=measure)
                if found.height:
                    value, low, high = (100 * found[column][0] for column in ("value", "low", "high"))
                    errors = np.clip([[value - low], [high - value]], 0, None)
                    axes.errorbar(
                        [value],
                        [place + base + shift],
                        xerr=errors,
                        color=colour,
                        marker="o",
                        markersize=4.5,
                        markerfacecolor="white" if model == "start" else colour,
                        linestyle="none",
                        capsize=2,
                        elinewidth=1,
                        clip_on=False,
                        label=f"{answer}, {when} training" if place == 0 else None,
                    )
    axes.set_yticks(range(len(_CONDITIONS)), [name for name, _ in _CONDITIONS])
    axes.set_ylim(len(_CONDITIONS) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("questions (%)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2, **_LEGEND)
    theme.title(axes, "b  Is it right? Answers without heads")


def _draw_solved(axes: Axes, rows: pl.DataFrame) -> None:
    names = (("solved greedily", "greedily"), ("solved at temperature 1", "at temperature 1"))
    for (model, when), colour, shift in zip(_MODELS, (theme.ORANGE, theme.BLUE), (-0.18, 0.18), strict=True):
        for place, (measure, _) in enumerate(names):
            found = rows.filter(model=model, measure=measure)
            value, low, high = (100 * found[column][0] for column in ("value", "low", "high"))
            errors = np.clip([[value - low], [high - value]], 0, None)
            label = f"{when} training" if place == 0 else None
            axes.bar(place + shift, value, 0.34, color=colour, label=label, yerr=errors, capsize=2)
            axes.text(place + shift, 3, f"{value:.1f}", ha="center", color="white", fontsize=8)
    axes.set_xticks(range(len(names)), [name for _, name in names])
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("problems solved (%)")
    axes.legend(loc="upper left", ncols=2, **_LEGEND)
    theme.title(axes, "c  Problems")


def _draw_styles(axes: Axes, rows: pl.DataFrame) -> None:
    shares = rows.filter(measure="style")
    names = shares["kind"].unique(maintain_order=True).to_list()
    left = np.zeros(len(_MODELS))
    for name, colour in zip(names, _STYLE_COLOURS, strict=True):
        here = [100 * shares.filter(kind=name, model=model)["value"][0] for model, _ in _MODELS]
        axes.barh(range(len(_MODELS)), here, 0.6, left=left, color=colour, label=name)
        left += here
    for place, (model, _) in enumerate(_MODELS):
        entropy = rows.filter(measure="style entropy", model=model)["value"][0]
        axes.text(0, place - 0.36, f"entropy {entropy:.2f} nat", fontsize=8, va="bottom")
    axes.set_yticks(range(len(_MODELS)), [f"{when}\ntraining" for _, when in _MODELS])
    axes.set_ylim(len(_MODELS) - 0.5, -0.6)
    axes.set_xlim(0, 101)
    axes.grid(visible=False)
    axes.set_xlabel("texts at temperature 1 (%)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=4, **_LEGEND)
    theme.title(axes, "d  Word of acceptance")

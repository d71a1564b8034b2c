"""The logit lens as heat maps: verdict words over blocks, for both verdicts, as it is and without some parts."""

from __future__ import annotations

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_CONDITIONS = (
    ("clean", "untouched"),
    ("units", "units of both polarities zeroed at “ (”"),
    ("target heads", "heads that attend to the target zeroed"),
    ("circuit", "all heads that matter alone zeroed"),
)
_MAPS = {"accepts": "Blues", "rejects": "Oranges"}
_MOST_LAYERS = 16


def draw(table: pl.DataFrame) -> Figure:
    """One row of panels per condition: accepted attempts on the left, rejected ones on the right.

    Args:
        table: As from the experiment `lens`: columns `measure`, `condition`, `verdict`, `layer`, `site`, `rank`,
            `token`, `word` and `value` in [0, 1].

    Returns:
        The figure.
    """
    there = [pair for pair in _CONDITIONS if pair[0] in table["condition"].unique().to_list()]
    layers = table["layer"].unique().sort().to_list()[-_MOST_LAYERS:]
    height = len(there) * (0.19 * len(layers) + 0.95)
    drawn = theme.panels(2, len(there), width=11.4, height=height, sharey=True)
    for place, (condition, name) in enumerate(there):
        for column, verdict in enumerate(("valid", "invalid")):
            axes = drawn.axes[2 * place + column]
            rows = table.filter(pl.col("layer").is_in(layers), condition=condition, verdict=verdict, site="resid_post")
            _draw_map(axes, rows, layers)
            letter = "abcdefgh"[2 * place + column]
            theme.title(axes, f"{letter}  t_{verdict}, {name}")
        drawn.axes[2 * place].set_ylabel("after block")
    return drawn


def _draw_map(axes: Axes, table: pl.DataFrame, layers: list[int]) -> None:
    words = table.filter(measure="word").sort("layer", maintain_order=True)
    first = words.filter(layer=layers[0])
    names, kinds = first["token"].to_list(), first["word"].to_list()
    values = words["value"].to_numpy().reshape(len(layers), len(names))
    for column, kind in enumerate(kinds):
        for height, value in enumerate(values[:, column]):
            shade = mpl.colormaps[_MAPS[kind]](0.04 + 0.8 * value)
            axes.fill_between([column - 0.5, column + 0.5], height - 0.5, height + 0.5, color=shade, linewidth=0)
            if value >= 0.005:
                colour = "white" if value > 0.6 else "black"
                _write(axes, column, height, f"{value:.2f}".removeprefix("0"), colour)
    others = table.filter(pl.col("word").is_null(), measure="top").sort("rank").unique("layer", keep="first")
    for layer, token, value in others.select("layer", "token", "value").iter_rows():
        text = f"{token}".replace("\n", "↵").replace(" ", "·")
        _write(axes, len(names) + 0.35, layers.index(layer), f"{text[:13]}  {value:.2f}", theme.GREY)
    split = kinds.index("rejects") - 0.5 if "rejects" in kinds else len(names) - 0.5
    for edge in (split, len(names) - 0.5):
        axes.axvline(edge, color="white", linewidth=2.5)
    axes.set_xlim(-0.5, len(names) + 1.4)
    axes.set_ylim(-0.5, len(layers) - 0.5)
    labels = [*(name.strip() for name in names), "likeliest other"]
    axes.set_xticks([*range(len(names)), len(names) + 0.45], labels, fontsize=7, rotation=35, ha="right")
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7.5)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", pad=0)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _write(axes: Axes, column: float, height: float, text: str, colour: str) -> None:
    axes.text(column, height, text, ha="center", va="center", fontsize=6.5, color=colour)

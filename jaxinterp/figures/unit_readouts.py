"""MLP units: the tokens that each writes for or against, when it is active, and what happens without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxinterp.figures import theme

_SHOWN = 8
"""Units of each polarity in the table of readouts."""
_PLACES = 8
_SHADES = {"accepts": "#BFDDF2", "rejects": "#F8DDA8", None: "#F4F4F4"}
_KINDS = (("valid", theme.BLUE, "t_valid"), ("invalid", theme.ORANGE, "t_invalid"))
_CURVES = (
    ("cosine", "valid", theme.BLUE, "valid units"),
    ("cosine", "invalid", theme.ORANGE, "invalid units"),
    ("cosine", "both", theme.RED, "both"),
    ("activation", "both", theme.GREEN, "both, chosen by activation and product"),
)


def draw(table: pl.DataFrame) -> Figure:
    """A table of readouts with activations beside it, and under it shares of readable units and ablation curves.

    Args:
        table: As from the experiment `units`: columns `part`, `measure`, `list`, `polarity`, `layer`, `unit`, `rank`,
            `place`, `token`, `word`, `k`, `draw`, `value`, `low`, `high`.

    Returns:
        The figure.
    """
    drawn = theme.panels(4, 2, width=11.6, height=8.4, height_ratios=[1.75, 1.0])
    top, (words, flips, kept, margins) = drawn.axes[:4], drawn.axes[4:]
    grid = drawn.axes[0].get_subplotspec().get_gridspec()  # pyright: ignore[reportOptionalMemberAccess]
    for axes in top:
        axes.remove()
    readouts = drawn.add_subplot(grid[0, :3])
    activations = drawn.add_subplot(grid[0, 3], sharey=readouts)
    shown = [
        {"polarity": polarity, "layer": layer, "unit": unit, "cosine": value}
        for polarity in ("valid", "invalid")
        for layer, unit, value in table.filter(part="unit", list="ranking", polarity=polarity, measure="largest cosine")
        .sort("rank")
        .head(_SHOWN)
        .select("layer", "unit", "value")
        .iter_rows()
    ]
    _draw_readouts(readouts, table.filter(part="readout", list="ranking"), shown)
    _draw_activations(activations, table.filter(part="unit", list="ranking"), shown)
    _draw_words(words, table.filter(part="list"))
    ablation = table.filter(part="ablation")
    _draw_curves(flips, ablation, "flips", "acceptances that flip (%)", "d  Zeroed at “ (”: acceptances", 100)
    _draw_curves(kept, ablation, "rejections kept", "rejections that stay (%)", "e  … and rejections", 100)
    _draw_curves(
        margins, ablation, "margin, accepted", "accepting - rejecting logit (nats)", "f  … margin at t_valid", 1
    )
    theme.legend_below(drawn, columns=5)
    return drawn


def _heights(shown: Sequence[dict[str, Any]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Rows of the table from above, with a gap between the polarities."""
    for place, unit in enumerate(shown):
        yield place + 1.2 * (unit["polarity"] != shown[0]["polarity"]), unit


def _of(table: pl.DataFrame, unit: dict[str, Any]) -> pl.DataFrame:
    return table.filter(polarity=unit["polarity"], layer=unit["layer"], unit=unit["unit"])


def _draw_readouts(axes: Axes, table: pl.DataFrame, shown: Sequence[dict[str, Any]]) -> None:
    starts = {"v": 2.1, "-v": 2.1 + _PLACES + 0.3}
    for height, unit in _heights(shown):
        axes.text(0.0, height, f"L{unit['layer']}.U{unit['unit']}", va="center", fontsize=7.5)
        axes.text(1.9, height, f"{unit['cosine']:.2f}", va="center", ha="right", fontsize=7.5)
        for row in _of(table, unit).iter_rows(named=True):
            left = starts[row["measure"]] + row["place"]
            shade = _SHADES[row["word"]]
            axes.add_patch(Rectangle((left, height - 0.44), 0.96, 0.88, facecolor=shade, edgecolor="none"))
            text = _visible(row["token"])
            axes.text(left + 0.48, height, text, ha="center", va="center", fontsize=6 if len(text) < 9 else 5)
    last = max((height for height, _ in _heights(shown)), default=0)
    for polarity, height in (("valid", -0.9), ("invalid", _SHOWN + 0.3)):
        if any(unit["polarity"] == polarity for unit in shown):
            axes.text(0.0, height, polarity, va="center", fontsize=7, fontweight="bold")
            axes.text(1.95, height, "cos", va="center", ha="right", fontsize=7, color=theme.GREY)
            for name, left in starts.items():
                text = f"raised most by {name}"
                axes.text(left, height, text, va="center", fontsize=7, color=theme.GREY)
    axes.set_xlim(0, starts["-v"] + _PLACES)
    axes.set_ylim(last + 0.6, -1.5)
    axes.set_axis_off()
    theme.title(axes, "a  What the units nearest to the probe write")


def _visible(token: str) -> str:
    """A token with its spaces and line ends to be seen, cut to what fits."""
    text = token.replace("\n", "↵").replace(" ", "·")
    return text if len(text) <= 11 else text[:10] + "…"


def _draw_activations(axes: Axes, table: pl.DataFrame, shown: Sequence[dict[str, Any]]) -> None:
    for height, unit in _heights(shown):
        here = _of(table, unit)
        for (kind, colour, label), shift in zip(_KINDS, (-0.14, 0.14), strict=True):
            row = here.filter(measure=f"activation at {kind} verdicts").row(0, named=True)
            theme.interval(
                axes, row["value"], height + shift, row["low"], row["high"], colour, f"activation at {label}"
            )
    axes.axvline(0, color=theme.GREY, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xticks([-10, -1, 0, 1, 10], ["-10", "-1", "0", "1", "10"])
    axes.minorticks_off()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("mean activation (log beyond 1)", fontsize=9)
    theme.title(axes, "b  When they write it")


def _draw_words(axes: Axes, table: pl.DataFrame) -> None:
    groups = [
        ("ranking", "valid", "valid, first 20"),
        ("ranking", "invalid", "invalid, first 20"),
        ("activation", "valid", "valid, by\nactivation"),
        ("activation", "invalid", "invalid, by\nactivation"),
        ("random", "valid", "random,\nas valid"),
        ("random", "invalid", "random,\nas invalid"),
    ]
    measures = (
        ("right words in v", theme.GREEN, "right words in v", -0.22),
        ("right words in v or -v", theme.GREY, "right words in v or -v", 0.0),
        ("opposite words in -v", theme.PINK, "opposite words in -v", 0.22),
    )
    for place, (name, polarity, _) in enumerate(groups):
        for measure, colour, label, shift in measures:
            rows = table.filter(list=name, polarity=polarity, measure=measure)
            if rows.height:
                value, low, high = (100 * rows[column][0] for column in ("value", "low", "high"))
                theme.interval(axes, value, place + shift, low, high, colour, label)
    axes.axvline(50, color=theme.GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(groups)), [name for *_, name in groups], fontsize=7.5)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("units with 3 of 6 words in 8 tokens (%)")
    theme.title(axes, "c  Readable units")


def _draw_curves(axes: Axes, table: pl.DataFrame, measure: str, label: str, title: str, factor: float) -> None:
    here = table.filter(measure=measure).sort("units")
    random = here.filter(list="random").group_by("units", maintain_order=True)
    random = random.agg(middle=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max())
    spread = [factor * random[name].to_numpy() for name in ("middle", "low", "high")]
    theme.band(axes, random["units"].to_numpy(), *spread, label="random units (mean, range)")
    for name, polarity, colour, text in _CURVES:
        rows = here.filter(list=name, polarity=polarity)
        numbers = [factor * rows[column].to_numpy() for column in ("value", "low", "high")]
        theme.curve(axes, rows["units"].to_list(), *numbers, colour=colour, label=text)
    untouched = here.filter(list="none")["value"]
    if factor == 1 and len(untouched):
        axes.axhline(float(untouched[0]), color="black", linewidth=0.8, linestyle=":", label="untouched")
    if factor == 100:
        axes.set_ylim(-3, 103)
    axes.set_xscale("log", base=2)
    ticks = np.unique(here.filter(list="random")["units"].to_numpy())
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7.5)
    axes.minorticks_off()
    axes.set_xlabel("units zeroed, all layers together")
    axes.set_ylabel(label)
    theme.title(axes, title)

"""How many dimensions tokens' neighbours spread over, whether models agree on it, and what it says about meaning."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_COLOURS = (theme.BLUE, theme.RED, theme.GREEN, theme.PINK, theme.SKY, theme.ORANGE)
_REFERENCES = (
    ("Gaussian", "random", theme.GREY),
    ("Gaussian of its covariance", "random, its covariance", theme.ORANGE),
)
_SHOWN = 6


def draw(table: pl.DataFrame) -> Figure:
    """A histogram for each model with its references; the agreement over sizes; and coherence by tenth of dimension.

    Args:
        table: Columns `part`, `measure`, `model`, `other`, `k`, `variant`, `place`, `token`, `value`, `low`, `high`,
            `control`.

    Returns:
        The figure.
    """
    models = table["model"].drop_nulls().unique(maintain_order=True).to_list()
    colours = dict(zip(models, itertools.cycle(_COLOURS), strict=False))
    columns = max(2, len(models))
    drawn = theme.panels(columns, 2, width=4.1 * columns, height=6.4)
    grid = np.array(drawn.axes).reshape(2, columns)
    for axes, model in zip(grid[0], models, strict=False):
        _draw_histogram(axes, table.filter(pl.col("model") == model), model, colours[model])
    _draw_agreement(grid[1, 0], table.filter(pl.col("part") == "agreement"))
    _draw_coherence(grid[1, 1], table.filter(pl.col("part") == "coherence"), colours)
    for axes in (*grid[0, len(models) :], *grid[1, 2:]):
        axes.remove()
    return drawn


def _draw_histogram(axes: Axes, table: pl.DataFrame, model: str, colour: str) -> None:
    words = table.filter(pl.col("part") == "word")
    values = words.filter(pl.col("variant").is_null())["value"].to_numpy()
    width = float(np.ceil((values.max() - values.min() + 1) / 36))
    bins = np.arange(values.min() - 0.5, values.max() + width, width)
    shares, _, _ = axes.hist(
        values, bins=list(bins), weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.7
    )
    middle = float(values.mean())
    axes.plot(
        [middle, middle], [0, 1.08 * np.max(shares)], "--", color=colour, linewidth=1.2, label=f"words {middle:.0f}"
    )
    for name, label, shade in _REFERENCES:
        part = words.filter(pl.col("variant") == name)["value"].to_numpy()
        axes.axvspan(part.min() - 0.5, part.max() + 0.5, color=shade, alpha=0.3, linewidth=0)
        axes.axvline(float(part.mean()), color=shade, linewidth=1.2, linestyle="--", label=f"{label} {part.mean():.0f}")
    axes.set_ylim(0, 1.75 * np.max(shares))
    for kind, place in (("lowest", 0.02), ("highest", 0.42)):
        shown = table.filter(pl.col("part") == "example", pl.col("measure") == kind).sort("place").head(_SHOWN)
        lines = [f"{kind}:", *(f"{row['token']} {row['value']:.0f}" for row in shown.iter_rows(named=True))]
        axes.text(place, 0.98, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=7)
    theme.title(axes, f"Dimension of {words['k'][0]} neighbours, {model}")
    axes.set_xlabel("components for 95 % of the variance")
    axes.set_ylabel("share of words")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=3,
        fontsize=7,
        frameon=False,
        columnspacing=0.9,
        handlelength=1.3,
    )


def _draw_agreement(axes: Axes, table: pl.DataFrame) -> None:
    theme.title(axes, "Do models agree on a word's dimension?")
    axes.axhline(0, color="black", linewidth=0.8)
    pairs = table.select("model", "other").unique(maintain_order=True).rows()
    if not pairs:
        axes.text(0.5, 0.5, "one model only", transform=axes.transAxes, ha="center")
        return
    sizes = table["k"].drop_nulls().unique().sort().to_list()
    for number, (model, other) in enumerate(pairs):
        part = table.filter(pl.col("model") == model, pl.col("other") == other).sort("k")
        named = f"{model}, {other}: " if len(pairs) > 1 else ""
        colour = _COLOURS[number % len(_COLOURS)]
        for measure, line, label in (
            ("Pearson", "-", "r"),
            ("Pearson given rank and norm", ":", "given rank and norm"),
        ):
            rows = part.filter(pl.col("measure") == measure)
            shown = (rows[name].to_list() for name in ("value", "low", "high"))
            theme.curve(axes, range(len(sizes)), *shown, colour=colour, label=f"{named}{label}")
            axes.containers[-1][0].set(linestyle=line)
        if not number:
            null = part.filter(pl.col("measure") == "relabelled within rank bins")
            shown = (null[name].to_list() for name in ("value", "low", "high"))
            theme.band(axes, range(len(sizes)), *shown, label="relabelled within rank bins")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlabel("neighbours")
    axes.set_ylabel("Pearson's r of dimensions")
    axes.legend(loc="best", fontsize=7, frameon=False)


def _draw_coherence(axes: Axes, table: pl.DataFrame, colours: dict[str, str]) -> None:
    size = table.filter(pl.col("measure") == "lowest / highest decile")["k"].max()
    for model, colour in colours.items():
        part = table.filter(pl.col("model") == model)
        rows = part.filter(pl.col("measure") == "by decile", pl.col("k") == size).sort("place")
        shown = (rows[name].to_list() for name in ("value", "low", "high"))
        theme.curve(axes, (rows["place"] + 1).to_list(), *shown, colour=colour, label=model)
    chance = float(table.filter(pl.col("measure") == "of random words")["value"].to_numpy().mean())
    axes.axhline(chance, color=theme.GREY, linestyle="--", linewidth=1.1, label="random words")
    axes.set_xticks(range(1, 11))
    axes.set_ylim(bottom=0)
    theme.title(axes, "Related in WordNet, by dimension")
    axes.set_xlabel(f"tenth of words by dimension ({size} neighbours)")
    axes.set_ylabel("share of nearest words")
    axes.legend(loc="best", fontsize=7, frameon=False)

"""Models of one family: how alike their tables are, and what carried vectors do."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxinterp.figures import theme

_SHOWN = (
    ("native", theme.BLUE, "o"),
    ("least squares", theme.RED, "D"),
    ("orthogonal", theme.ORANGE, "s"),
    ("input embeddings", theme.PINK, "^"),
)
_NULLS = (("shuffled map", theme.GREY, "shuffled maps, range"), ("random", theme.SKY, "random vectors, middle 95 %"))


def draw(table: pl.DataFrame) -> Figure:
    """Agreement of input embeddings and of unembeddings, effects with their nulls, and ratios over depth.

    Args:
        table: As `jaxinterp.experiments.within_family.run` makes it.

    Returns:
        The figure.
    """
    drawn = theme.panels(2, 2, width=10.4, height=8.2, width_ratios=[1, 1.25])
    first, effects, second, depths = drawn.axes
    names = pl.concat([table["first"], table["second"]]).unique(maintain_order=True).drop_nulls().to_list()
    found = table.filter(pl.col("part") == "geometry", pl.col("measure") == "r", pl.col("method") == "centred")
    for axes, name, label in ((first, "W_E", "Input embeddings"), (second, "W_U", "Unembeddings")):
        _draw_matrix(axes, names, found.filter(pl.col("table") == name))
        theme.title(axes, f"{label}: r of pairwise cosines")
    _draw_effects(effects, table)
    _draw_depths(depths, table)
    theme.legend_below(drawn, columns=4)
    return drawn


def _draw_matrix(axes: Axes, names: list[str], table: pl.DataFrame) -> None:
    values = np.eye(len(names))
    for row in table.iter_rows(named=True):
        places = names.index(row["first"]), names.index(row["second"])
        values[places] = values[places[::-1]] = row["value"]
    axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", aspect="equal")
    for (y, x), value in np.ndenumerate(values):
        if x != y:
            shade = "white" if abs(value) > 0.6 else "black"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)


def _draw_effects(axes: Axes, table: pl.DataFrame) -> None:
    """One row a direction: the vectors' effects, the effects of the same vectors after the last block, the nulls."""
    effects = table.filter(pl.col("part") == "effect", pl.col("chosen"))
    direct = table.filter(pl.col("part") == "direct path")
    directions = list(effects.select("first", "second").unique(maintain_order=True).iter_rows())
    for row, (first, second) in enumerate(directions[::-1]):
        here = pl.col("first") == first, pl.col("second") == second
        for place, (method, colour, label) in enumerate(_NULLS):
            values = effects.filter(*here, pl.col("method") == method)["value"].to_numpy()
            if len(values):
                ends = (values.min(), values.max()) if method == "shuffled map" else np.quantile(values, [0.025, 0.975])
                height = row - 0.33 + 0.1 * place
                axes.plot(ends, [height, height], color=colour, linewidth=4, alpha=0.6, label=label)
        for place, (method, colour, marker) in enumerate(_SHOWN):
            height = row + 0.32 - 0.14 * place
            for part, filled, label in ((effects, True, method), (direct, False, f"{method}, direct path")):
                for found in part.filter(*here, pl.col("method") == method).iter_rows(named=True):
                    errors = np.clip([[found["value"] - found["low"]], [found["high"] - found["value"]]], 0, None)
                    axes.errorbar(
                        [found["value"]],
                        [height],
                        xerr=errors,
                        color=colour,
                        marker=marker,
                        markersize=5,
                        markerfacecolor=colour if filled else "white",
                        linestyle="none",
                        elinewidth=1,
                        label=label,
                    )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(directions)), [f"{first}\nto {second}" for first, second in directions[::-1]])
    axes.set_xlabel("effect on the register of the next verb, nats")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    theme.title(axes, "Steering in the middle of the model")


def _draw_depths(axes: Axes, table: pl.DataFrame) -> None:
    """Effects over depth as a share of the native vector's, by least squares; the shuffled maps' range below."""
    scale = table.filter(pl.col("part") == "effect", pl.col("chosen"))["scale"].to_list()[:1]
    effects = table.filter(pl.col("part") == "effect", pl.col("scale").is_in(scale))
    keys = ["first", "second", "depth"]
    native = effects.filter(pl.col("method") == "native").select(*keys, native="value")
    shares = effects.join(native, on=keys).with_columns(share=pl.col("value") / pl.col("native"))
    carried = shares.filter(pl.col("method") == "least squares").sort("depth")
    colours = (theme.BLUE, theme.SKY, theme.GREEN, theme.ORANGE, theme.PINK, theme.RED)
    for index, ((first, second), part) in enumerate(carried.group_by("first", "second", maintain_order=True)):
        colour = colours[index % len(colours)]
        axes.plot(part["depth"], part["share"], "o-", color=colour, markersize=4.5, label=f"{first} to {second}")
    wrong = (
        shares.filter(pl.col("method") == "shuffled map")
        .group_by("depth")
        .agg(middle=pl.col("share").mean(), low=pl.col("share").min(), high=pl.col("share").max())
    )
    wrong = wrong.sort("depth")
    theme.band(axes, *(wrong[name].to_list() for name in ("depth", "middle", "low", "high")), label="shuffled maps")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("depth, share of the blocks")
    axes.set_ylabel("carried effect / native effect")
    theme.title(axes, "Least squares over depth (criterion: 0.5)")

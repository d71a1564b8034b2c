"""Local geometry: how alike the weights of neighbours are, against nulls, and the neighbours themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxinterp.figures import theme

_COLOURS = (theme.BLUE, theme.RED, theme.GREEN, theme.PINK, theme.SKY, theme.ORANGE)
_SHADE, _PLAIN = "#BFDDF2", "#F4F4F4"
_BARE = "own neighbours without other spellings"
_MOST_LETTERS = 11
_METRICS = {"cosine": "cosine", "euclidean": "Euclid"}
_NULLS = (
    ("relabelled", "x", "null: tokens relabelled"),
    ("relabelled within rank bins", "+", "null: relabelled within rank bins"),
    ("Gaussian tables", "d", "null: Gaussian tables"),
)


def draw(table: pl.DataFrame) -> Figure:
    """Three panels of numbers over a table of neighbours, those that both models have shaded.

    Args:
        table: As from the experiment `local_geometry`: columns `pair`, `tokens`, `metric`, `k`, `part`, `measure`,
            `model`, `null`, `token`, `place`, `value`, `low`, `high`, `control`, `text`.

    Returns:
        The figure.
    """
    first = table.filter(pair=table["pair"][0])
    shown = first.filter(part="examples")["token"].unique(maintain_order=True).to_list()
    height = 3.6 + 0.32 * (len(shown) + 2)
    drawn = theme.panels(3, 2, width=12.6, height=height, height_ratios=[3.6, max(0.32 * (len(shown) + 2), 0.2)])
    own, histogram, same = drawn.axes[:3]
    grid = drawn.axes[0].get_subplotspec().get_gridspec()  # pyright: ignore[reportOptionalMemberAccess]
    for axes in drawn.axes[3:]:
        axes.remove()
    examples = drawn.add_subplot(grid[1, :])
    colours = dict(zip(table["pair"].unique(maintain_order=True), _COLOURS, strict=False))
    _draw_own(own, table, colours)
    _draw_histogram(histogram, table.filter(part="histogram"), colours)
    _draw_same(same, table.filter(part="same neighbours"), colours)
    _draw_examples(examples, first.filter(part="examples"), shown)
    theme.legend_below(drawn, columns=4)
    return drawn


def _settings(table: pl.DataFrame) -> list[tuple[str, str, int]]:
    return list(table.select("tokens", "metric", "k").unique(maintain_order=True).iter_rows())


def _draw_own(axes: Axes, table: pl.DataFrame, colours: Mapping[str, str]) -> None:
    here = table.filter(part="own neighbours", measure="mean cosine")
    settings = _settings(here)
    for place, (pair, colour) in enumerate(colours.items()):
        shift = 0.16 * (place - (len(colours) - 1) / 2)
        rows = here.filter(~pl.col("control"), pair=pair)
        x = [settings.index(setting) + shift for setting in _settings(rows)]
        errors = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
        axes.errorbar(x, rows["value"], yerr=errors, fmt="o", color=colour, capsize=2, elinewidth=1, label=pair)
        bare = table.filter(~pl.col("control"), pair=pair, part=_BARE, measure="mean cosine")
        x = [settings.index(setting) + shift for setting in _settings(bare)]
        axes.plot(x, bare["value"], "s", fillstyle="none", color=colour, label="without other spellings of the token")
        for null, marker, label in _NULLS:
            rows = here.filter(pair=pair, null=null)
            x = [settings.index(setting) + shift for setting in _settings(rows)]
            axes.plot(x, rows["value"], marker, color=theme.GREY, markersize=5, label=label)
    names = [f"{tokens}\n{_METRICS[metric]}\nk = {k}" for tokens, metric, k in settings]
    axes.set_xticks(range(len(settings)), names, fontsize=7.5)
    axes.set_ylim(-0.05, 1)
    axes.set_ylabel("mean cosine")
    theme.title(axes, "a  Own neighbours: weights agree")


def _draw_histogram(axes: Axes, table: pl.DataFrame, colours: Mapping[str, str]) -> None:
    for pair, colour in colours.items():
        for null, line in ((None, "-"), ("relabelled within rank bins", "--"), ("Gaussian tables", ":")):
            rows = table.filter(pl.col("null").eq_missing(null), pair=pair)
            left = rows["place"].to_numpy()
            if not len(left):
                continue
            edges = np.append(left, 2 * left[-1] - left[-2])
            label = pair if null is None else f"null: {null}" if pair == next(iter(colours)) else None
            axes.stairs(rows["value"], edges, color=colour if null is None else theme.GREY, linestyle=line, label=label)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, 1.03)
    axes.set_ylim(1e-4, 1.2)
    axes.set_xlabel("cosine of a token's two rows of weights")
    axes.set_ylabel("share of tokens")
    theme.title(axes, "b  Token by token")


def _draw_same(axes: Axes, table: pl.DataFrame, colours: Mapping[str, str]) -> None:
    here = table.filter(measure="mean cosine", tokens="all", metric="cosine")
    for pair, colour in colours.items():
        rows = here.filter(pair=pair)
        for model, line in zip(rows["model"].unique(maintain_order=True), ("-", "--"), strict=False):
            part = rows.filter(~pl.col("control"), model=model).sort("k")
            columns = (part[name].to_list() for name in ("k", "value", "low", "high"))
            theme.curve(axes, *columns, colour=colour, label=f"{pair}: neighbours of {model}")
            axes.containers[-1][0].set(linestyle=line)
            null = rows.filter("control", model=model).sort("k")
            axes.plot(null["k"], null["value"], "v", color=colour, alpha=0.5, label="null: another token's weights")
    sizes = sorted(here["k"].unique().to_list())
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("neighbours, the same in both models")
    axes.set_ylabel("mean cosine")
    theme.title(axes, "c  Same neighbours")


def _draw_examples(axes: Axes, table: pl.DataFrame, shown: list[str]) -> None:
    axes.set_axis_off()
    if not shown:
        return
    models = table["model"].unique(maintain_order=True).to_list()
    width = max(len(text.split(" ")) for text in table["text"])
    starts = {model: 2.4 + place * (width + 0.4) for place, model in enumerate(models)}
    for model, left in starts.items():
        axes.text(left, -0.75, f"nearest in {model}", va="center", fontsize=7.5, fontweight="bold")
    for row, token, cosine, cells in _rows(table, shown):
        axes.text(0, row, token, va="center", fontsize=7.5, fontweight="bold")
        axes.text(2.2, row, f"{cosine:.2f}", va="center", ha="right", fontsize=7.5)
        common = set.intersection(*map(set, cells.values()))
        for model, neighbours in cells.items():
            for place, text in enumerate(neighbours):
                left, shade = starts[model] + place, _SHADE if text in common else _PLAIN
                axes.add_patch(Rectangle((left, row - 0.44), 0.96, 0.88, facecolor=shade, edgecolor="none"))
                short = text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
                size = 6.5 if len(short) < 8 else 5.2
                written = short.replace("$", r"\$")
                axes.text(left + 0.48, row, written, ha="center", va="center", fontsize=size)
    axes.set_xlim(0, max(starts.values()) + width)
    axes.set_ylim(len(shown) - 0.4, -1.3)
    theme.title(axes, "d  The neighbours themselves, nearest first; those of both models are shaded")


def _rows(table: pl.DataFrame, shown: list[str]) -> Iterator[tuple[int, str, float, dict[str, list[str]]]]:
    for row, token in enumerate(shown):
        here = table.filter(token=token)
        yield (
            row,
            token,
            here["value"][0],
            {model: text.split(" ") for model, text in here.select("model", "text").iter_rows()},
        )

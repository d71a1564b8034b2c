"""What carried vectors do: beside their nulls, over depths and scales, and in the vocabularies."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from jaxinterp.figures import theme

_COLOURS = {
    "native": theme.BLUE,
    "least squares": theme.RED,
    "procrustes": theme.PINK,
    "hidden states": theme.GREEN,
}
_NULLS = {"shuffled": (theme.ORANGE, "x"), "random": (theme.GREY, ".")}
_HEAT = ("native", "least squares", "hidden states")


def draw(table: pl.DataFrame) -> Figure:
    """For each direction: effects with nulls at each depth, heat maps over depth and scale, and the words of vectors.

    Args:
        table: Columns `stage`, `direction`, `concept`, `vector`, `depth`, `scale`, `measure`, `value`, `low`, `high`,
            `text`; effects in nats.

    Returns:
        The figure.
    """
    directions = table["direction"].unique(maintain_order=True).to_list()
    concepts = table["concept"].drop_nulls().unique(maintain_order=True).to_list()
    depths = sorted(table.filter(pl.col("stage") == "effect")["depth"].unique().to_list())
    vectors = [name for name in _HEAT if name in table.filter(pl.col("stage") == "dose")["vector"].to_list()]
    heights = [2.7 * len(depths), 1.0 + 0.9 * len(vectors) + 0.2 * len(depths), 0.9 + 0.21 * len(concepts)]
    width = max(9.0, 1.25 * len(concepts) + 1.5)
    figure = Figure(figsize=(width, sum(heights) * len(directions)), layout="constrained")
    parts = figure.subfigures(3 * len(directions), 1, height_ratios=heights * len(directions), squeeze=False)[:, 0]
    for place, direction in enumerate(directions):
        here = table.filter(pl.col("direction") == direction)
        _draw_effects(parts[3 * place], here, direction, concepts, depths)
        _draw_doses(parts[3 * place + 1], here, concepts, depths, vectors)
        _draw_words(parts[3 * place + 2], here, direction, concepts, depths)
    return figure


def _draw_effects(
    part: SubFigure, table: pl.DataFrame, direction: str, concepts: list[str], depths: list[float]
) -> None:
    taker = direction.split(" to ")[1]
    grid = part.subplots(len(depths), 1, squeeze=False, sharex=True)[:, 0]
    for axes, depth in zip(grid, depths, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        here = table.filter(pl.col("depth") == depth)
        gates = here.filter(pl.col("stage") == "gate", pl.col("measure") == "passed")
        passed = dict(zip(gates["concept"], gates["value"], strict=True))
        for place, concept in enumerate(concepts):
            _draw_concept(axes, here.filter(pl.col("concept") == concept), place)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1)
        theme.title(axes, f"{direction}: effect on the {taker} model, depth {depth:g}")
        axes.set_ylabel("half change of\nlog-odds (nats)")
        axes.set_xlim(-0.6, len(concepts) - 0.4)
        labels = [name if passed.get(name) else f"({name})" for name in concepts]
        axes.set_xticks(range(len(concepts)), labels, fontsize=8)
        axes.tick_params(labelbottom=True)
    axes = grid[0]
    axes.plot([], [], "o", markersize=4.5, markerfacecolor="white", color="black", label="added after the last block")
    handles: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    part.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, frameon=False, fontsize=8)


def _draw_concept(axes: Axes, table: pl.DataFrame, place: int) -> None:
    for offset, (vector, colour) in zip(np.linspace(-0.36, 0.0, len(_COLOURS)), _COLOURS.items(), strict=True):
        row = table.filter(pl.col("stage") == "effect", pl.col("vector") == vector)
        if row.is_empty():
            continue
        columns = (row[name].to_list() for name in ("value", "low", "high"))
        theme.curve(axes, [place + offset], *columns, colour=colour, label=vector)
        direct = table.filter(pl.col("stage") == "direct path", pl.col("vector") == vector)["value"]
        axes.plot([place + offset + 0.05], direct, "o", markersize=4, markerfacecolor="white", color=colour)
    for offset, (vector, (colour, mark)) in zip((0.14, 0.32), _NULLS.items(), strict=True):
        values = table.filter(pl.col("stage") == "effect", pl.col("vector") == vector)["value"].to_numpy()
        spread = np.linspace(-0.06, 0.06, len(values))
        axes.plot(place + offset + spread, values, mark, color=colour, alpha=0.6, markersize=4, label=f"{vector} null")


def _draw_doses(
    part: SubFigure, table: pl.DataFrame, concepts: list[str], depths: list[float], vectors: list[str]
) -> None:
    doses = table.filter(pl.col("stage") == "dose")
    scales = sorted(doses["scale"].unique().to_list())
    grid = part.subplots(len(vectors), len(concepts), squeeze=False, sharex=True, sharey=True)
    extent = float(np.quantile(np.abs(doses["value"].to_numpy()), 0.98))
    image = None
    for row, vector in enumerate(vectors):
        for column, concept in enumerate(concepts):
            axes = grid[row, column]
            cells = doses.filter(pl.col("vector") == vector, pl.col("concept") == concept)
            values = cells.pivot("scale", index="depth", values="value").sort("depth")
            heat = values.select([str(scale) for scale in scales]).to_numpy()
            image = axes.imshow(heat, cmap="RdBu_r", vmin=-extent, vmax=extent, aspect="auto", origin="lower")
            axes.set_xticks([0, len(scales) - 1], [f"{scales[0]:g}", f"{scales[-1]:g}"], fontsize=7)
            axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=7)
            axes.grid(visible=False)
            if row == 0:
                axes.set_title(concept, fontsize=8)
        grid[row, 0].set_ylabel(f"{vector}\ndepth", fontsize=8)
    part.supxlabel("scale, in units of the model's own vectors", fontsize=8)
    if image is not None:
        part.colorbar(image, ax=grid, label="change of log-odds", shrink=0.8)


def _draw_words(part: SubFigure, table: pl.DataFrame, direction: str, concepts: list[str], depths: list[float]) -> None:
    giver, taker = direction.split(" to ")
    axes = part.subplots()
    axes.set_axis_off()
    theme.title(
        axes, f"Words nearest to the {giver} model's vector | to it carried to the {taker} model, depth {depths[-1]:g}"
    )
    chosen = pl.col("stage") == "readout", pl.col("vector") == "least squares", pl.col("depth") == depths[-1]
    rows = table.filter(*chosen, pl.col("text").is_not_null())
    for place, concept in enumerate(concepts):
        row = rows.filter(pl.col("concept") == concept).row(0, named=True)
        height = 1 - (place + 1) / (len(concepts) + 0.5)
        axes.text(0, height, concept, fontsize=8, fontweight="bold", transform=axes.transAxes)
        text = row["text"].replace("$", r"\$")
        axes.text(0.11, height, text, fontsize=8, transform=axes.transAxes)

"""What vectors do to verdicts and to the ends of attempts: by layer and length, held out, and to the text behind."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxinterp.figures import theme

_AIMS = (("accept", theme.BLUE, "rejected cases → “this”"), ("reject", theme.ORANGE, "accepted cases → “not”"))
_ENDS = (("finish", theme.BLUE, "made to finish"), ("go on", theme.ORANGE, "made to go on"))


def draw(table: pl.DataFrame) -> Figure:
    """Six panels: the choice for each verdict, held-out verdicts, ends by layer, and the repetition of steered texts.

    Args:
        table: Columns `part`, `stage`, `aim`, `place`, `vector`, `layers`, `layer`, `scale`, `draw`, `chosen`, `best`,
            `measure`, `value`, `low`, `high`; shares in [0, 1].

    Returns:
        The figure.
    """
    figure = theme.panels(3, 2, width=10.4, height=6.6, width_ratios=[1.0, 1.0, 1.05])
    accept, reject, held, ends, bigrams, ratios = figure.axes
    chosen = table.filter(pl.col("stage") == "selection", pl.col("part") == "verdict", pl.col("place") == "verdict")
    for axes, aim, name in ((accept, "accept", "a  W[1] on rejected cases"), (reject, "reject", "b  W[0] on accepted")):
        _draw_grid(axes, chosen.filter(pl.col("aim") == aim, pl.col("vector") == "probe"))
        theme.title(axes, name)
    _draw_held_out(held, table.filter(pl.col("stage") == "evaluation", pl.col("part") == "verdict"))
    _draw_ends(ends, table.filter(pl.col("stage") == "evaluation", pl.col("part") == "end"))
    written = table.filter(pl.col("stage") == "written", pl.col("place") == "from the end on")
    _draw_repetition(bigrams, written, "excess bigram repetition", "more repeated bigrams\nthan unsteered")
    theme.title(bigrams, "e  Text, pushed at every token")
    _draw_repetition(ratios, written, "excess compression ratio", "compressed size against\nunsteered")
    theme.title(ratios, "f  The same, compressed")
    theme.legend_below(figure, columns=4)
    return figure


def _draw_grid(axes: Axes, table: pl.DataFrame) -> None:
    """Shares over layers and lengths; a frame where too much was malformed, a dot at what was chosen."""
    spans = table["layers"].unique(maintain_order=True).to_list()
    scales = table["scale"].unique().sort().to_list()
    grids = {name: np.full((len(scales), len(spans)), np.nan) for name in ("reached", "malformed")}
    for row in table.filter(pl.col("measure").is_in(list(grids))).iter_rows(named=True):
        place = scales.index(row["scale"]), spans.index(row["layers"])
        grids[row["measure"]][place] = row["value"]
        if row["best"] and row["measure"] == "reached":
            label = "chosen on selection"
            axes.plot(place[1] - 0.36, place[0] + 0.33, "o", color=theme.RED, markersize=3, label=label)
    axes.imshow(100 * grids["reached"], cmap="Blues", vmin=0, vmax=100, origin="lower", aspect="auto")
    for place, value in np.ndenumerate(grids["reached"]):
        colour = "white" if value > 0.55 else "black"
        axes.text(place[1], place[0], f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        if grids["malformed"][place] > 0.1:
            corner = place[1] - 0.46, place[0] - 0.46
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=theme.RED, linewidth=1.2))
    axes.plot([], [], "s", fillstyle="none", color=theme.RED, markersize=7, label="more than 10 % malformed")
    axes.grid(visible=False)
    axes.set_xticks(range(len(spans)), [span.replace("L", "").replace(" to ", "-") for span in spans])
    axes.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axes.set_xlabel("behind block(s)")
    axes.set_ylabel("length / norm of the stream")


def _draw_held_out(axes: Axes, table: pl.DataFrame) -> None:
    here = table.filter(pl.col("place") == "verdict", pl.col("measure") == "reached")
    one, several = pl.col("layer").is_not_null(), pl.col("layer").is_null()
    rows = [
        (name, here.filter(pl.col("vector") == vector, pl.col("chosen"), form))
        for vector, own in (("probe", "probe"), ("mean difference", "mean difference"))
        for name, form in ((f"{own}, one layer", one), (f"{own}, upper half", several))
    ]
    last = table.filter(pl.col("place") == "result", pl.col("measure") == "reached", pl.col("best"))
    rows.append(("probe, at the last digit", last.filter(pl.col("vector") == "probe")))
    for aim, colour, label in _AIMS:
        shift = -0.16 if aim == "accept" else 0.16
        for place, (_, found) in enumerate(rows):
            for row in found.filter(pl.col("aim") == aim).iter_rows(named=True):
                numbers = [100 * row[name] for name in ("value", "low", "high")]
                theme.interval(axes, numbers[0], place + shift, numbers[1], numbers[2], colour=colour, label=label)
        best = here.filter(pl.col("aim") == aim, pl.col("vector") == "probe", pl.col("best"))
        random = here.filter(pl.col("aim") == aim, pl.col("vector") == "random")
        random = random.join(best.select("layers", "scale"), on=["layers", "scale"])["value"].to_numpy()
        heights = len(rows) + shift + np.linspace(-0.08, 0.08, len(random))
        axes.plot(100 * random, heights, "o", color=colour, markersize=2.5, alpha=0.5, clip_on=False)
    axes.set_yticks(range(len(rows) + 1), [*(name for name, _ in rows), "random, as the probe"])
    axes.set_ylim(len(rows) + 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("held-out cases (%)")
    theme.title(axes, "c  Held-out verdicts")


def _draw_ends(axes: Axes, table: pl.DataFrame) -> None:
    here = table.filter(pl.col("measure") == "reached")
    for aim, colour, label in _ENDS:
        own = here.filter(pl.col("aim") == aim, pl.col("chosen")).sort("layer")
        percent = [100 * own[name].to_numpy() for name in ("value", "low", "high")]
        theme.curve(axes, own["layer"].to_list(), *percent, colour=colour, label=label)
        random = here.filter(pl.col("aim") == aim, pl.col("vector") == "random").sort("layer", "draw")
        shift = -0.08 if aim == "finish" else 0.08
        axes.plot(random["layer"].to_numpy() + shift, 100 * random["value"], "o", color=colour, markersize=2, alpha=0.4)
    axes.plot([], [], "o", color=theme.GREY, markersize=3, label="small dots: random vectors")
    layers = here["layer"].max()
    count = layers + 1 if isinstance(layers, int) else 1
    axes.axvspan(count // 4 - 0.5, count - count // 4 - 0.5, color=theme.SKY, alpha=0.15, linewidth=0)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("behind block (shaded: middle half)")
    axes.set_ylabel("held-out ends (%)")
    theme.title(axes, "d  Ends of attempts")


def _draw_repetition(axes: Axes, table: pl.DataFrame, measure: str, name: str) -> None:
    here = table.filter(pl.col("measure") == measure, pl.col("layer").is_not_null()).sort("layer")
    for aim, colour, label in _ENDS:
        for random in (False, True):
            rows = here.filter(pl.col("aim") == aim, (pl.col("vector") == "random") == random)
            if random:
                axes.plot(rows["layer"], rows["value"], ":", marker="x", markersize=4, color=colour, linewidth=1)
            else:
                numbers = [rows[column].to_list() for column in ("layer", "value", "low", "high")]
                theme.curve(axes, *numbers, colour=colour, label=label)
    axes.plot([], [], ":", marker="x", markersize=4, color=theme.GREY, linewidth=1, label="a random vector")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("behind block")
    axes.set_ylabel(name)

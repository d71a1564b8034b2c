"""What happens without some heads (each alone, the first few, chosen sets against random ones), and what they see."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxinterp.figures import attention_text, theme

_TARGET, _CIRCUIT = "attends to target", "circuit"
_ROWS = (
    ("nothing taken out", "none", "zero", "all tokens"),
    ("heads that attend to the target: zero", _TARGET, "zero", "all tokens"),
    ("zero at “ (” only", _TARGET, "zero", "verdict"),
    ("zero at the result's last digit only", _TARGET, "zero", "result"),
    ("zero at both tokens", _TARGET, "zero", "verdict and result"),
    ("mean of other texts", _TARGET, "mean", "all tokens"),
    ("what another text has", _TARGET, "resample", "all tokens"),
    ("circuit (each alone flips verdicts): zero", _CIRCUIT, "zero", "all tokens"),
    ("mean of other texts", _CIRCUIT, "mean", "all tokens"),
    ("what another text has", _CIRCUIT, "resample", "all tokens"),
    ("random, of all heads: zero", "random, all heads", "zero", "all tokens"),
    ("random, outside the first set: zero", "random, outside the set", "zero", "all tokens"),
    ("random, outside the circuit too: zero", "random, outside the circuit", "zero", "all tokens"),
)
_MOST_TEXTS = 5
_FROM = {"verdict": "“ (”", "result": "the result's last digit"}


def draw(table: pl.DataFrame) -> Figure:
    """Four panels: single heads, cumulative sets, sets against controls, and attention over one trace.

    Args:
        table: Columns `stage`, `measure`, `condition`, `method`, `position`, `n_heads`, `heads`, `layer`, `head`,
            `token`, `written`, `value`, `low`, `high`; values in [0, 1].

    Returns:
        The figure.
    """
    figure = theme.panels(2, 2, width=11.6, height=8.6, width_ratios=[1.0, 1.15], height_ratios=[1.0, 1.3])
    single, cumulative, sets, trace = figure.axes
    selected, evaluated = (table.filter(pl.col("stage") == stage) for stage in ("selection", "evaluation"))
    _draw_single(single, selected)
    _draw_cumulative(cumulative, evaluated)
    _draw_sets(sets, evaluated)
    _draw_trace(trace, table.filter(pl.col("stage") == "trace"), selected)
    theme.legend_below(figure, columns=4)
    return figure


def _grid(table: pl.DataFrame, measure: str) -> np.ndarray:
    everywhere = pl.col("position").is_null() | (pl.col("position") == "all tokens")
    rows = table.filter((pl.col("measure") == measure) & everywhere)
    layers, columns = rows["layer"].to_numpy(), rows["head"].to_numpy()
    grid = np.full((layers.max() + 1, columns.max() + 1), np.nan)
    grid[layers, columns] = rows["value"].to_numpy()
    return grid


def _draw_single(axes: Axes, table: pl.DataFrame) -> None:
    effects = _grid(table, "flips")
    image = axes.imshow(100 * effects, cmap="Blues", vmin=0, vmax=100, origin="lower", aspect="auto")
    for layer, head in zip(*np.nonzero(effects >= 0.005), strict=True):
        value = effects[layer, head]
        colour = "white" if value > 0.55 else "black"
        axes.text(head, layer, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    for name, colour, inset, label in (
        ("target", theme.RED, 0.04, "attends to the target from “ (”"),
        ("paper", theme.GREEN, 0.1, "attends to the target from the result's last digit"),
    ):
        found = table.filter((pl.col("measure") == "rank") & (pl.col("condition") == name))
        for layer, head in found.select("layer", "head").iter_rows():
            corner, side = (head - 0.5 + inset, layer - 0.5 + inset), 1 - 2 * inset
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=1.4))
        if found.height:
            axes.plot([], [], "s", fillstyle="none", color=colour, markersize=7, label=label)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_label("flipped acceptances (%)", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    axes.grid(visible=False)
    axes.set_xticks(range(effects.shape[1]))
    axes.set_yticks(range(effects.shape[0]))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    theme.title(axes, "a  One head zeroed at all tokens")


def _draw_cumulative(axes: Axes, table: pl.DataFrame) -> None:
    whole = table.filter((pl.col("position") == "all tokens") & (pl.col("method") == "zero"))
    for condition, measure, colour, label in (
        ("largest effects", "flips", theme.BLUE, "acceptances that flip"),
        ("most attention", "flips", theme.SKY, "acceptances that flip, most attention first"),
        ("largest effects", "rejections kept", theme.ORANGE, "rejections that stay"),
    ):
        rows = whole.filter((pl.col("condition") == condition) & (pl.col("measure") == measure)).sort("n_heads")
        percent = [100 * rows[column].to_numpy() for column in ("value", "low", "high")]
        theme.curve(axes, rows["n_heads"].to_list(), *percent, colour=colour, label=label)
        axes.set_xticks(rows["n_heads"].to_list())
    axes.set_ylim(-3, 103)
    axes.set_xlabel("heads zeroed at all tokens (largest single effect first, unless said)")
    axes.set_ylabel("verdicts (%)")
    theme.title(axes, "b  The first few together")


def _draw_sets(axes: Axes, table: pl.DataFrame) -> None:
    for place, (_, condition, method, position) in enumerate(_ROWS):
        where = (pl.col("condition") == condition) & (pl.col("method") == method) & (pl.col("position") == position)
        for measure, colour, shift, label in (
            ("flips", theme.BLUE, -0.16, "acceptances that flip"),
            ("rejections kept", theme.ORANGE, 0.16, "rejections that stay"),
        ):
            rows = table.filter(where & (pl.col("measure") == measure))
            height = place + shift
            if rows["draw"].null_count() < rows.height:
                jitter = np.linspace(-0.1, 0.1, rows.height)
                axes.plot(
                    100 * rows["value"], height + jitter, "o", color=colour, markersize=2.5, alpha=0.45, clip_on=False
                )
                axes.plot(
                    100 * rows["value"].to_numpy().mean(), height, "D", color=colour, markersize=5.5, clip_on=False
                )
            elif rows.height:
                value, low, high = (100 * rows[column][0] for column in ("value", "low", "high"))
                theme.interval(axes, value, height, low, high, colour=colour, label=label)
    axes.plot([], [], "D", color=theme.GREY, markersize=5, label="mean of the random draws (small dots)")
    axes.set_yticks(range(len(_ROWS)), [name for name, *_ in _ROWS], fontsize=8)
    axes.set_ylim(len(_ROWS) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_xlabel("verdicts (%)")
    theme.title(axes, "c  Sets of heads and controls")


def _draw_trace(axes: Axes, table: pl.DataFrame, selected: pl.DataFrame) -> None:
    """Each head's attention from the token, of the two, at which zeroing it flips more."""
    effects = selected.filter((pl.col("measure") == "flips") & pl.col("position").is_in(list(_FROM)))
    texts = []
    for head in table["heads"].unique(maintain_order=True).to_list()[:_MOST_TEXTS]:
        ranked = effects.filter(pl.col("heads") == head).sort("value", "position")
        place = ranked["position"][-1] if ranked.height else "verdict"
        rows = table.filter((pl.col("heads") == head) & (pl.col("position") == place)).sort("token")
        title = f"{head} from {_FROM[place]}"
        texts.append(attention_text.Shaded(title, rows["written"].to_list(), rows["value"].to_list()))
    attention_text.draw(axes, texts)
    theme.title(axes, "d  What the found heads attend to in one trace")

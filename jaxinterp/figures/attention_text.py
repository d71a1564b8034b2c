"""A text written out, token by token, shaded by how much attention each token gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from jaxinterp.figures import theme

_NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
_WIDEST = 72


@dataclasses.dataclass(frozen=True)
class Shaded:
    """A text and what its tokens get.

    Attributes:
        title: What stands above it.
        tokens: The tokens as text.
        values: Shade of each, in [0, 1].
    """

    title: str
    tokens: Sequence[str]
    values: Sequence[float]


def draw(axes: Axes, texts: Sequence[Shaded], size: float = 7.0) -> None:
    """Writes texts one below the other.

    Args:
        axes: Where; they lose their frame.
        texts: The texts.
        size: Of the letters, in points.
    """
    axes.set_axis_off()
    line = 0
    widest = 1
    for text in texts:
        axes.text(0, line + 0.5, text.title, fontsize=size + 1, fontweight="bold", va="center")
        line += 1
        placed = list(_place(text.tokens))
        for index, row, column, letters in placed:
            value = min(max(text.values[index], 0.0), 1.0)
            if value >= 0.01:
                box = Rectangle((column, line + row), len(letters), 1, facecolor=theme.RED, alpha=value, linewidth=0)
                axes.add_patch(box)
            middle = column + len(letters) / 2
            axes.text(
                middle, line + row + 0.5, letters, fontsize=size, family="monospace", ha="center", va="center_baseline"
            )
            widest = max(widest, column + len(letters))
        line += 1.6 + max(row for _, row, _, _ in placed)
    axes.set_xlim(0, widest)
    axes.set_ylim(line, 0)


def _place(tokens: Sequence[str]) -> Iterator[tuple[int, int, int, str]]:
    """Index of a token, line, column and letters of each of its parts; a part ends where a line does."""
    row = column = 0
    for index, token in enumerate(tokens):
        if column + len(token.split("\n")[0]) > _WIDEST:
            row, column = row + 1, 0
        *ended, rest = token.split("\n")
        for part in ended:
            yield index, row, column, part + _NEWLINE
            row, column = row + 1, 0
        if rest:
            yield index, row, column, rest
            column += len(rest)

"""The residual stream at chosen tokens after every block, and whether two models agree there on who is near whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.compilation import keep_compiled_programs
from jaxinterp.activations.plan import Base
from jaxinterp.activations.reading import pass_blocks
from jaxinterp.activations.run import prepare
from jaxinterp.activations.stages import Texts
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel

_TILE = 512
"""Tokens in one forward pass; more is no faster on a CPU."""


@dataclasses.dataclass(frozen=True)
class States:
    """The residual stream at some tokens.

    Attributes:
        stages: What enters the first block and what leaves each, float32 [stage, token, embedding].
        final: The last stage after the final norm [token, embedding].
    """

    stages: np.ndarray
    final: np.ndarray

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return len(self.stages) - 1

    def after(self, stage: int | None) -> np.ndarray:
        """The stream after so many blocks [token, embedding]; after the final norm for `None`."""
        return self.final if stage is None else self.stages[stage]


def read_states(
    model: LanguageModel, texts: Sequence[Sequence[int]], places: Sequence[tuple[int, int]], *, tile: int = _TILE
) -> States:
    """Reads the residual stream after every block at chosen tokens; no logits are computed.

    Args:
        model: The model.
        texts: Token ids of each text; texts of about equal length, for all are padded to the longest.
        places: (text, index of the token in it), in any order.
        tile: Tokens in one forward pass; at least one text is taken.

    Returns:
        The states, in the order of `places`.

    Raises:
        ValueError: The texts are no ids of this model, or a place is not in them.
    """
    tokens, mask = prepare(model, texts)
    chosen = np.array(places, np.int64).reshape(-1, 2)
    lengths = mask.sum(axis=1)
    inside = (chosen >= 0).all(axis=1) & (chosen[:, 0] < len(texts))
    inside[inside] = chosen[inside, 1] < lengths[chosen[inside, 0]]
    if not len(chosen) or not inside.all():
        wrong = places[int(np.argmin(inside))] if len(chosen) else "nothing"
        raise ValueError(f"asked to read {wrong} of {len(texts)} texts; pass pairs (text, index of a token in it)")
    columns = tokens.shape[1] - lengths[chosen[:, 0]] + chosen[:, 1]
    keep_compiled_programs()
    base = Base.of(cast("Decoder", model.body))
    rows = min(len(texts), max(1, tile // tokens.shape[1]))
    stages = np.empty((base.depth + 1, len(chosen), model.architecture.embedding), np.float32)
    for first in range(0, len(texts), rows):
        part = np.minimum(np.arange(first, first + rows), len(texts) - 1)
        here = np.flatnonzero((chosen[:, 0] >= first) & (chosen[:, 0] < first + rows))
        some = Texts(jnp.asarray(tokens[part]), jnp.asarray(mask[part]))
        for stage, stream in pass_blocks(base, some, {}, {}, to_the_end=True):
            stages[stage, here] = np.asarray(stream)[chosen[here, 0] - first, columns[here]]
    last = pz.nx.wrap(jnp.asarray(stages[-1]), axes.BATCH, axes.EMBEDDING)
    final = base.ends.final(last).unwrap(axes.BATCH, axes.EMBEDDING)
    return States(stages, np.asarray(final, np.float32))


def paired_stages(source: int, target: int) -> Iterator[tuple[int, int]]:
    """Pairs what leaves the target's blocks with the source's at the same share of their depths.

    Args:
        source: Number of blocks of the source.
        target: Of the target.

    Yields:
        (blocks passed in the source, blocks passed in the target), for the embedding and every block of the target.

    >>> list(paired_stages(30, 18))[:5]
    [(0, 0), (2, 1), (3, 2), (5, 3), (7, 4)]
    """
    for passed in range(target + 1):
        yield round(passed * source / target), passed


def agreeing_neighbours(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which share of each token's nearest neighbours two models agree on.

    Args:
        first: Neighbours in one model, int [token, k], as `nearest_neighbours` finds them.
        second: In the other, the same tokens.

    Returns:
        Share of the `k` that are neighbours in both, float64 [token]; by chance it is k / (tokens - 1) on average.

    Raises:
        ValueError: The shapes differ.

    >>> agreeing_neighbours(np.array([[1, 2], [0, 2], [0, 1]]), np.array([[2, 3], [2, 0], [3, 4]])).tolist()
    [0.5, 1.0, 0.0]
    """
    if first.shape != second.shape:
        raise ValueError(f"neighbours have shapes {first.shape} and {second.shape}; give as many of the same tokens")
    merged = np.sort(np.concatenate([first, second], axis=1), axis=1)
    return (merged[:, 1:] == merged[:, :-1]).sum(axis=1) / first.shape[1]


def relabel(neighbours: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The neighbours that would be found if the rows of a table were put into another order.

    Args:
        neighbours: Int [token, k].
        order: Permutation of the tokens; row `i` of the new table is row `order[i]` of the old one.

    Returns:
        Int [token, k].

    >>> relabel(np.array([[1], [0], [1]]), np.array([2, 0, 1])).tolist()
    [[2], [2], [1]]
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[neighbours[order]]

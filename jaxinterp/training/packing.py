"""Texts of any length as rows of one length, and which rows make up which batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np


def pack(texts: Iterable[Sequence[int]], length: int) -> np.ndarray:
    """Joins texts and cuts them into rows without padding; a text may go on in the next row.

    Neighbouring rows share one token, the last of one and the first of the next, so that a model which reads all but
    the last token of a row and predicts all but the first predicts every token once.

    Args:
        texts: Token ids of each text, with what begins and ends it.
        length: Predictions in a row.

    Returns:
        Int32 [row, length + 1]; what is left over at the end is dropped.

    Raises:
        ValueError: The texts do not fill one row.

    >>> pack([[1, 5, 6, 2], [1, 7, 2]], 3).tolist()
    [[1, 5, 6, 2], [2, 1, 7, 2]]
    """
    stream = np.fromiter(itertools.chain.from_iterable(texts), np.int32)
    count = (len(stream) - 1) // length
    if count < 1:
        raise ValueError(f"the texts have {len(stream)} tokens, but one row needs {length + 1}; give more texts")
    return np.lib.stride_tricks.sliding_window_view(stream, length + 1)[: count * length : length].copy()


@dataclasses.dataclass(frozen=True)
class Batches:
    """Rows in a drawn order, every row once before any comes again.

    A batch is a function of its number alone: the position in the data is the number of the step.

    Attributes:
        rows: Int [row, ...].
        size: Rows in a batch.
        seed: Of the order.
    """

    rows: np.ndarray
    size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= len(self.rows):
            raise ValueError(
                f"a batch of {self.size} rows cannot be drawn from {len(self.rows)}; pack more texts or lower the batch"
            )

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step, [size, ...]."""
        each = len(self.rows) // self.size
        order = _order(self.seed, step // each, len(self.rows))
        first = step % each * self.size
        return self.rows[order[first : first + self.size]]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)

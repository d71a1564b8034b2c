"""Texts of any length as rows of one length, and which rows make up which batch.

A text without an end that matters is cut (`pack`); a document, of which only the response is learned, stays whole and
sees no other (`pack_documents`). Documents of 25 to 500 tokens, padded each to the longest of a batch, would be more
padding than text; whole documents side by side in rows of the model's context fill them to about 99 %.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

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
class Rows:
    """Rows of whole documents, or batches of them.

    Attributes:
        tokens: Int [row, length + 1]; zero where nothing stands.
        documents: To which document of its row a token belongs, from 1; 0 where nothing stands. Int [row, length + 1].
        counted: Whether a prediction is learned: that of token i + 1 is at i. Bool [row, length].
    """

    tokens: np.ndarray
    documents: np.ndarray
    counted: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: Any) -> Rows:
        """Some of the rows."""
        return Rows(self.tokens[which], self.documents[which], self.counted[which])

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts."""
        fields = (field.name for field in dataclasses.fields(cls))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def pack_documents(documents: Iterable[tuple[Sequence[int], Sequence[int]]], length: int) -> Rows:
    """Puts whole documents side by side, each into the fullest row that has room for it, the longest first.

    Args:
        documents: Token ids of each prompt, and of its response with what ends it.
        length: Predictions in a row.

    Returns:
        The rows; a response's tokens are learned, and a prompt's are not.

    Raises:
        ValueError: A document is longer than a row, or there is none.

    >>> rows = pack_documents([([5, 6], [7, 2]), ([5], [8, 2]), ([5, 6, 6], [9, 9, 2])], 6)
    >>> rows.tokens.tolist()
    [[5, 6, 6, 9, 9, 2, 0], [5, 6, 7, 2, 5, 8, 2]]
    >>> rows.counted.astype(int).tolist()
    [[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 1, 1]]
    """
    listed = sorted(documents, key=lambda document: -sum(map(len, document)))
    if not listed:
        raise ValueError("there is no document to pack")
    longest = sum(map(len, listed[0]))
    if longest > length + 1:
        raise ValueError(
            f"a document has {longest} tokens, but a row holds {length + 1}; raise the context, or cut the documents"
        )
    placed: list[list[tuple[Sequence[int], Sequence[int]]]] = []
    room: list[tuple[int, int]] = []
    for document in listed:
        needed = sum(map(len, document))
        found = bisect.bisect_left(room, (needed, 0))
        left, row = room.pop(found) if found < len(room) else (length + 1, len(placed))
        if row == len(placed):
            placed.append([])
        placed[row].append(document)
        bisect.insort(room, (left - needed, row))
    shape = (len(placed), length + 1)
    tokens, owners, learned = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16), np.zeros(shape, bool)
    for row, together in enumerate(placed):
        start = 0
        for number, (prompt, response) in enumerate(together, start=1):
            middle, end = start + len(prompt), start + len(prompt) + len(response)
            tokens[row, start:middle], tokens[row, middle:end] = prompt, response
            owners[row, start:end] = number
            learned[row, max(middle, start + 1) : end] = True
            start = end
    return Rows(tokens, owners, learned[:, 1:])


@dataclasses.dataclass(frozen=True)
class Batches:
    """Rows in a drawn order, every row once before any comes again.

    A batch is a function of its number alone: the position in the data is the number of the step.

    Attributes:
        rows: Int [row, ...], or rows of whole documents.
        size: Rows in a batch.
        seed: Of the order.
    """

    rows: np.ndarray | Rows
    size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= len(self.rows):
            raise ValueError(
                f"a batch of {self.size} rows cannot be drawn from {len(self.rows)}; pack more texts or lower the batch"
            )

    def __getitem__(self, step: int) -> Any:
        """The batch of a step, [size, ...] of what `rows` is."""
        each = len(self.rows) // self.size
        order = _order(self.seed, step // each, len(self.rows))
        first = step % each * self.size
        return self.rows[order[first : first + self.size]]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)

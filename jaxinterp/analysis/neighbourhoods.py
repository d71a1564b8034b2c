"""Comparing where tokens lie among their neighbours: in two tables, token by token.

A neighbourhood is a row of indices [k] with a row of weights [k]; together they are the non-zero part of one row of a
token-by-token matrix, so that rows of two models can be compared although their widths differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinterp.analysis.neighbours import locally_linear_weights

_BATCH = 2**24
"""Pairs of neighbours that are compared at once."""


@dataclasses.dataclass(frozen=True)
class InTwoTables:
    """The neighbourhoods of some tokens in two tables of the same tokens.

    Attributes:
        tables: Both tables' rows [token, embedding].
        asked: Which tokens are compared, int [asked token].
        near: Their neighbours in each table, int [asked token, k].
        weights: The locally linear weights of these, in each table [asked token, k].
    """

    tables: tuple[np.ndarray, np.ndarray]
    asked: np.ndarray
    near: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]

    def cosines(self) -> np.ndarray:
        """Cosine of each token's two sparse rows, every table with its own neighbours, [asked token]."""
        return sparse_cosines(self.near[0], self.weights[0], self.near[1], self.weights[1])

    def relabelled(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same cosines, and the overlaps, after the second table's tokens got each other's names; see `relabel`."""
        near = relabel(self.near[1], self.asked, order)
        weights = self.weights[1][place_of(self.asked, order)]
        return sparse_cosines(self.near[0], self.weights[0], near, weights), overlap(self.near[0], near)


def in_two_tables(
    tables: Sequence[np.ndarray], asked: np.ndarray, near: Sequence[np.ndarray], regularisation: float
) -> InTwoTables:
    """Finds the weights of given neighbours in two tables.

    Args:
        tables: Two tables of the same tokens [token, embedding].
        asked: Which tokens are compared, int [asked token].
        near: Their neighbours in each table, int [asked token, k].
        regularisation: As for `locally_linear_weights`.

    Returns:
        The neighbourhoods.
    """
    first, second = (
        locally_linear_weights(table, own, rows=asked, regularisation=regularisation)
        for table, own in zip(tables, near, strict=True)
    )
    return InTwoTables((tables[0], tables[1]), asked, (near[0], near[1]), (first, second))


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Share of neighbours that two rows have in common, token by token (mutual kNN is its mean).

    Args:
        first: Indices, int [token, k], each once in its row.
        second: Indices among the same tokens, of the same shape.

    Returns:
        Float64 [token], in [0, 1].

    Raises:
        ValueError: The shapes differ.

    >>> overlap(np.array([[1, 2], [0, 2]]), np.array([[2, 3], [2, 0]])).tolist()
    [0.5, 1.0]
    """
    token, _, _ = _matches(first, second)
    return np.bincount(token, minlength=len(first)) / first.shape[1]


def sparse_cosines(
    first: np.ndarray, first_weights: np.ndarray, second: np.ndarray, second_weights: np.ndarray
) -> np.ndarray:
    """Cosine of two rows of weights over the union of their neighbours, a neighbour that one lacks counting as zero.

    Args:
        first: Indices, int [token, k], each once in its row.
        first_weights: Their weights [token, k].
        second: Indices among the same tokens, int [token, k].
        second_weights: Their weights [token, k].

    Returns:
        Float64 [token]; 0 where a row of weights is zero.

    Raises:
        ValueError: The shapes differ.

    >>> ones = np.ones((1, 2))
    >>> sparse_cosines(np.array([[1, 2]]), ones, np.array([[2, 3]]), ones).tolist()
    [0.5]
    """
    a, b = (np.asarray(weights, np.float64) for weights in (first_weights, second_weights))
    if a.shape != np.shape(first) or b.shape != np.shape(second):
        raise ValueError(f"weights have shapes {a.shape} and {b.shape}; give one for each neighbour")
    token, here, there = _matches(first, second)
    products = np.bincount(token, a[token, here] * b[token, there], minlength=len(first))
    return _over(products, a, b)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of two rows of weights of the same neighbours.

    Args:
        first: Weights [token, k].
        second: Weights [token, k], neighbours in the same order.

    Returns:
        Float64 [token]; 0 where a row is zero.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return _over(np.einsum("tk,tk->t", a, b), a, b)


def relabel(neighbours: np.ndarray, asked: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Neighbours after a table's tokens got each other's names: token i is what token `order[i]` was.

    Args:
        neighbours: Of the tokens `asked`, int [asked token, k]; indices among n tokens.
        asked: Which tokens these rows belong to, int [asked token], each once.
        order: A permutation of the n tokens that maps the asked tokens onto themselves.

    Returns:
        For each asked token the renamed neighbours, int [asked token, k]. Weights go along as
        `weights[place_of(asked, order)]`.
    """
    names = np.empty_like(order)
    names[order] = np.arange(len(order))
    return names[neighbours[place_of(asked, order)]]


def place_of(asked: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Which row of those of the asked tokens each of them has after `order`, int [asked token]."""
    places = np.full(len(order), -1)
    places[asked] = np.arange(len(asked))
    return places[order[asked]]


def reconstruction_errors(
    vectors: np.ndarray, rows: np.ndarray, neighbours: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """How far the weighted sum of its neighbours is from each vector, as a share of the vector's length.

    Args:
        vectors: [n, embedding].
        rows: Which of them are rebuilt, int [rows].
        neighbours: Their neighbours, int [rows, k].
        weights: Their weights [rows, k].

    Returns:
        Float64 [rows]; 0 for a vector that is zero and rebuilt as such.
    """
    errors = np.empty(len(rows))
    batch = max(1, _BATCH // (vectors.shape[1] * neighbours.shape[1]))
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        rebuilt = np.einsum("tk,tkd->td", weights[part], vectors[neighbours[part]])
        length = np.linalg.norm(vectors[rows[part]], axis=1)
        errors[part] = np.linalg.norm(vectors[rows[part]] - rebuilt, axis=1) / np.where(length > 0, length, 1)
    return errors


def _matches(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The neighbours that two rows share: of which token, and at which places of the two rows, int [match] each."""
    if np.shape(first) != np.shape(second) or np.ndim(first) != 2 or not np.size(first):
        raise ValueError(f"neighbours have shapes {np.shape(first)} and {np.shape(second)}; give the same tokens and k")
    batch = max(1, _BATCH // first.shape[1] ** 2)
    parts = []
    for start in range(0, len(first), batch):
        rows = slice(start, start + batch)
        token, here, there = np.nonzero(first[rows, :, None] == second[rows, None, :])
        parts.append((token + start, here, there))
    token, here, there = (np.concatenate(part) for part in zip(*parts, strict=True))
    return token, here, there


def _over(products: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return products / np.where(lengths > 0, lengths, 1)

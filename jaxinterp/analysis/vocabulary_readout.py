"""What a vector says in a vocabulary, and whether two vectors say the same in two vocabularies.

A vector's score of a token is its product with the token's row of the unembedding, rows centred and of length one.
"""

from __future__ import annotations

import numpy as np
import scipy

from jaxinterp.analysis import geometry


class Readout:
    """Some tokens of one model, in an order that another model's readout shares.

    Args:
        rows: Their rows of the unembedding [token, embedding].
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = geometry.unit_rows(rows, centred=True)

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Scores of all tokens.

        Args:
            vectors: [..., embedding].

        Returns:
            [..., token].
        """
        return np.asarray(vectors, np.float32) @ self._rows.T


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The `k` best tokens, best first.

    Args:
        scores: [token].
        k: How many.

    Returns:
        Int [k].

    Raises:
        ValueError: There are fewer tokens.
    """
    if k > len(scores):
        raise ValueError(f"the top {k} of {len(scores)} tokens are asked for; ask for fewer")
    chosen = np.argpartition(-scores, k - 1)[:k]
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def top_overlap(first: np.ndarray, second: np.ndarray, k: int) -> float:
    """Share of the best tokens of one vector that are among the best of another.

    Args:
        first: Scores [token].
        second: Scores of the same tokens [token].
        k: How many tokens are the best.

    Returns:
        In [0, 1].

    >>> top_overlap(np.arange(9.0), np.arange(9.0) ** 2, 3)
    1.0
    """
    return len(np.intersect1d(top(first, k), top(second, k))) / k


def centred_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks of tokens, centred and of length one: the product of two such rows is Spearman's correlation.

    Args:
        scores: [..., token].

    Returns:
        [..., token]; zero where all scores are equal.
    """
    ranks = scipy.stats.rankdata(scores, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return ranks / np.where(lengths > 0, lengths, 1)


def correlation_interval(r: float, n: int) -> tuple[float, float]:
    """Fisher's 95 % interval of a correlation over independent things.

    Args:
        r: The correlation.
        n: How many things.

    Returns:
        Lower and upper end.
    """
    middle, width = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), 1.96 / np.sqrt(max(n - 3, 1))
    return float(np.tanh(middle - width)), float(np.tanh(middle + width))

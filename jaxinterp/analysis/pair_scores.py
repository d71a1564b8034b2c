"""All pairs of some tokens, as explicit matrices: what the closed form is held against, and what ranks need.

A matrix of scores [token, token], such as cosines, is brought to a standard form: zero on the diagonal, and over all
pairs of different tokens of mean zero and norm one. The correlation of two such matrices is the sum of their products,
whatever the order of the tokens, so a relabelling costs one look-up of each entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy


def standardise(scores: np.ndarray, *, ranks: bool = False) -> np.ndarray:
    """The standard form of a symmetric matrix of scores.

    Args:
        scores: [token, token]; the diagonal is not read.
        ranks: Whether scores are replaced by their ranks among all pairs, ties given their mean rank.

    Returns:
        Float32 [token, token].

    Raises:
        ValueError: There are fewer than three tokens, or all scores are equal.

    >>> pairs = standardise(np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]]))
    >>> round(float(correlation(pairs, pairs)), 6), round(float(pairs[0, 2]), 6)
    (1.0, 0.0)
    """
    if len(scores) < 3:
        raise ValueError(f"{len(scores)} tokens have too few pairs to correlate; give three or more")
    upper = np.triu_indices(len(scores), 1)
    values = np.asarray(scores[upper], np.float64)
    if ranks:
        values = scipy.stats.rankdata(values)
    values = values - values.mean()
    length = np.sqrt(2 * np.sum(values**2))
    if length <= len(values) * np.finfo(np.float32).eps * np.abs(scores[upper]).max():
        raise ValueError("all pairs have the same score, so nothing can be correlated with them")
    standard = np.zeros(scores.shape, np.float32)
    standard[upper] = values / length
    return standard + standard.T


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation over all pairs: Pearson's, or Spearman's of ranks.

    Args:
        first: As from `standardise` [token, token].
        second: Likewise, the same tokens in the same order.

    Returns:
        In [-1, 1].
    """
    return float(np.vdot(first.astype(np.float64), second))


def relabellings(tokens: int, count: int, seed: int, groups: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Random orders of tokens.

    Args:
        tokens: How many.
        count: How many orders.
        seed: Seed of the random numbers.
        groups: Int [token]; if given, tokens change places only within their group.

    Yields:
        Int [token].
    """
    draw = np.random.default_rng(seed)
    for _ in range(count):
        if groups is None:
            yield draw.permutation(tokens)
        else:
            order = np.empty(tokens, np.int64)
            order[np.argsort(groups, kind="stable")] = np.lexsort((draw.random(tokens), groups))
            yield order


def permutation_null(
    first: np.ndarray, second: np.ndarray, *, permutations: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """The correlation after the tokens of one matrix are relabelled at random (Mantel's test).

    Args:
        first: As from `standardise` [token, token].
        second: Likewise.
        permutations: How many relabellings.
        seed: Seed of the random numbers.
        groups: As in `relabellings`.

    Returns:
        Float64 [permutation].
    """
    orders = relabellings(len(first), permutations, seed, groups)
    return np.array([np.vdot(first, second[order].take(order, axis=1)) for order in orders], np.float64)


def node_bootstrap(
    first: np.ndarray, second: np.ndarray, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the correlation over the choice of tokens.

    Tokens are drawn with replacement, and pairs of copies of one token are left out. With `c` the times that each token
    was drawn, every sum over pairs is `c^T M c` for a matrix M. Ranks are those among all pairs: they are not taken
    anew within a resample.

    Args:
        first: As from `standardise` [token, token].
        second: Likewise.
        resamples: How many resamples.
        seed: Seed of the random numbers.
        level: Coverage.

    Returns:
        (low, high), the percentile interval.
    """
    tokens = len(first)
    drawn = np.random.default_rng(seed).multinomial(tokens, np.full(tokens, 1 / tokens), size=resamples)
    counts = drawn.astype(np.float32)
    pairs = tokens**2 - np.square(drawn).sum(axis=1).astype(np.float64)

    def mean(matrix: np.ndarray) -> np.ndarray:
        # The entries are about 1 / tokens; scaled up, their squares stay far from the smallest float32.
        return np.einsum("rt,rt->r", counts @ matrix, counts, dtype=np.float64) / pairs

    x, y = first * np.float32(tokens), second * np.float32(tokens)
    mean_x, mean_y = mean(x), mean(y)
    spread = (mean(x * x) - mean_x**2) * (mean(y * y) - mean_y**2)
    low, high = np.quantile((mean(x * y) - mean_x * mean_y) / np.sqrt(spread), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

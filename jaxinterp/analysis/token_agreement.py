"""Does one number of each token agree with another: with other numbers held constant, and under relabelled tokens."""

from __future__ import annotations

import numpy as np
import scipy


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the first axis, ties given their mean: a Pearson correlation of them is Spearman's.

    Args:
        values: [token] or [token, ...].

    Returns:
        Float64 of the same shape, from 1.
    """
    return scipy.stats.rankdata(values, axis=0)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation.

    Args:
        first: One number of each token, [token].
        second: The other, [token].

    Returns:
        The correlation; NaN where one of them has no spread.

    >>> pearson(np.arange(5), 3 - np.arange(5))
    -1.0
    """
    first, second = (np.asarray(values, np.float64) - np.mean(values) for values in (first, second))
    size = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / size) if size > 0 else float("nan")


def partial_correlation(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
    """Pearson's correlation of what other numbers leave unexplained in two.

    From both the least-squares fit by `given` and a constant is taken away.

    Args:
        first: One number of each token, [token].
        second: The other, [token].
        given: Numbers to hold constant, [token, number].

    Returns:
        The correlation; NaN where `given` explains one of them wholly.

    >>> rng = np.random.default_rng(0)
    >>> common = rng.normal(size=1000)
    >>> first, second = common + rng.normal(size=1000), common + rng.normal(size=1000)
    >>> pearson(first, second) > 0.4, abs(partial_correlation(first, second, common[:, None])) < 0.1
    (True, True)
    """
    design = np.column_stack([np.ones(len(given)), given])
    both = np.column_stack([first, second]).astype(np.float64)
    left = both - design @ np.linalg.lstsq(design, both)[0]
    negligible = np.abs(left).max(axis=0) <= 1e-9 * np.abs(both).max(axis=0)
    return float("nan") if negligible.any() else pearson(left[:, 0], left[:, 1])


def relabelled(
    first: np.ndarray, second: np.ndarray, *, permutations: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Pearson's correlation after the tokens of one side are relabelled at random.

    Args:
        first: One number of each token, [token].
        second: The other, [token].
        permutations: How many relabellings.
        seed: Of the random numbers.
        groups: Int [token]; if given, tokens are exchanged within their group alone, which keeps what the group
            explains in the null.

    Returns:
        Float64 [permutation].

    >>> rank = np.repeat([0, 1], 50)
    >>> noise = np.random.default_rng(0).normal(size=(2, 100))
    >>> kept = relabelled(rank + noise[0], rank + noise[1], permutations=50, seed=0, groups=rank)
    >>> bool(kept.mean() > 0.1)
    True
    """
    draw = np.random.default_rng(seed)
    groups = np.zeros(len(first), int) if groups is None else groups
    places = np.argsort(groups, kind="stable")
    null = np.empty(permutations)
    order = np.empty(len(first), int)
    for index in range(permutations):
        order[places] = np.lexsort((draw.random(len(groups)), groups))
        null[index] = pearson(first, second[order])
    return null

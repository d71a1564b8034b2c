"""Intervals and null distributions, so that no average stands alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import scipy

Alternative = Literal["greater", "less", "two-sided"]


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    r"""Wilson score interval of a proportion.

    With $p$ = `successes` / `n` and $z$ the normal quantile of `level`, the interval is
    $\left(p + \frac{z^2}{2n} \pm z \sqrt{\frac{p(1 - p)}{n} + \frac{z^2}{4n^2}}\right)
    / \left(1 + \frac{z^2}{n}\right)$.

    Args:
        successes: Count between 0 and `n`.
        n: Number of independent trials.
        level: Coverage.

    Returns:
        Lower and upper end, both in [0, 1]; (0, 1) where `n` is 0.

    Raises:
        ValueError: If `successes` is not between 0 and `n`.

    >>> low, high = wilson(300, 300)
    >>> round(low, 4), high
    (0.9874, 1.0)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} trials; pass 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    z = float(scipy.special.ndtri((1 + level) / 2))
    p = successes / n
    centre = p + z**2 / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    low = 0.0 if successes == 0 else (centre - margin) / scale
    high = 1.0 if successes == n else (centre + margin) / scale
    return low, high


def bootstrap(
    values: np.ndarray,
    seed: int,
    statistic: Callable[[np.ndarray], float] = np.mean,
    n: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval over examples.

    Args:
        values: One row per independent example; whole rows are drawn with replacement.
        seed: Of the random numbers.
        statistic: Maps an array shaped like `values` to a number.
        n: How many resamples.
        level: Coverage.

    Returns:
        Lower and upper end. Resamples in which the statistic is not defined (NaN) are left out; NaN where it never is.

    Raises:
        ValueError: If there are no examples.

    >>> low, high = bootstrap(np.arange(100.0), seed=0)
    >>> low < 49.5 < high
    True
    """
    values = np.asarray(values)
    if len(values) == 0:
        raise ValueError("no examples to draw from; pass at least one row")
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(n)], float)
    defined = drawn[~np.isnan(drawn)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_means(values: np.ndarray, seed: int, n: int = 2000, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of many means over the same examples, in one product.

    Args:
        values: One row per independent example, [example, ...]; all columns are drawn together.
        seed: Of the random numbers.
        n: How many resamples.
        level: Coverage.

    Returns:
        Lower and upper ends, each [...].

    Raises:
        ValueError: If there are no examples.

    >>> low, high = bootstrap_means(np.stack([np.arange(100.0), np.ones(100)], axis=1), seed=0)
    >>> bool(low[0] < 49.5 < high[0]), float(low[1]), float(high[1])
    (True, 1.0, 1.0)
    """
    values = np.asarray(values, float)
    count = len(values)
    if count == 0:
        raise ValueError("no examples to draw from; pass at least one row")
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n)
    tail = 100 * (1 - level) / 2
    ends = np.percentile(drawn @ values.reshape(count, -1) / count, [tail, 100 - tail], axis=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high


def permutation_p(observed: float, null: np.ndarray, alternative: Alternative = "greater") -> float:
    """p-value of a statistic against its values under permuted labels.

    The observed arrangement counts as one of the permutations, so the p-value is never 0 and the smallest one that
    `n` permutations can give is 1 / (n + 1).

    Args:
        observed: The statistic with the true labels.
        null: The statistic under each permutation.
        alternative: Which side counts as extreme; `"two-sided"` measures the distance from the mean of `null`.

    Returns:
        p-value in (0, 1].

    >>> permutation_p(1.0, np.array([0.4, 0.5, 0.6]))
    0.25
    """
    null = np.asarray(null, dtype=float)
    if alternative == "two-sided":
        centre = null.mean()
        return permutation_p(abs(observed - centre), np.abs(null - centre))
    extreme = null >= observed if alternative == "greater" else null <= observed
    return float((1 + extreme.sum()) / (1 + len(null)))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two numbers of the same things, ties given their mean rank.

    Args:
        first: One number for each, [thing].
        second: The other, [thing].

    Returns:
        The correlation; NaN where one of them has no spread.

    >>> spearman(np.arange(9.0), -np.arange(9.0) ** 3)
    -1.0
    """
    ranks = scipy.stats.rankdata(np.stack([first, second]), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(ranks).sum(axis=1).prod())
    return float(ranks[0] @ ranks[1] / size) if size > 0 else float("nan")


def rank_correlation(
    first: np.ndarray, second: np.ndarray, seed: int, n: int = 2000
) -> tuple[float, float, float, float]:
    """Spearman's correlation with its interval and a test.

    Args:
        first: One number for each thing, [thing].
        second: The other, [thing].
        seed: Of the random numbers.
        n: How many resamples, and how many permutations.

    Returns:
        The correlation; its bootstrap interval over things, lower and upper end; and the two-sided p-value under
        permutations of `second`. Without any spread in either the correlation is 0, the interval (-1, 1) and p = 1.

    >>> rank_correlation(np.arange(9.0), np.arange(9.0) ** 3, seed=0)[0]
    1.0
    """
    value = spearman(first, second)
    if np.isnan(value):
        return 0.0, -1.0, 1.0, 1.0
    low, high = bootstrap(np.stack([first, second], axis=1), seed, lambda rows: spearman(*rows.T), n)
    ranks = scipy.stats.rankdata(np.stack([first, second]), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(ranks).sum(axis=1).prod())
    rng = np.random.default_rng(seed)
    null = np.array([ranks[0] @ rng.permutation(ranks[1]) for _ in range(n)]) / size
    return value, low, high, permutation_p(abs(value), np.abs(null))

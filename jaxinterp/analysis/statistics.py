"""Intervals and null distributions, so that no average stands alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats

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
    z = float(stats.norm.ppf((1 + level) / 2))
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

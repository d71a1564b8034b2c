"""Intervals of means over two crossed kinds of items, such as prompts and word pairs: both are drawn anew."""

from __future__ import annotations

import numpy as np


def crossed_means(values: np.ndarray, seed: int, n: int = 1000) -> np.ndarray:
    """Means of tables whose rows and columns are both drawn with replacement, the same draws for all tables.

    Args:
        values: [..., row, column].
        seed: Of the random numbers.
        n: How many resamples.

    Returns:
        [resample, ...].

    Raises:
        ValueError: There are no rows or columns.

    >>> bool(np.allclose(crossed_means(np.ones((3, 4)), seed=0), 1.0))
    True
    """
    values = np.asarray(values, float)
    rows, columns = values.shape[-2:]
    if not rows or not columns:
        raise ValueError(f"there is nothing to draw from in a table of {rows} rows and {columns} columns")
    rng = np.random.default_rng(seed)
    some_rows = rng.multinomial(rows, np.full(rows, 1 / rows), size=n) / rows
    some_columns = rng.multinomial(columns, np.full(columns, 1 / columns), size=n) / columns
    return np.einsum("sr,...rc,sc->s...", some_rows, values, some_columns, optimize=True)


def crossed_interval(values: np.ndarray, seed: int, n: int = 1000) -> tuple[float, float]:
    """The 95 % interval of a mean over rows and columns.

    Args:
        values: [row, column].
        seed: Of the random numbers.
        n: How many resamples.

    Returns:
        Lower and upper end.
    """
    low, high = np.percentile(crossed_means(values, seed, n), [2.5, 97.5])
    return float(low), float(high)


def crossed_ratio(upper: np.ndarray, lower: np.ndarray, seed: int, n: int = 1000) -> tuple[float, float, float]:
    """The ratio of two means over the same rows and columns, with its paired interval.

    Args:
        upper: [row, column].
        lower: [row, column].
        seed: Of the random numbers.
        n: How many resamples.

    Returns:
        The ratio, lower and upper end of its 95 % interval.
    """
    drawn = crossed_means(np.stack([upper, lower]), seed, n)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(np.mean(upper) / np.mean(lower)), float(low), float(high)

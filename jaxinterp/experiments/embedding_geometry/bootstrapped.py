"""Rows of a table whose intervals are all made in one way: by drawing tokens anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxinterp.analysis import statistics


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How often, and from which seed.

    Attributes:
        resamples: How many resamples.
        seed: Of the random numbers.
    """

    resamples: int
    seed: int

    def row(
        self, measure: str, tokens: np.ndarray, statistic: Callable[[np.ndarray], float] = np.mean
    ) -> dict[str, Any]:
        """A number of some tokens with its interval.

        Args:
            measure: What it is called.
            tokens: One row a token.
            statistic: Maps an array shaped like `tokens` to the number.

        Returns:
            `measure`, `value`, `low`, `high` (95 % interval) and `n` (tokens).

        >>> Bootstrap(100, 0).row("mean", np.ones(5))
        {'measure': 'mean', 'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 5}
        """
        low, high = statistics.bootstrap(tokens, self.seed, statistic, self.resamples)
        return {"measure": measure, "value": float(statistic(tokens)), "low": low, "high": high, "n": len(tokens)}

"""How well estimated effects agree with measured ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import scipy

from jaxinterp.analysis.statistics import bootstrap

_VALUES = ("clean", "corrupted", "value", "effect", "normalised", "token")


def compare_with_exact(
    table: pl.DataFrame, exact: pl.DataFrame, by: Sequence[str] = (), seed: int = 0, n: int = 1000
) -> pl.DataFrame:
    """Correlates estimated effects with those of exact patching.

    Rows are matched by all columns that both tables have, effects and metrics aside: `prompt`, and such as `layer`,
    `position`, `head` or `edge`. Correlations are over all cells of all prompts; intervals come from drawing prompts
    with replacement, since cells of one prompt are not independent.

    Args:
        table: Estimates, from `attribute` or `attribute_edges`.
        exact: Measurements of the same cells: from `sweep` with labels named like the columns of `table`, or
            from `exact_edges`.
        by: Columns, such as `("layer",)`, for whose values correlations are computed one by one.
        seed: Of the bootstrap.
        n: Number of resamples.

    Returns:
        One row, or one for each value of `by`: `cells`, `prompts`, `pearson`, `pearson_low`, `pearson_high`,
        `spearman`, `spearman_low`, `spearman_high`; null where either side is constant.

    Raises:
        ValueError: The tables have no cells in common, or a cell of one matches several of the other.

    Examples:
        >>> estimate = pl.DataFrame({"prompt": [0, 0, 1, 1], "layer": [0, 1, 0, 1], "effect": [1.0, 2.0, 3.0, 4.0]})
        >>> exact = estimate.with_columns(effect=2 * pl.col("effect"))
        >>> compare_with_exact(estimate, exact)["pearson"].round(6).item()
        1.0
    """
    shared = [name for name in table.columns if name in exact.columns and name not in _VALUES]
    if "prompt" not in shared:
        raise ValueError("both tables need a prompt column, to match their cells by")
    measured = exact.select(
        *(pl.col(name).cast(table.schema[name]) for name in shared), pl.col("effect").alias("exact")
    )
    for frame, what in ((table, "estimates"), (measured, "exact effects")):
        if frame.select(shared).is_duplicated().any():
            raise ValueError(
                f"several {what} have the same {', '.join(shared)}; add the column that tells them apart, or filter"
            )
    joined = table.join(measured, on=shared, how="inner", nulls_equal=True, maintain_order="left")
    if joined.is_empty():
        raise ValueError(f"the tables have no cell in common; they were matched by {', '.join(shared)}")
    groups = joined.group_by(by, maintain_order=True) if by else [((), joined)]
    rows = [dict(zip(by, key, strict=True)) | _correlate(cells, seed, n) for key, cells in groups]
    correlations = {f"{kind}{end}": pl.Float64 for kind in ("pearson", "spearman") for end in ("", "_low", "_high")}
    return pl.DataFrame(rows, schema_overrides=correlations).with_columns(
        pl.col(name).fill_nan(None) for name in correlations
    )


def _correlate(cells: pl.DataFrame, seed: int, n: int) -> dict[str, float]:
    prompts = [part.select("effect", "exact").to_numpy() for part in cells.partition_by("prompt")]
    row: dict[str, float] = {"cells": cells.height, "prompts": len(prompts)}
    correlations: dict[str, Callable[[np.ndarray], float]] = {"pearson": _pearson, "spearman": _spearman}
    for name, correlation in correlations.items():

        def drawn(numbers: np.ndarray, correlation: Callable[[np.ndarray], float] = correlation) -> float:
            return correlation(np.concatenate([prompts[number] for number in numbers]))

        everything = np.arange(len(prompts))
        low, high = bootstrap(everything, seed, drawn, n)
        row |= {name: drawn(everything), f"{name}_low": low, f"{name}_high": high}
    return row


def _pearson(both: np.ndarray) -> float:
    centred = both - both.mean(axis=0)
    spread = np.sqrt(np.square(centred).sum(axis=0)).prod()
    return float(centred.prod(axis=1).sum() / spread) if spread > 0 else float("nan")


def _spearman(both: np.ndarray) -> float:
    return _pearson(scipy.stats.rankdata(both, axis=0))

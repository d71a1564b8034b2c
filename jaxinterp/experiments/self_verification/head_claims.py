"""The criteria that the heads of a CountDown model are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from jaxinterp.analysis import heads, statistics
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments.claims import Claim, from_row

SETS = {"paper": "paper's definition", "target": "attends to target", "circuit": "circuit"}
"""Key of a found set -> its condition in the table."""
ORDERS = ("most attention", "largest effects")
"""Conditions of the cumulative curves."""
POOLS = {
    "all heads": "among all",
    "outside the set": "from outside the set",
    "outside the circuit": "from outside the set and the circuit",
}
"""What random sets are drawn from: the end of their condition, and in words."""


def claims(table: pl.DataFrame, found: Mapping[str, Sequence[Head]]) -> list[Claim]:
    """Holds a table of the ablation experiment against the criteria.

    Args:
        table: The table.
        found: The sets that it found.

    Returns:
        One claim per criterion.
    """
    here = table.filter(pl.col("stage") == "evaluation")
    zeroed = here.filter((pl.col("method") == "zero") & (pl.col("position") == "all tokens"))
    flips = _row(zeroed, SETS["target"], "flips")
    kept = _row(zeroed, SETS["target"], "rejections kept")
    pools = {pool: _random(zeroed, pool, "flips") for pool in POOLS}
    against = "random sets: " + ", ".join(f"{_mean(values):.3f} ({pool})" for pool, values in pools.items())
    kept_by_random = _mean(_random(zeroed, "outside the set", "rejections kept"))
    return [
        *_on_attention(table, found),
        Claim(
            criterion="Without the heads that attend to the target at least 95 % of acceptances flip",
            paper="100 % (33 heads, n = 300)",
            **from_row(flips),
            control=against,
            met=flips["n_heads"] > 0 and flips["value"] >= 0.95,
        ),
        Claim(
            criterion="Without them at least 95 % of rejections stay",
            paper="not done",
            **from_row(kept),
            control=f"random sets outside it: {kept_by_random:.3f}; zeroing pushes to the commoner verdict, so it says "
            "little",
            met=kept["n_heads"] > 0 and kept["value"] >= 0.95,
        ),
        *(_on_random(values, POOLS[pool]) for pool, values in pools.items()),
        *_on_few(zeroed, against),
    ]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _row(table: pl.DataFrame, condition: str, measure: str) -> dict[str, Any]:
    return table.filter((pl.col("condition") == condition) & (pl.col("measure") == measure)).row(0, named=True)


def _random(table: pl.DataFrame, pool: str, measure: str) -> np.ndarray:
    chosen = (pl.col("condition") == f"random, {pool}") & (pl.col("measure") == measure)
    return table.filter(chosen)["value"].to_numpy()


def _on_attention(table: pl.DataFrame, found: Mapping[str, Sequence[Head]]) -> list[Claim]:
    made = []
    for place, key, words in (
        ("verdict", "target", "from the verdict's opening to the target's digits"),
        ("result", "paper", "from the result's last digit to the target (the paper's own definition)"),
    ):
        scores = table.filter(pl.col("measure") == f"attention from {place}").sort("value", descending=True)
        some, total = found[key], scores.height
        most = scores.row(0, named=True)
        listed = heads.label(some) or "none"
        made += [
            Claim(
                criterion=f"Some heads attend {words} with over 10 % of their attention; at most 15 % of all heads",
                paper="33 of 576 heads (5.7 %)",
                ours=len(some) / total,
                n=most["n"],
                control=f"{len(some)} of {total} heads: {listed}",
                met=0 < len(some) / total <= 0.15,
            ),
            Claim(
                criterion=f"The head that attends most {words} does so with at least 50 % of its attention",
                paper="93 % (17.14, on a small development set)",
                ours=most["value"],
                n=most["n"],
                control=f"{most['heads']}; the median head: {scores['value'].median():.3f}",
                met=most["value"] >= 0.5,
            ),
        ]
    return made


def _on_random(values: np.ndarray, pool: str) -> Claim:
    low, high = statistics.bootstrap(values, seed=0) if len(values) else (None, None)
    return Claim(
        criterion=f"As many random heads {pool} flip at most 10 % on average, interval included",
        paper="not done",
        ours=_mean(values),
        low=low,
        high=high,
        n=len(values),
        control=f"the largest of {len(values)} draws flips {values.max(initial=0):.3f}",
        met=high is not None and high <= 0.1,
    )


def _on_few(zeroed: pl.DataFrame, against: str) -> list[Claim]:
    made = []
    for condition, order, paper in zip(
        ORDERS,
        ("attention", "single effect"),
        ("82 % (3 heads, n = 60)", "100 % (3 heads in order of a score, n = 300)"),
        strict=True,
    ):
        curve = zeroed.filter((pl.col("condition") == condition) & (pl.col("measure") == "flips"))
        first = curve.filter(pl.col("n_heads") <= 3).sort("value", "n_heads", descending=[False, True])
        few = first.row(-1, named=True)
        made.append(
            Claim(
                criterion=f"Three heads or fewer, in order of their {order}, flip at least 90 %",
                paper=paper,
                **from_row(few),
                control=f"{few['heads']}; {against}",
                met=few["value"] >= 0.9,
            )
        )
    return made

"""Faithfulness curves: how much of what a model does do so many of its edges do by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import polars as pl

from jaxinterp.activations.metrics import Metric, bind_metric
from jaxinterp.activations.run import Inputs
from jaxinterp.analysis.aligned_pairs import align_pairs
from jaxinterp.analysis.circuit import graph_of, measure_circuits
from jaxinterp.analysis.statistics import bootstrap
from jaxinterp.models.language_model import LanguageModel

_ROUNDING = 1e-5  # metrics nearer than this, absolutely or relative to their size, differ by float32 rounding alone
_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness(
    model: LanguageModel,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric | Callable[[jax.Array], jax.Array],
    scores: pl.DataFrame | Mapping[str, pl.DataFrame],
    counts: Sequence[int] | None = None,
    fractions: Sequence[float] = _FRACTIONS,
    random_draws: int = 5,
    seed: int = 0,
    mask: Any = None,
    batch_size: int | None = None,
) -> pl.DataFrame:
    """Runs the circuits of the highest-scored edges, and of as many random ones.

    With `m` the metric averaged over pairs, the faithfulness of a circuit is
    `(m(circuit) - m(corrupted)) / (m(clean) - m(corrupted))`: 1 for all edges, 0 for none.

    Give scores from pairs other than these: edges that were chosen on the pairs they are judged by look better than
    they are.

    Args:
        model: The model.
        clean: Texts, lists of token ids, or ids [pair, seq].
        corrupted: The other texts, each as long as its partner.
        metric: `logit_diff(...)`, `log_prob(...)`, or a function of last-token logits; bound to the pairs.
        scores: A table of `attribute_edges` or `exact_edges`, or several by name. Edges are ranked by the absolute
            value of their mean `effect` over prompts; edges that a table lacks come last.
        counts: How many edges to keep, one circuit each; instead of `fractions`.
        fractions: How many edges to keep, as fractions of all, in [0, 1].
        random_draws: Random sets of edges of each size, the control.
        seed: Of the random sets and of the bootstrap.
        mask: With ids [pair, seq]: which of them are tokens.
        batch_size: Pairs at a time; by default as many as fit.

    Returns:
        One row for each circuit: `selection` (the name of the scores, `"scores"` if they have none, or `"random"`),
        `draw` (of random sets; otherwise null), `edges`, `fraction`, `prompts`, `clean`, `corrupted` and `value` (mean
        metrics), `faithfulness`, `low` and `high` (95 % bootstrap interval over pairs).

    Raises:
        ValueError: There are no scores, a count is out of range, or the metric is the same on both texts.

    References:
        Hanna, Pezzelle, Belinkov 2024, arXiv:2403.17806.
    """
    tables = {"scores": scores} if isinstance(scores, pl.DataFrame) else dict(scores)
    total = int(graph_of(model).is_edge().sum())
    sizes = _sizes(total, counts, fractions)
    rankings = [(name, None, _rank(table, total)) for name, table in tables.items()]
    generator = np.random.default_rng(seed)
    rankings += [("random", draw, generator.permutation(total)) for draw in range(random_draws)]
    labels, circuits = [], np.zeros((len(rankings) * len(sizes) + 2, total), bool)
    circuits[-1] = True
    for name, draw, ranking in rankings:
        for size in sizes:
            circuits[len(labels), ranking[:size]] = True
            labels.append((name, draw, size))
    pairs = align_pairs(model, clean, corrupted, mask)
    values = measure_circuits(model, pairs, circuits, bind_metric(metric, model, len(pairs)), batch_size)
    ends = values[[-1, -2]]
    if np.isclose(ends[0].mean(), ends[1].mean(), rtol=_ROUNDING, atol=_ROUNDING):
        raise ValueError("the metric is the same on clean and corrupted texts, so nothing can be restored")
    rows = []
    for (name, draw, size), value in zip(labels, values, strict=False):
        columns = np.stack([value, *ends], axis=1).astype(np.float64)
        low, high = bootstrap(columns, seed, _ratio)
        mean, before, after = columns.mean(axis=0)
        row = {"selection": name, "draw": draw, "edges": size, "fraction": size / total, "prompts": len(pairs)}
        row |= {"clean": before, "corrupted": after, "value": mean, "faithfulness": _ratio(columns)}
        rows.append(row | {"low": low, "high": high})
    return pl.DataFrame(rows, schema_overrides={"draw": pl.Int64})


def _sizes(total: int, counts: Sequence[int] | None, fractions: Sequence[float]) -> list[int]:
    sizes = [round(fraction * total) for fraction in fractions] if counts is None else [int(count) for count in counts]
    outside = [size for size in sizes if not 0 <= size <= total]
    if outside or not sizes:
        asked = f"{outside[0]} edges" if outside else "no number of edges"
        raise ValueError(f"{asked} asked for; the model has {total}, so give counts from 0 to that")
    return sizes


def _rank(scores: pl.DataFrame, total: int) -> np.ndarray:
    """All edges, the largest absolute mean effect first."""
    means = scores.group_by("edge").agg(pl.col("effect").mean())
    edges, effects = means["edge"].to_numpy(), np.abs(means["effect"].to_numpy())
    if len(edges) == 0 or edges.max() >= total or not np.isfinite(effects).all():
        raise ValueError(f"scores need a finite effect for edges numbered from 0 to {total - 1}")
    strength = np.full(total, -np.inf)
    strength[edges] = effects
    return np.argsort(-strength, kind="stable")


def _ratio(columns: np.ndarray) -> float:
    """Faithfulness of [pair, (circuit, clean, corrupted)] metrics; NaN where clean and corrupted are equal."""
    value, clean, corrupted = columns.mean(axis=0)
    return float((value - corrupted) / (clean - corrupted)) if clean != corrupted else float("nan")

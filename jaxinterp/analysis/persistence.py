"""Two models' vectors for the same tokens, somewhere in the network: do their geometries agree, does a map carry over?

The first question is asked without a map: are tokens that are alike in one model alike in the other? The second with
one, fitted elsewhere (on the embeddings) or here, and always beside maps that were fitted on wrongly paired tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.analysis import geometry, statistics, transfer
from jaxinterp.analysis.hidden_states import agreeing_neighbours, relabel
from jaxinterp.analysis.neighbours import nearest_neighbours

Row = dict[str, Any]
_RESAMPLES = 500


def compare_geometries(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, k: int, permutations: int, sample: int, seed: int
) -> Iterator[Row]:
    """Compares who is near whom in two models: the correlation of all pairwise cosines, and shared neighbours.

    Rows are centred first: vectors of one layer have a large mean in common.

    Args:
        first: Vectors of one model [token, embedding].
        second: Of the other, the same tokens; the width may differ.
        groups: Int [token]; tokens are relabelled at random, and once more only within their group.
        k: Neighbours of each token.
        permutations: Relabellings in each null.
        sample: Tokens, the first ones, on which the correlation of relabelled tokens is taken.
        seed: Of the random numbers.

    Yields:
        `measure` (r, r of the sample, shared neighbours; relabelled and p of both), `value`, `low`, `high`, `n`,
        `control`. Intervals: bootstrap over tokens, or the middle 95 % of the relabellings.
    """
    a, b = geometry.unit_rows(first, centred=True), geometry.unit_rows(second, centred=True)
    low, high = geometry.node_bootstrap(a, b, resamples=_RESAMPLES, seed=seed)
    r = geometry.cosine_correlation(a, b)
    yield {"measure": "r", "value": r, "low": low, "high": high, "n": len(a)}
    some_a, some_b, some_groups = a[:sample], b[:sample], groups[:sample]
    r = geometry.cosine_correlation(some_a, some_b)
    yield {"measure": "r of the sample", "value": r, "n": len(some_a)}
    near = [nearest_neighbours(rows, k)[0] for rows in (a, b)]
    shared = agreeing_neighbours(*near)
    low, high = statistics.bootstrap_means(shared, seed, _RESAMPLES)
    overlap = float(shared.mean())
    yield {"measure": "shared neighbours", "value": overlap, "low": float(low), "high": float(high), "n": len(a)}
    for name, kept in (("relabelled", None), ("relabelled within rank bins", groups)):
        within = None if kept is None else some_groups
        null = geometry.permutation_null(some_a, some_b, permutations=permutations, seed=seed, groups=within)
        yield from _null_rows(f"r, {name}", r, null)
        orders = _relabellings(len(b), kept, permutations, seed)
        null = np.array([agreeing_neighbours(near[0], relabel(near[1], order)).mean() for order in orders])
        yield from _null_rows(f"shared neighbours, {name}", overlap, null)


def _relabellings(tokens: int, groups: np.ndarray | None, count: int, seed: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(seed)
    groups = np.zeros(tokens) if groups is None else groups
    for _ in range(count):
        order = np.empty(tokens, np.int64)
        order[np.argsort(groups, kind="stable")] = np.lexsort((draw.random(tokens), groups))
        yield order


def _null_rows(measure: str, observed: float, null: np.ndarray) -> Iterator[Row]:
    low, high = np.quantile(null, [0.025, 0.975])
    middle = {"value": null.mean(), "low": low, "high": high, "n": len(null), "control": True}
    yield {"measure": measure} | middle
    yield {"measure": f"p, {measure}", "value": statistics.permutation_p(observed, null), "n": len(null)}


def compare_maps(
    source: np.ndarray,
    target: np.ndarray,
    train: np.ndarray,
    held: np.ndarray,
    *,
    given: Mapping[str, np.ndarray],
    wrong: Sequence[np.ndarray],
    shuffled: int,
    seed: int,
) -> tuple[list[Row], transfer.LinearMap]:
    """Judges maps on held-out tokens: given ones, one fitted here, and both kinds of control.

    A given matrix takes the means of the training tokens here; so only directions are its own. A prediction finds its
    token if no other held-out token is nearer to it, by the cosine after centring.

    Args:
        source: Vectors of the model that is mapped from [token, embedding].
        target: Of the model that is mapped to.
        train: Tokens that the map is fitted on.
        held: Tokens that all are judged on.
        given: Name -> matrix [source embedding, target embedding] that was fitted elsewhere.
        wrong: Matrices fitted elsewhere on wrongly paired tokens.
        shuffled: Maps that are fitted here on wrongly paired tokens.
        seed: Of the shuffles and the bootstrap.

    Returns:
        Rows and the map fitted here, by least squares. Rows: `method` (the names given, "refitted", and controls
        "given, shuffled" and "refitted, shuffled"), `measure` (top-1, top-10, cosine; R2 of maps fitted here; for a
        given one also the top-1 that is gained by refitting), `value`, `low`, `high`, `n`, `control`.

    Raises:
        ValueError: There are not more training tokens than source dimensions.
    """
    draw = np.random.default_rng(seed)
    targets = [target[train], *(target[train][draw.permutation(len(train))] for _ in range(shuffled))]
    fitted, *fitted_wrong = transfer.fit_maps(source[train], targets)
    means = fitted.source_mean, fitted.target_mean
    there = target[held]

    def judge(found: transfer.LinearMap, part: np.ndarray) -> transfer.MapQuality:
        return transfer.map_quality(found, source[held[part]], there, part)

    everyone = np.arange(len(held))
    judged = {name: [judge(transfer.LinearMap(matrix, *means), everyone)] for name, matrix in given.items()}
    judged["refitted"] = [judge(fitted, everyone)]
    controls = {
        "given, shuffled": [transfer.LinearMap(matrix, *means) for matrix in wrong],
        "refitted, shuffled": fitted_wrong,
    }
    for name, maps in controls.items():
        parts = np.array_split(everyone, max(1, len(maps)))
        if maps:
            judged[name] = [judge(found, part) for found, part in zip(maps, parts, strict=True) if len(part)]
    return [row | {"control": row["method"] in controls} for row in _quality_rows(judged, tuple(given), seed)], fitted


def _quality_rows(judged: Mapping[str, Sequence[transfer.MapQuality]], given: Sequence[str], seed: int) -> list[Row]:
    """Rows of `compare_maps`; what is averaged over tokens is resampled all at once."""
    ranks = {name: np.concatenate([quality.ranks for quality in some]) for name, some in judged.items()}
    columns = {(name, "cosine"): np.concatenate([part.cosines for part in some]) for name, some in judged.items()}
    hits = {name: (found < 1).astype(float) for name, found in ranks.items()}
    columns |= {(name, "top-1 gained by refitting"): hits["refitted"] - hits[name] for name in given}
    values = np.stack(list(columns.values()), axis=1)
    ends = zip(*statistics.bootstrap_means(values, seed, _RESAMPLES), strict=True)
    rows: list[Row] = [
        {"method": method, "measure": measure, "value": value, "low": low, "high": high}
        for (method, measure), value, (low, high) in zip(columns, values.mean(axis=0), ends, strict=True)
    ]
    for name, some in judged.items():
        for k in (1, 10):
            found = int(np.sum(ranks[name] < k))
            low, high = statistics.wilson(found, len(values))
            top = {"method": name, "measure": f"top-{k}", "value": found / len(values), "low": low, "high": high}
            rows.append(top)
        if name.startswith("refitted"):
            rows.append({"method": name, "measure": "R2", "value": np.mean([quality.r2 for quality in some])})
    return [row | {"n": len(values)} for row in rows]

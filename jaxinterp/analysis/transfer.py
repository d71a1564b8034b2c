"""A linear map from one model's space to another's, fitted on tokens that both know, and how good it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

Fit = Literal["least_squares", "ridge", "procrustes"]


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """`x -> (x - source_mean) @ matrix + target_mean`.

    Attributes:
        matrix: [source embedding, target embedding].
        source_mean: Mean source row of the pairs it was fitted on [source embedding].
        target_mean: Mean target row [target embedding].
    """

    matrix: np.ndarray
    source_mean: np.ndarray
    target_mean: np.ndarray

    def points(self, rows: np.ndarray) -> np.ndarray:
        """Carries points, such as embeddings, over.

        Args:
            rows: [..., source embedding].

        Returns:
            [..., target embedding].
        """
        return (rows - self.source_mean) @ self.matrix + self.target_mean

    def directions(self, vectors: np.ndarray) -> np.ndarray:
        """Carries differences of points, such as steering vectors, over: the means cancel.

        Args:
            vectors: [..., source embedding].

        Returns:
            [..., target embedding].
        """
        return vectors @ self.matrix


def fit_map(source: np.ndarray, target: np.ndarray, method: Fit = "least_squares", *, ridge: float = 0.0) -> LinearMap:
    """Fits a linear map between paired rows, both centred on their own means.

    Least squares minimises `|S A - T|_F^2`, ridge adds `ridge * |A|_F^2`; Procrustes takes the best `A = s R` with
    `R` semi-orthogonal, which turns and scales the space but does not bend it.

    Args:
        source: Source rows [pair, source embedding].
        target: Target rows [pair, target embedding], the same pairs in the same order.
        method: `"least_squares"`, `"ridge"` or `"procrustes"`.
        ridge: Penalty of `"ridge"` in units of the mean eigenvalue of `S^T S`.

    Returns:
        The map, float32.

    Raises:
        ValueError: The numbers of rows differ, or least squares is asked for with fewer pairs than dimensions.
    """
    return fit_maps(source, [target], method, ridge=ridge)[0]


def fit_maps(
    source: np.ndarray, targets: Iterable[np.ndarray], method: Fit = "least_squares", *, ridge: float = 0.0
) -> list[LinearMap]:
    """Fits one map from the same source rows to each of several targets; see `fit_map`.

    Args:
        source: Source rows [pair, source embedding].
        targets: For each map its target rows [pair, target embedding].
        method: As in `fit_map`.
        ridge: As in `fit_map`.

    Returns:
        The maps, in the order of `targets`.

    Raises:
        ValueError: As in `fit_map`.
    """
    pairs, width = source.shape
    if method == "least_squares" and pairs <= width:
        raise ValueError(
            f"least squares needs more than {width} pairs for {width} dimensions and has {pairs}; "
            "give more pairs or use method='ridge'"
        )
    source_mean = source.mean(axis=0, dtype=np.float64)
    rows = np.asarray(source, np.float32) - source_mean.astype(np.float32)
    left_over = rows.sum(axis=0, dtype=np.float64)
    gram = (rows.T @ rows).astype(np.float64)
    penalty = (ridge if method == "ridge" else 1e-9) * np.trace(gram) / width * np.eye(width)
    maps = []
    for target in targets:
        if len(target) != pairs:
            raise ValueError(f"a map is fitted on pairs: {pairs} source rows stand against {len(target)} target rows")
        target_mean = target.mean(axis=0, dtype=np.float64)
        cross = (rows.T @ np.asarray(target, np.float32)).astype(np.float64) - np.outer(left_over, target_mean)
        if method == "procrustes":
            left, strengths, right = np.linalg.svd(cross, full_matrices=False)
            turn = left @ right
            matrix = turn * (strengths.sum() / np.sum(turn * (gram @ turn)))
        else:
            matrix = np.linalg.solve(gram + penalty, cross)
        maps.append(LinearMap(*(part.astype(np.float32) for part in (matrix, source_mean, target_mean))))
    return maps


def fit_shuffled(source: np.ndarray, target: np.ndarray, *, count: int, seed: int) -> list[LinearMap]:
    """Least-squares maps of which each was fitted on wrongly paired rows: the control for every use of a map.

    Args:
        source: Source rows [pair, source embedding].
        target: Target rows [pair, target embedding].
        count: How many maps, each with its own shuffle.
        seed: Seed of the random numbers.

    Returns:
        The maps.
    """
    draw = np.random.default_rng(seed)
    return fit_maps(source, (target[draw.permutation(len(target))] for _ in range(count)))


@dataclasses.dataclass(frozen=True)
class MapQuality:
    """How well a map predicts held-out rows.

    Attributes:
        cosines: Cosine of each predicted and true target row, both minus the target mean [row].
        ranks: How many candidates are nearer (by that cosine) to the prediction than the true row is, int [row].
        r2: Share of the held-out rows' variance that the map explains.
    """

    cosines: np.ndarray
    ranks: np.ndarray
    r2: float

    def hits(self, k: int) -> int:
        """How many rows have their true partner among the `k` nearest candidates."""
        return int(np.sum(self.ranks < k))


def map_quality(
    found: LinearMap, source: np.ndarray, candidates: np.ndarray, truth: np.ndarray, *, block: int = 1000
) -> MapQuality:
    """Judges a map on rows that it was not fitted on.

    Args:
        found: The map.
        source: Held-out source rows [row, source embedding].
        candidates: All target rows among which the partner is looked for [candidate, target embedding].
        truth: Index of each row's partner in `candidates`, int [row].
        block: Rows that are compared with all candidates at a time; bounds the memory.

    Returns:
        Cosines, ranks and R2.
    """
    predicted = found.directions(source - found.source_mean)
    centred = candidates - found.target_mean
    actual = centred[truth]
    residual = np.sum((predicted - actual) ** 2, dtype=np.float64)
    variance = np.sum((actual - actual.mean(axis=0)) ** 2, dtype=np.float64)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    predicted = predicted / np.maximum(np.linalg.norm(predicted, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosines = np.einsum("ij,ij->i", predicted, centred[truth])
    ranks = np.empty(len(truth), np.int64)
    for start in range(0, len(truth), block):
        rows = slice(start, start + block)
        scores = predicted[rows] @ centred.T
        own = scores[np.arange(len(scores)), truth[rows]]
        ranks[rows] = np.sum(scores > own[:, None], axis=1)
    return MapQuality(cosines, ranks, float(1 - residual / variance))

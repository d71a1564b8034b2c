"""Probes side by side at every layer, each beside what it scores by chance, in one tidy table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from jaxinterp.analysis import statistics
from jaxinterp.analysis.ccs import fit_ccs
from jaxinterp.analysis.mass_mean import fit_mass_mean
from jaxinterp.analysis.probes import LinearProbes, as_label_sets, fit_logistic, permuted

SPLITS = ("train", "validation", "test")


def compare_probes(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    opposites: np.ndarray | None = None,
    split: np.ndarray | None = None,
    C: Sequence[float] = (0.001, 0.01, 0.1, 1.0),
    permutations: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """Fits every kind of probe on one part of the examples, chooses on the second and measures on the third.

    Chosen on the validation examples: the strength C of the logistic probe, at each layer, and the best layer of each
    probe. Controls: the same probes fitted on shuffled labels (with the C of the true ones); random directions with
    the threshold halfway between the classes' means and turned the way that fits the training labels; the more common
    class of the training labels; and for contrast-consistent search, pairs whose two statements are swapped at random.

    Args:
        features: Activations, [layer, n, embedding].
        labels: Booleans, [n].
        opposites: Activations of the opposite statements, [layer, n, embedding]; needed for contrast-consistent search,
            which is left out otherwise.
        split: "train", "validation" or "test" for each example, [n], so that what belongs together (such as examples
            from one text) can stay together; by default half, a quarter and a quarter, at random.
        C: Strengths to choose from.
        permutations: How many shuffled copies of the labels, and how many random directions.
        seed: Of the split, the shuffles, the directions and the starts.

    Returns:
        One row per layer, probe and control: `layer`, `probe` (logistic, mass mean, whitened mass mean, ccs, none),
        `control` (none, shuffled labels, swapped pairs, random direction, majority class), `accuracy` on the test
        examples, `low`, `high`, `n`, `C`, and `selected` (whether this is the probe's best layer on the validation
        examples; its test accuracy is not affected by that choice). `low` and `high` are a 95 % Wilson interval over
        `n` test examples, which takes them as independent; or for shuffled labels and random directions, of which
        `accuracy` is the mean, the 2.5 and 97.5 percentiles over `n` draws.

    Raises:
        ValueError: The shapes do not fit, a split is missing or has examples of one class only, or there are no
            permutations.
    """
    labels = as_label_sets(features, labels)[0]
    parts = _parts(labels, split, seed)
    if permutations < 1:
        raise ValueError(f"there are {permutations} permutations; pass at least 1, or there is no control")
    if opposites is not None and np.shape(opposites) != np.shape(features):
        raise ValueError(f"opposites have shape {np.shape(opposites)} and features {np.shape(features)}; pass the same")
    taken = {name: (features[:, chosen], labels[chosen]) for name, chosen in parts.items()}
    sets = np.stack([taken["train"][1], *permuted(taken["train"][1], permutations, seed)])
    rows = _rows("logistic", *_fit_chosen(taken, sets, C), taken)
    for name, whiten in (("mass mean", False), ("whitened mass mean", True)):
        found = fit_mass_mean(taken["train"][0], sets, whiten=whiten)
        rows += _rows(name, found, np.full(len(features), None), taken)
    if opposites is not None:
        rows += _contrast_rows(features, opposites, labels, parts, seed)
    rows += _chance_rows(taken, permutations, seed)
    schema = {"layer": pl.Int64, "probe": pl.String, "control": pl.String, "accuracy": pl.Float64, "low": pl.Float64}
    schema |= {"high": pl.Float64, "n": pl.Int64, "C": pl.Float64, "selected": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _parts(labels: np.ndarray, split: np.ndarray | None, seed: int) -> dict[str, np.ndarray]:
    if split is None:
        order = np.random.default_rng(seed).permutation(len(labels))
        split = np.empty(len(labels), "<U10")
        for name, chosen in zip(SPLITS, np.split(order, [len(order) // 2, 3 * len(order) // 4]), strict=True):
            split[chosen] = name
    split = np.asarray(split)
    if split.shape != labels.shape or not np.isin(split, SPLITS).all():
        raise ValueError(f"the split has shape {split.shape}; pass one of {', '.join(SPLITS)} for each example")
    parts = {name: np.flatnonzero(split == name) for name in SPLITS}
    for name, chosen in parts.items():
        if len(np.unique(labels[chosen])) < 2:
            raise ValueError(f"the {name} split has {len(chosen)} examples, not of both classes; give it some of each")
    return parts


def _fit_chosen(taken: dict[str, Any], sets: np.ndarray, C: Sequence[float]) -> tuple[LinearProbes, np.ndarray]:
    """Logistic probes [labels, layer] with the strength that does best on the validation examples at each layer."""
    strengths = sorted(C)
    every = fit_logistic(taken["train"][0], sets, C=strengths)
    best = every.accuracy(*taken["validation"])[:, 0].argmax(axis=0)  # the strongest penalty among equals
    layers = np.arange(len(best))
    weights, bias = (np.moveaxis(part[best, :, layers], 0, 1) for part in (every.weights, every.bias))
    return LinearProbes(weights, bias), np.asarray(strengths)[best]


def _rows(probe: str, found: LinearProbes, strengths: np.ndarray, taken: dict[str, Any]) -> list[tuple]:
    """Rows of a probe whose first label set is the true one, and of its control on the others."""
    accuracy = found.accuracy(*taken["test"])
    chosen = found.accuracy(*taken["validation"])[0].argmax()
    rows = []
    for layer, strength in enumerate(strengths):
        measured = _wilson(accuracy[0, layer], len(taken["test"][1]))
        rows.append((layer, probe, "none", *measured, strength, layer == chosen))
        rows.append((layer, probe, "shuffled labels", *_range(accuracy[1:, layer]), strength, False))
    return rows


def _contrast_rows(
    features: np.ndarray, opposites: np.ndarray, labels: np.ndarray, parts: dict[str, np.ndarray], seed: int
) -> list[tuple]:
    train, rows = parts["train"], []
    pairs = features[:, train], opposites[:, train]
    swap = (np.random.default_rng(seed).random(len(train)) < 0.5)[None, :, None]
    for control, sides in (("none", pairs), ("swapped pairs", (np.where(swap, *pairs), np.where(swap, *pairs[::-1])))):
        found = fit_ccs(*sides, seed=seed).oriented(*pairs, labels[train])
        validation, test = (
            ((found.probabilities(features[:, part], opposites[:, part]) > 0.5) == labels[part]).mean(axis=1)
            for part in (parts["validation"], parts["test"])
        )
        for layer, accuracy in enumerate(test):
            selected = control == "none" and layer == validation.argmax()
            rows.append((layer, "ccs", control, *_wilson(accuracy, len(parts["test"])), None, selected))
    return rows


def _chance_rows(taken: dict[str, Any], draws: int, seed: int) -> list[tuple]:
    (train, labels), (test, truth) = taken["train"], taken["test"]
    scale = np.maximum(train.std(axis=1), 1e-6)
    weights = np.random.default_rng(seed).normal(size=(draws, *scale.shape)) / scale
    upper, lower = ((weights * train[:, side].mean(axis=1)).sum(-1) for side in (labels, ~labels))
    turned = np.where(upper < lower, -1.0, 1.0)
    found = LinearProbes(turned[..., None] * weights, -turned * (upper + lower) / 2)
    accuracy = found.accuracy(test, truth)
    common = labels.mean() >= 0.5
    rows = []
    for layer in range(len(train)):
        rows.append((layer, "none", "random direction", *_range(accuracy[:, layer]), None, False))
        rows.append((layer, "none", "majority class", *_wilson((truth == common).mean(), len(truth)), None, False))
    return rows


def _wilson(accuracy: float, n: int) -> tuple[float, float, float, int]:
    return float(accuracy), *statistics.wilson(round(float(accuracy) * n), n), n


def _range(values: np.ndarray) -> tuple[float, float, float, int]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(values.mean()), float(low), float(high), len(values)

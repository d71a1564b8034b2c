"""Linear probes: what can be read off the residual stream, at every layer at once, against shuffled labels."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxinterp.analysis import logistic

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LinearProbes:
    """Affine functions of the features, one per layer and per entry of the leading axes; "true" where positive.

    Attributes:
        weights: Directions in units of the features, [..., layer, embedding].
        bias: [..., layer].
    """

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of the class "true" where the probe is a model of them, and otherwise positive where it says "true".

        Args:
            features: [layer, n, embedding].

        Returns:
            [..., layer, n], the leading axes being those of `weights`.
        """
        return _products(self.weights, features) + self.bias[..., None]

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Share of examples told right.

        Args:
            features: [layer, n, embedding].
            labels: Booleans, [n].

        Returns:
            [..., layer].
        """
        return ((self.scores(features) > 0) == np.asarray(labels, bool)).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class LogisticProbes(LinearProbes):
    """Logistic regressions, and how far their solver came.

    Attributes:
        gradient: Largest entry of the gradient of the loss per example, in units of the standardised features,
            [..., layer].
        iterations: Steps made, [..., layer].
        converged: Whether the gradient is as small as was asked for, [..., layer].
    """

    gradient: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray


@dataclasses.dataclass(frozen=True)
class SoftmaxProbes:
    """Two-class softmax probes without bias, one per entry of the leading axes.

    Attributes:
        weights: Directions in units of the standardised features, [..., layer, 2, embedding]; row 1 is the class
            "true".
        centre: Midpoint of the two classes' means on the training examples, [..., layer, embedding].
        scale: Standard deviation of each feature on the training examples, [layer, embedding].
    """

    weights: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of the class "true".

        Args:
            features: [layer, n, embedding], as given to `fit_softmax`.

        Returns:
            [..., layer, n], the leading axes being those of `weights`; in nats.
        """
        rows = self.directions()
        direction = rows[..., 1, :] - rows[..., 0, :]
        return _products(direction, features) - (direction * self.centre).sum(-1)[..., None]

    def directions(self) -> np.ndarray:
        """Both directions in the residual stream's own units, [..., layer, 2, embedding]."""
        return self.weights / self.scale[:, None]

    def cosine(self) -> np.ndarray:
        """Cosine of the two directions in the residual stream, [..., layer].

        The penalty leaves nothing that the two rows have in common, so at the minimum it is -1, whatever the labels
        are; a probe that was trained for a while from random weights comes near. NaN where the features say nothing and
        both rows are 0.
        """
        rows = self.directions()
        norms = np.linalg.norm(rows, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(norms.min(-1) > 1e-12, (rows[..., 0, :] * rows[..., 1, :]).sum(-1) / norms.prod(-1), np.nan)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    C: float | Sequence[float] = 1.0,
    standardise: bool = True,
    balanced: bool = False,
    tolerance: float = 1e-5,
    steps: int = 1000,
) -> LogisticProbes:
    r"""Logistic regression with a bias and an L2 penalty, for all layers, label sets and strengths in one program.

    Each probe minimises scikit-learn's $\frac12 \lVert w \rVert^2 + C \sum_i \log(1 + e^{-s_i (w \cdot x_i + b)})$
    with $s_i$ = 1 where the label is true and -1 elsewhere. With `standardise` the penalty is on the weights of
    standardised features, as in `make_pipeline(StandardScaler(), LogisticRegression(C=C))`; without, it is on the
    weights of the features as they are, as in `LogisticRegression(C=C)`, where a feature that varies little costs much
    to use. Memory beyond the features: a standardised copy, and per layer at a time 130 numbers per label set and
    feature, and 10 per label set and example.

    Args:
        features: Activations, [layer, n, embedding].
        labels: Booleans, [n], or several sets of them, [labels, n], such as the true ones and `permuted` copies: more
            sets cost little, since the features are read once for all. Every set needs both classes.
        C: Inverse of the penalty's strength, as in scikit-learn, or several.
        standardise: Whether the penalty is on the weights of standardised features.
        balanced: Whether examples count so that both classes have the same weight (`class_weight="balanced"`).
        tolerance: The solver ends when no entry of the gradient of the loss per example, in units of the standardised
            features, is larger. scikit-learn's own default is 1e-4; held-out accuracy no longer moves by 1e-3 at 1e-5.
        steps: The solver ends after so many steps anyhow. Probes that have not converged then are marked, and a
            warning is logged.

    Returns:
        Probes with weights [C, labels, layer, embedding], without the first two axes where a single value was given.

    Raises:
        ValueError: The shapes do not fit, a label set has one class only, or a number is out of its range.

    >>> x = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
    >>> probes = fit_logistic(x, x[1, :, 0] > 0)
    >>> [round(float(share), 1) for share in probes.accuracy(x, x[1, :, 0] > 0)]
    [0.6, 1.0]
    """
    sets = as_label_sets(features, labels)
    strengths = np.atleast_1d(np.asarray(C, np.float64))
    if strengths.ndim != 1 or not ((strengths > 0) & np.isfinite(strengths)).all():
        raise ValueError(f"C is {C}; pass a positive number, or a list of them")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; pass a number between 0 and 1, such as 1e-5")
    standard, mean, scale = logistic.standardise(jnp.asarray(features, jnp.float32))
    penalty = np.ones(scale.shape) if standardise else 1 / np.asarray(scale, np.float64) ** 2
    importance = _balance(sets) if balanced else np.ones(sets.shape)
    found = logistic.minimise(
        standard,
        sets,
        importance.astype(np.float32),
        (penalty / strengths[:, None, None]).astype(np.float32),
        with_bias=True,
        tolerance=tolerance,
        steps=steps,
    )
    weights = np.asarray(found.weights) / np.asarray(scale)
    bias = np.asarray(found.bias) - (weights * np.asarray(mean)).sum(-1, dtype=np.float64)
    gradient, iterations = np.asarray(found.gradient), np.asarray(found.iterations)
    converged = gradient <= 1.1 * tolerance  # the solver carries the odds along; afresh they differ in rounding
    if not converged.all():
        _LOG.warning(
            "%d of %d logistic probes have not converged (gradient up to %.1e, %.1e asked for, %d steps at most); "
            "allow more steps, a larger tolerance or a smaller C",
            *((~converged).sum(), converged.size, np.nan_to_num(gradient, nan=np.inf).max(), tolerance, steps),
        )
    drop = tuple(axis for axis, single in enumerate((np.ndim(C) == 0, np.ndim(labels) == 1)) if single)
    parts = (weights, bias.astype(np.float32), gradient, iterations, converged)
    return LogisticProbes(*(part.squeeze(axis=drop) for part in parts))


def fit_softmax(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    l2: float = 1.0,
    permutations: int = 0,
    seed: int = 0,
) -> tuple[SoftmaxProbes, SoftmaxProbes]:
    r"""Fit a bias-free softmax probe per layer, and again on shuffled labels.

    Each probe is $p(y \mid x) = \mathrm{softmax}(W x)$ with $W \in \mathbb{R}^{2 \times d}$ on features
    standardised on the training examples: divided by their deviation, with the midpoint of the classes' means as
    the origin, so that the missing bias costs nothing however common either class is. It minimises the
    class-balanced negative log-likelihood, summed over the `n` examples, plus
    $\frac{\lambda}{2} \lVert W \rVert^2$ with $\lambda$ = `l2`. At the minimum the two rows are each other's
    negative, so that only their difference is looked for.

    Args:
        features: Activations, [layer, n, embedding].
        labels: Booleans, [n]; both classes have to occur.
        l2: Weight decay $\lambda$. scikit-learn's `LogisticRegression(C=2 / l2)` is the same problem.
        permutations: How many shuffled copies of the labels to fit as well.
        seed: Of the permutations.

    Returns:
        The probes, with weights [layer, 2, embedding], and the control, with weights
        [permutation, layer, 2, embedding].

    Raises:
        ValueError: If the labels are of one class only or their number is not that of the examples.
    """
    as_label_sets(features, labels)
    sets = np.concatenate([np.asarray(labels, bool)[None], permuted(labels, permutations, seed)])
    importance = _balance(sets)
    standard, mean, scale = (np.asarray(part) for part in logistic.standardise(jnp.asarray(features, jnp.float32)))
    midpoint = np.einsum("pn,lne->ple", importance / sets.shape[1], standard, optimize=True).astype(np.float32)
    found = logistic.minimise(
        standard,
        sets,
        importance.astype(np.float32),
        np.full((1, *scale.shape), l2 / 2, np.float32),
        midpoint,
        with_bias=False,
        tolerance=1e-5,
        steps=1000,
    )
    difference = np.asarray(found.weights[0])
    weights, centre = np.stack([-difference / 2, difference / 2], axis=-2), mean + scale * midpoint
    return SoftmaxProbes(weights[0], centre[0], scale), SoftmaxProbes(weights[1:], centre[1:], scale)


def permuted(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Shuffled copies of labels, for controls.

    Args:
        labels: Booleans, [n].
        count: How many copies.
        seed: Of the random numbers.

    Returns:
        Booleans, [count, n].
    """
    labels = np.asarray(labels, bool)
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(labels) for _ in range(count)], bool).reshape(count, len(labels))


def balanced_accuracy(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of the two classes' accuracies; 0.5 is chance however common either class is.

    Args:
        predictions: Booleans, [..., n].
        labels: Booleans, [n].

    Returns:
        [...], NaN where a class is missing.

    >>> float(balanced_accuracy(np.array([True, True, True, False]), np.array([True, True, False, False])))
    0.75
    """
    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return np.full(np.shape(predictions)[:-1], np.nan)
    return (predictions[..., labels].mean(-1) + (~predictions[..., ~labels]).mean(-1)) / 2


def as_label_sets(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Checks what a probe is fitted on.

    Args:
        features: [layer, n, embedding].
        labels: Booleans, or zeros and ones, [n] or [labels, n].

    Returns:
        Booleans, [labels, n].

    Raises:
        ValueError: The shapes do not fit, a feature is not finite, a label is neither 0 nor 1, or a class is missing.
    """
    given = np.asarray(labels)
    sets = np.atleast_2d(given.astype(bool))
    if np.ndim(features) != 3 or sets.ndim != 2 or features.shape[1] != sets.shape[-1] or not sets.size:
        shapes = f"features have shape {np.shape(features)} for labels of shape {given.shape}"
        raise ValueError(f"{shapes}; pass features [layer, n, embedding] and labels [n] or [labels, n]")
    if not np.isin(given, (0, 1)).all():
        raise ValueError("a probe has two classes; pass labels that are booleans, or zeros and ones")
    lonely = np.flatnonzero(sets.all(axis=1) | ~sets.any(axis=1))
    if len(lonely):
        value = bool(sets[lonely[0], 0])
        raise ValueError(f"all {sets.shape[1]} labels are {value}; a probe needs examples of both classes")
    finite = np.isfinite(features).all(axis=(1, 2))
    if not finite.all():
        layer = int(np.argmin(finite))
        raise ValueError(
            f"features of layer {layer} are not all finite; leave out the examples whose activations overflow"
        )
    return sets


def _balance(sets: np.ndarray) -> np.ndarray:
    """Weights with mean 1 that make both classes of each label set count the same, [labels, n]."""
    share = sets.mean(axis=1, keepdims=True)
    return np.where(sets, 0.5 / share, 0.5 / (1 - share))


def _products(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """[..., layer, embedding] with [layer, n, embedding] -> [..., layer, n], as one matrix product a layer."""
    flat = weights.reshape(-1, *weights.shape[-2:])
    return (flat.swapaxes(0, 1) @ features.swapaxes(1, 2)).swapaxes(0, 1).reshape(*weights.shape[:-1], -1)

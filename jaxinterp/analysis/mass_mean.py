"""Mass-mean probes: the difference of two means as a direction, at every layer at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.analysis.probes import LinearProbes, as_label_sets


def fit_mass_mean(
    features: np.ndarray, labels: np.ndarray, *, whiten: bool = False, shrinkage: float = 1e-3
) -> LinearProbes:
    r"""Reads a class off the side of the midpoint between the two classes' means (Marks and Tegmark 2023).

    The direction is $\theta = \mu_1 - \mu_0$, or $\Sigma^{-1} \theta$ with `whiten`, where $\Sigma$ is the covariance
    within the classes; the threshold is at the midpoint of the means. Unlike a trained probe, $\theta$ is not bent away
    from other features that go with the label, and it is the direction to add or remove. With `whiten` and no shrinkage
    it is Fisher's linear discriminant for equally common classes. Label sets share one factorisation a layer: $\Sigma$
    is the covariance of all examples minus a multiple of $\theta \theta^T$.

    Args:
        features: Activations, [layer, n, embedding].
        labels: Booleans, [n], or several sets of them, [labels, n]; every set needs both classes.
        whiten: Whether $\theta$ is multiplied with the inverse covariance.
        shrinkage: With `whiten`: added to every feature's variance, as a fraction of that variance; keeps the inverse
            finite where features depend on each other or outnumber the examples.

    Returns:
        Probes with weights [labels, layer, embedding], without the first axis where one set was given. The scores are
        log-odds of equally common classes with `whiten`; otherwise only their order and sign mean something.

    Raises:
        ValueError: The shapes do not fit, a label set has one class only, or `shrinkage` is negative.

    >>> x = np.array([[[0.0, 9.0], [0.0, 7.0], [2.0, 9.0], [2.0, 7.0]]])
    >>> fit_mass_mean(x, [False, False, True, True])
    LinearProbes(weights=array([[2., 0.]], dtype=float32), bias=array([-2.], dtype=float32))
    """
    sets = as_label_sets(features, labels)
    if not (shrinkage >= 0 and np.isfinite(shrinkage)):
        raise ValueError(f"shrinkage is {shrinkage}; pass a fraction of the variance, 0 or more")
    weights, bias = _fit(jnp.asarray(features, jnp.float32), sets, shrinkage, whiten=whiten)
    if not np.isfinite(weights).all():
        raise ValueError("the covariance within the classes has no inverse; pass a larger shrinkage, such as 0.01")
    drop = (0,) if np.ndim(labels) == 1 else ()
    return LinearProbes(np.asarray(weights).squeeze(axis=drop), np.asarray(bias).squeeze(axis=drop))


@partial(jax.jit, static_argnames="whiten")
def _fit(features: jax.Array, sets: jax.Array, shrinkage: float, *, whiten: bool) -> tuple[jax.Array, jax.Array]:
    share = sets.mean(axis=1)
    true, false = sets / sets.sum(axis=1, keepdims=True), ~sets / (~sets).sum(axis=1, keepdims=True)

    def one_layer(x: jax.Array) -> Any:
        mean = x.mean(axis=0)
        x = x - mean
        upper, lower = true @ x, false @ x
        difference, midpoint = upper - lower, (upper + lower) / 2 + mean
        if whiten:
            scale = jnp.std(x, axis=0)
            scale = jnp.where(scale < 1e-6 * (1 + jnp.abs(mean)), 1.0, scale)
            difference = _discriminant(x / scale, difference / scale, share, shrinkage) / scale
        return difference, -jnp.sum(difference * midpoint, axis=-1)

    weights, bias = jax.lax.map(one_layer, features)
    return weights.swapaxes(0, 1), bias.swapaxes(0, 1)


def _discriminant(x: jax.Array, difference: jax.Array, share: jax.Array, shrinkage: float) -> jax.Array:
    r"""$\Sigma^{-1} \theta$ of all label sets, [labels, embedding], from one factor (Sherman and Morrison)."""
    covariance = x.T @ x / len(x)
    factor = jax.scipy.linalg.cho_factor(covariance + shrinkage * jnp.eye(len(covariance)), lower=True)
    solved = jax.scipy.linalg.cho_solve(factor, difference.T).T
    between = share * (1 - share)
    return solved / (1 - between * jnp.sum(difference * solved, axis=-1))[:, None]

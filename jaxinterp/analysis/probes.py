"""Linear probes: what can be read off the residual stream, at every layer at once, against shuffled labels."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Probes:
    """Linear two-class probes, one per entry of the leading axes.

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
            features: [layer, n, embedding], as given to `fit`.

        Returns:
            [..., layer, n], the leading axes being those of `weights`; in nats.
        """
        rows = self.directions()
        direction = rows[..., 1, :] - rows[..., 0, :]
        threshold = (direction * self.centre).sum(-1)
        return np.einsum("...le,lne->...ln", direction, features, optimize=True) - threshold[..., None]

    def directions(self) -> np.ndarray:
        """Both directions in the residual stream's own units, [..., layer, 2, embedding]."""
        return self.weights / self.scale[:, None]

    def cosine(self) -> np.ndarray:
        """Cosine of the two directions in the residual stream, [..., layer].

        In a two-class softmax the gradients of the two rows are each other's negative, so whatever they have in
        common comes from the initial values and decays: a trained probe tends to -1, whatever the labels are. NaN where
        the features say nothing and both rows are 0.
        """
        rows = self.directions()
        norms = np.linalg.norm(rows, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(norms.min(-1) > 1e-12, (rows[..., 0, :] * rows[..., 1, :]).sum(-1) / norms.prod(-1), np.nan)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    l2: float = 1.0,
    permutations: int = 0,
    steps: int = 20,
    seed: int = 0,
) -> tuple[Probes, Probes]:
    r"""Fit a bias-free softmax probe per layer, and again on shuffled labels.

    Each probe is $p(y \mid x) = \mathrm{softmax}(W x)$ with $W \in \mathbb{R}^{2 \times d}$ on features
    standardised on the training examples: divided by their deviation, with the midpoint of the classes' means as
    the origin, so that the missing bias costs nothing however common either class is. It minimises the
    class-balanced negative log-likelihood, summed over the `n` examples, plus
    $\frac{\lambda}{2} \lVert W \rVert^2$ with $\lambda$ = `l2`, by full-batch L-BFGS from
    $W \sim N(0, 1) / \sqrt d$. All layers and permutations are one compiled program.

    Args:
        features: Activations, [layer, n, embedding].
        labels: Booleans, [n]; both classes have to occur.
        l2: Weight decay $\lambda$. scikit-learn's `LogisticRegression(C=2 / l2)` is the same problem.
        permutations: How many shuffled copies of the labels to fit as well.
        steps: L-BFGS steps.
        seed: Of the initial weights and the permutations.

    Returns:
        The probes, with weights [layer, 2, embedding], and the control, with weights
        [permutation, layer, 2, embedding].

    Raises:
        ValueError: If the labels are of one class only or their number is not that of the examples.
    """
    labels = np.asarray(labels, dtype=bool)
    if features.ndim != 3 or features.shape[1] != len(labels):
        raise ValueError(f"features have shape {features.shape} for {len(labels)} labels; pass [layer, n, embedding]")
    if labels.all() or not labels.any():
        raise ValueError(f"all {len(labels)} labels are {bool(labels[0])}; a probe needs examples of both classes")
    mean = features.mean(axis=1, dtype=np.float64)
    scale = features.std(axis=1, dtype=np.float64)
    scale = np.where(scale < 1e-6 * (1 + np.abs(mean)), 1.0, scale)
    standard = ((features - mean[:, None]) / scale[:, None]).astype(np.float32)
    rng = np.random.default_rng(seed)
    targets = np.stack([labels, *(rng.permutation(labels) for _ in range(permutations))])
    portion = targets / (2 * targets.sum(1, keepdims=True)) + ~targets / (2 * (~targets).sum(1, keepdims=True))
    midpoint = np.einsum("pn,lne->ple", portion, standard, optimize=True).astype(np.float32)
    width = features.shape[-1]
    initial = rng.normal(size=(*midpoint.shape[:2], 2, width)).astype(np.float32) / np.sqrt(width)
    weights = np.asarray(_descend_all(standard, targets, midpoint, initial, l2, steps))
    centre = mean + scale * midpoint
    return Probes(weights[0], centre[0], scale), Probes(weights[1:], centre[1:], scale)


@partial(jax.jit, static_argnames="steps")
def _descend_all(
    features: jax.Array, labels: jax.Array, midpoint: jax.Array, initial: jax.Array, l2: float, steps: int
) -> jax.Array:
    """Weights [permutation, layer, 2, embedding]; see `fit`."""
    identity = jnp.eye(features.shape[-1])
    curvature = jnp.einsum("lnd,lne->lde", features, features) / 4 + l2 / 2 * identity
    unscaled = jax.vmap(lambda factor: jax.scipy.linalg.solve_triangular(factor, identity, lower=True).T)(
        jnp.linalg.cholesky(curvature)
    )
    over_layers = jax.vmap(partial(_descend, l2=l2, steps=steps), in_axes=(0, 0, None, 0, 0))
    over_labels = jax.vmap(over_layers, in_axes=(None, None, 0, 0, 0))
    return over_labels(features @ unscaled, unscaled, labels, midpoint, initial)


def _descend(
    features: jax.Array,
    unscaled: jax.Array,
    labels: jax.Array,
    midpoint: jax.Array,
    initial: jax.Array,
    *,
    l2: float,
    steps: int,
) -> jax.Array:
    """One probe, in coordinates where the loss at zero has unit curvature.

    The rows are c - d / 2 and c + d / 2. Only d = `unscaled` u meets the data; the penalty pulls c to zero.
    """
    importance = jnp.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    sign = jnp.where(labels, -1.0, 1.0)

    def loss(parameters: Any) -> jax.Array:
        common, scaled = parameters
        difference = unscaled @ scaled
        odds = features @ scaled - midpoint @ difference
        penalty = l2 * jnp.sum(common**2) + l2 / 4 * jnp.sum(difference**2)
        return jnp.sum(importance * jax.nn.softplus(sign * odds)) + penalty

    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=8, initial_guess_strategy="one")
    solver = optax.lbfgs(linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        parameters, state = carry
        value, grad = value_and_grad(parameters, state=state)
        updates, state = solver.update(grad, state, parameters, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(parameters, updates), state), None

    start: Any = (initial.mean(axis=0), jnp.linalg.solve(unscaled, initial[1] - initial[0]))
    (best, _), _ = jax.lax.scan(step, (start, solver.init(start)), length=steps)
    common, scaled = jax.tree_util.tree_leaves(best)
    difference = unscaled @ scaled
    return jnp.stack([common - difference / 2, common + difference / 2])


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

"""Linear probes: what can be read off the residual stream, at every layer at once, against shuffled labels."""

from __future__ import annotations

import dataclasses
from functools import partial

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
        common comes from the initial values and decays: a trained probe tends to -1, whatever the labels are.
        """
        rows = self.directions()
        norms = np.linalg.norm(rows, axis=-1)
        return (rows[..., 0, :] * rows[..., 1, :]).sum(-1) / np.maximum(norms.prod(-1), 1e-30)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    l2: float = 1.0,
    permutations: int = 0,
    steps: int = 100,
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
    over_layers = jax.vmap(_descend, in_axes=(0, None, 0, 0, None, None))
    return jax.vmap(over_layers, in_axes=(None, 0, 0, 0, None, None))(features, labels, midpoint, initial, l2, steps)


def _descend(
    features: jax.Array, labels: jax.Array, midpoint: jax.Array, initial: jax.Array, l2: float, steps: int
) -> jax.Array:
    share = labels.mean()
    importance = 0.5 / jnp.where(labels, share, 1 - share)
    sign = jnp.where(labels, -1.0, 1.0)

    def loss(weights: jax.Array) -> jax.Array:
        direction = weights[1] - weights[0]
        odds = features @ direction - midpoint @ direction
        return jnp.sum(importance * jax.nn.softplus(sign * odds)) + 0.5 * l2 * jnp.sum(weights**2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (initial, solver.init(initial)), length=steps)
    return weights


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

"""Contrast-consistent search: a direction that tells true from false, found without labels, at every layer at once."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinterp.analysis.logistic import standardise


@dataclasses.dataclass(frozen=True)
class ContrastProbes:
    """Probes of pairs of opposite statements, one per layer. Which of its two answers means "true" it cannot know.

    Attributes:
        weights: In units of the standardised features, [layer, embedding].
        bias: [layer].
        centre: Means over the training pairs, of the first statements and of the second, [2, layer, embedding].
        scale: Deviations over the training pairs, [2, layer, embedding].
        losses: Loss that each start ended with, [start, layer]; the probe is the one with the lowest.
    """

    weights: np.ndarray
    bias: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    losses: np.ndarray

    def probabilities(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Probability that the first statement of each pair is the true one, up to the orientation of the probe.

        Args:
            positive: Features of the first statements, [layer, n, embedding].
            negative: Features of their opposites, [layer, n, embedding].

        Returns:
            The mean of what the two statements say about it, [layer, n].
        """
        first, second = (
            1 / (1 + np.exp(-np.clip(self._odds(side, features), -80, 80)))
            for side, features in enumerate((positive, negative))
        )
        return (first + 1 - second) / 2

    def oriented(self, positive: np.ndarray, negative: np.ndarray, labels: np.ndarray) -> ContrastProbes:
        """The probes, each turned round if that makes it right on more of some labelled pairs.

        Args:
            positive: Features of the first statements, [layer, n, embedding]; not those that it is tested on.
            negative: Features of their opposites, [layer, n, embedding].
            labels: Whether the first statement is the true one, [n].

        Returns:
            Probes whose probabilities are of the first statement being true.
        """
        right = ((self.probabilities(positive, negative) > 0.5) == np.asarray(labels, bool)).mean(axis=1)
        sign = np.where(right < 0.5, -1, 1).astype(np.float32)
        return dataclasses.replace(self, weights=sign[:, None] * self.weights, bias=sign * self.bias)

    def _odds(self, side: int, features: np.ndarray) -> np.ndarray:
        direction = self.weights / self.scale[side]
        shift = self.bias - (direction * self.centre[side]).sum(axis=1)
        return np.einsum("le,lne->ln", direction, features, optimize=True) + shift[:, None]


def fit_ccs(
    positive: np.ndarray,
    negative: np.ndarray,
    *,
    starts: int = 10,
    steps: int = 300,
    learning_rate: float = 0.02,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> ContrastProbes:
    r"""Looks for a direction that gives statements and their opposites opposite, confident answers (Burns et al. 2022).

    First and second statements are standardised apart from each other, which takes away what marks them as such. With
    $p_\pm = \sigma(w \cdot x_\pm + b)$ it minimises the mean over pairs of
    $(p_+ + p_- - 1)^2 + \min(p_+, p_-)^2$ (consistency and confidence) by AdamW on all pairs at once, from several
    random starts, and keeps the start with the lowest loss: labels play no part, not even in that choice. Layers go one
    after the other, starts together, in one program.

    Args:
        positive: Features of the first statements, [layer, n, embedding].
        negative: Features of their opposites in the same order, [layer, n, embedding].
        starts: Random starts.
        steps: Steps of AdamW from each; the rate falls to 0 along a cosine.
        learning_rate: Of AdamW, at first.
        weight_decay: Of AdamW.
        seed: Of the starts.

    Returns:
        The probes; `oriented` says which answer means "true".

    Raises:
        ValueError: The shapes differ or are not [layer, n, embedding], a feature is not finite, or there is no start.
    """
    if np.ndim(positive) != 3 or np.shape(positive) != np.shape(negative) or np.shape(positive)[1] < 2:
        shapes = f"{np.shape(positive)} and {np.shape(negative)}"
        raise ValueError(
            f"the two statements' features have shapes {shapes}; pass [layer, n, embedding] for both, n > 1"
        )
    if starts < 1 or steps < 1:
        raise ValueError(f"there are {starts} starts of {steps} steps; pass at least one of each")
    for features in (positive, negative):
        if not np.isfinite(features).all():
            raise ValueError("not all features are finite; leave out the pairs whose activations overflow")
    sides = [standardise(jnp.asarray(features, jnp.float32)) for features in (positive, negative)]
    first = jax.random.normal(jax.random.key(seed), (starts, positive.shape[2])) / np.sqrt(positive.shape[2])
    weights, bias, losses = _search(
        sides[0][0], sides[1][0], first, learning_rate=learning_rate, weight_decay=weight_decay, steps=steps
    )
    centre, scale = (np.stack([np.asarray(side[part]) for side in sides]) for part in (1, 2))
    return ContrastProbes(np.asarray(weights), np.asarray(bias), centre, scale, np.asarray(losses).T)


@partial(jax.jit, static_argnames="steps")
def _search(
    positive: jax.Array,
    negative: jax.Array,
    first: jax.Array,
    *,
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Best weights [layer, embedding], bias [layer] and every start's loss [layer, start]."""
    solver = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay)

    def one_layer(pairs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        def loss(parameters: Any) -> jax.Array:
            weights, bias = parameters
            above, below = (jax.nn.sigmoid(side @ weights + bias) for side in pairs)
            return jnp.mean((above + below - 1) ** 2 + jnp.minimum(above, below) ** 2)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            parameters, state = carry
            updates, state = solver.update(jax.grad(loss)(parameters), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        def descend(weights: jax.Array) -> tuple[Any, jax.Array]:
            start = weights, jnp.float32(0)
            (parameters, _), _ = jax.lax.scan(step, (start, solver.init(start)), length=steps)
            return parameters, loss(parameters)

        (weights, bias), losses = jax.vmap(descend)(first)
        best = jnp.argmin(losses)
        return weights[best], bias[best], losses

    return jax.lax.map(one_layer, (positive, negative))

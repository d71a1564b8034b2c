"""Group relative policy optimisation: a response is reinforced by how much better it is than its siblings.

Several responses are drawn to each prompt. The advantage of a response is its reward, standardised within its group:
no second network has to guess what a prompt is worth. A token whose probability moves out of a trust region is clipped,
and a small divergence from the model of the start keeps the language.

google-tunix has a learner for this. It is not used: it requires transformers, TensorFlow data sets, sentencepiece and
numba at run time, and a decoder and a tokenizer of its own form, while the arithmetic is the few lines below.

References:
    Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", 2024.
    Schulman, "Approximating KL Divergence", 2020 (the estimator k3).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxinterp.models.nnx import Decoder


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "mask", "lengths", "old", "advantages"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Experience:
    """Responses and what they were worth.

    Attributes:
        tokens: Prompts, padded on the left, and the responses behind them, int `[row, prompt + new]`.
        mask: Which of them are tokens, bool `[row, prompt + new]`.
        lengths: Tokens of each response, int `[row]`.
        old: Log-probability of each response token when it was drawn, float `[row, new]`.
        advantages: Of each response, float `[row]`.
    """

    tokens: jax.Array | np.ndarray
    mask: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    old: jax.Array | np.ndarray
    advantages: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How experience becomes a loss."""

    clip: float = 0.2
    """How far the ratio of new to old probability may leave 1 and still be rewarded for it."""
    kl: float = 0.001
    """Weight of the divergence from the model of the start, in reward per nat."""
    temperature: float = 1.0
    """At which the responses were drawn."""


def advantages(rewards: np.ndarray) -> np.ndarray:
    """What each response is worth among its siblings.

    Args:
        rewards: Float `[group, sample]`.

    Returns:
        `(reward - mean) / (std + 1e-6)` within each group, `std` being the root of the mean squared distance; exactly 0
        in a group whose rewards are all equal.

    >>> advantages(np.array([[1.0, 0.0, 0.0, 1.0]])).round(3).tolist()
    [[1.0, -1.0, -1.0, 1.0]]
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    standardised = centred / (rewards.std(axis=1, keepdims=True) + 1e-6)
    return np.where(np.ptp(rewards, axis=1, keepdims=True) == 0, 0.0, standardised)


def token_losses(
    new: jax.Array, old: jax.Array, reference: jax.Array, advantage: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Loss of each token.

    With the ratio $r = e^{new - old}$ and $d = reference - new$ it is
    $-\min(r A, \mathrm{clip}(r, 1 - c, 1 + c) A) + \beta (e^d - d - 1)$.

    Args:
        new: Log-probability of the tokens now, in nats, `[row, seq]`.
        old: When they were drawn.
        reference: Under the model of the start.
        advantage: `A` of each row, `[row]`.
        rule: `c` = `clip` and `beta` = `kl`.

    Returns:
        Loss, divergence in nats (the estimator k3, never negative), and whether the ratio was clipped, each
        `[row, seq]`.
    """
    ratio = jnp.exp(new - old)
    weight = advantage[:, None]
    free, held = ratio * weight, jnp.clip(ratio, 1 - rule.clip, 1 + rule.clip) * weight
    distance = reference - new
    divergence = jnp.exp(distance) - distance - 1
    return rule.kl * divergence - jnp.minimum(free, held), divergence, held < free


def log_probabilities(decoder: Decoder, tokens: jax.Array, mask: jax.Array, new: int, temperature: float) -> jax.Array:
    """How probable the last tokens of some texts are.

    Args:
        decoder: The decoder.
        tokens: Ids, int `[row, seq]`.
        mask: Which of them are tokens, bool `[row, seq]`.
        new: How many tokens at the end are asked about.
        temperature: Of the drawing.

    Returns:
        Log-probabilities in nats, float32 `[row, new]`.
    """
    hidden = decoder.hidden(tokens[:, :-1], mask[:, :-1])[:, -new:]
    return -optax.softmax_cross_entropy_with_integer_labels(decoder.unembed(hidden) / temperature, tokens[:, -new:])


@functools.partial(
    jax.jit, static_argnames=("graph", "optimiser", "rule", "rows"), donate_argnames=("weights", "state")
)
def update(
    graph: Any,
    weights: Any,
    state: Any,
    reference: Any,
    experience: Experience,
    *,
    optimiser: optax.GradientTransformation,
    rule: Rule,
    rows: int,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One step of the optimiser on the mean loss of all response tokens.

    Args:
        graph: Of the decoder, from `nnx.split`.
        weights: Of the decoder; given up.
        state: Of the optimiser; given up.
        reference: Weights of the model of the start.
        experience: Responses.
        optimiser: From gradients to steps.
        rule: How experience becomes a loss.
        rows: Responses in one forward and backward pass; divides their number.

    Returns:
        The new weights, the optimiser's new state, and `loss`, `kl` (nats per token), `clipped` (share of tokens) and
        `gradient_norm` (before any clipping).
    """
    new = experience.old.shape[1]
    total = jnp.sum(experience.lengths)
    parts = jax.tree.map(lambda array: jnp.reshape(array, (-1, rows, *array.shape[1:])), experience)

    def sums(now: Any, part: Experience) -> tuple[jax.Array, dict[str, jax.Array]]:
        tokens, mask = jnp.asarray(part.tokens), jnp.asarray(part.mask)
        scored = log_probabilities(nnx.merge(graph, now), tokens, mask, new, rule.temperature)
        before = log_probabilities(nnx.merge(graph, reference), tokens, mask, new, rule.temperature)
        written = jnp.arange(new) < part.lengths[:, None]
        loss, kl, clipped = token_losses(
            jnp.where(written, scored, 0.0),
            jnp.where(written, part.old, 0.0),
            jnp.where(written, before, 0.0),
            jnp.asarray(part.advantages),
            rule,
        )
        mean = {
            name: jnp.sum(jnp.where(written, each, 0)) / total
            for name, each in (("loss", loss), ("kl", kl), ("clipped", clipped))
        }
        return mean["loss"], mean

    def accumulate(sofar: Any, part: Experience) -> tuple[Any, None]:
        (_, means), gradient = jax.value_and_grad(sums, has_aux=True)(weights, part)
        return jax.tree.map(jnp.add, sofar, (gradient, means)), None

    zero = jax.tree.map(jnp.zeros_like, weights), {name: jnp.float32(0) for name in ("loss", "kl", "clipped")}
    (gradient, means), _ = jax.lax.scan(accumulate, zero, parts)
    updates, state = optimiser.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, means | {"gradient_norm": optax.tree.norm(gradient)}

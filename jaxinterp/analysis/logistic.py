"""Many penalised logistic regressions on the same examples, as one program that stops when each has converged."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_MEMORY = 10
"""Past steps that shape the next one."""
_SLOPE = 0.05
"""A line search ends when the slope is this fraction of what it was."""


class Minimum(NamedTuple):
    """Where the solver ended, in units of the standardised features.

    Attributes:
        weights: [penalty, labels, layer, embedding].
        bias: [penalty, labels, layer]; 0 in a problem without one.
        gradient: Largest entry of the gradient of the loss per example, [penalty, labels, layer].
        iterations: Steps made, int [penalty, labels, layer].
    """

    weights: jax.Array
    bias: jax.Array
    gradient: jax.Array
    iterations: jax.Array


class _Problem(NamedTuple):
    """One layer, one penalty, one set of labels, with the curvature bound that all label sets share, as `inverse`."""

    features: jax.Array
    sign: jax.Array
    importance: jax.Array
    offset: jax.Array
    penalty: jax.Array
    inverse: jax.Array
    bias_step: jax.Array


class _State(NamedTuple):
    """Between two steps: `slant` is the gradient times the inverse curvature bound."""

    weights: jax.Array
    bias: jax.Array
    odds: jax.Array
    gradient: jax.Array
    slant: jax.Array
    moves: jax.Array
    changes: jax.Array
    slants: jax.Array
    iterations: jax.Array


@jax.jit
def standardise(features: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centres and scales the features of each layer.

    Args:
        features: [layer, n, embedding].

    Returns:
        Features of mean 0 and deviation 1, [layer, n, embedding]; their mean and deviation, [layer, embedding]. The
        deviation of a feature that does not vary counts as 1.
    """
    mean = features.mean(axis=1)
    centred = features - mean[:, None]
    scale = jnp.sqrt(jnp.mean(centred**2, axis=1))
    scale = jnp.where(scale < 1e-6 * (1 + jnp.abs(mean)), 1.0, scale)
    return centred / scale[:, None], mean, scale


@partial(jax.jit, static_argnames="with_bias")
def minimise(
    features: jax.Array,
    labels: jax.Array,
    importance: jax.Array,
    penalty: jax.Array,
    offset: jax.Array | None = None,
    *,
    with_bias: bool,
    tolerance: float,
    steps: int,
) -> Minimum:
    r"""Minimises $\sum_i a_i \log(1 + e^{-s_i z_i}) + \frac12 \sum_j \lambda_j w_j^2$, $z_i = (x_i - m) \cdot w + b$.

    A weighted Gram matrix is never more than a quarter of the plain one (Böhning and Lindsay 1988), which holds for
    every set of labels: it is factored once per layer and penalty, and L-BFGS starts from its inverse. As odds are
    linear in the step, the line search costs no pass over the features: a step takes two, one for the direction's
    odds and one for the gradient. Layers go one after the other, so that a layer stays in the processor's cache; label
    sets go together, as one matrix product.

    Args:
        features: $x$, of mean 0, [layer, n, embedding].
        labels: Whether $s_i$ is 1 or -1, bool [labels, n].
        importance: $a$, of mean about 1, [labels, n].
        penalty: $\lambda > 0$, [penalty, layer, embedding].
        offset: $m$, [labels, layer, embedding]; 0 if not given.
        with_bias: Whether there is a $b$.
        tolerance: Ends when no entry of the gradient of the loss, divided by n, is larger.
        steps: Ends after as many steps anyhow.

    Returns:
        The minimum. Its gradient is evaluated afresh at the end.
    """
    if offset is None:
        offset = jnp.zeros((len(labels), features.shape[0], features.shape[-1]))
    sign = jnp.where(labels, 1.0, -1.0)

    def one_layer(layer: Any) -> Minimum:
        x, offsets, penalties = layer
        gram = _gram(x) / 4

        def one_penalty(strength: jax.Array) -> Minimum:
            bias_step = jnp.float32(4 / len(x) if with_bias else 0)
            inverse = _inverse(gram, strength)

            def one_set(signs: jax.Array, weight: jax.Array, middle: jax.Array) -> Minimum:
                problem = _Problem(x, signs, weight, middle, strength, inverse, bias_step)
                return _descend(problem, tolerance=tolerance, steps=steps)

            return jax.vmap(one_set)(sign, importance, offsets)

        return jax.lax.map(one_penalty, penalties)

    found = jax.lax.map(one_layer, (features, offset.swapaxes(0, 1), penalty.swapaxes(0, 1)))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), found)


def _gram(x: jax.Array) -> jax.Array:
    """Products of all pairs of columns; one of the two corners off the diagonal mirrors the other."""
    left, right = jnp.split(x, [x.shape[1] // 2], axis=1)
    corner = left.T @ right
    return jnp.block([[left.T @ left, corner], [corner.T, right.T @ right]])


def _inverse(gram: jax.Array, penalty: jax.Array) -> jax.Array:
    """Inverse lower factor of the curvature bound; what keeps it positive in float32 changes the way, not the end."""
    least = 1e-6 * jnp.trace(gram)
    factor = jnp.linalg.cholesky(gram + jnp.diag(jnp.maximum(penalty, least)))
    return jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(gram)), lower=True)


def _odds(problem: _Problem, weights: jax.Array, bias: jax.Array) -> jax.Array:
    return problem.features @ weights + (bias - problem.offset @ weights)


def _gradient(problem: _Problem, weights: jax.Array, odds: jax.Array) -> jax.Array:
    """With respect to the weights and, last, the bias: [embedding + 1]."""
    residual = -problem.sign * problem.importance * jax.nn.sigmoid(-problem.sign * odds)
    total = residual.sum()
    by_weight = residual @ problem.features - total * problem.offset + problem.penalty * weights
    return jnp.append(by_weight, jnp.where(problem.bias_step > 0, total, 0.0))


def _precondition(problem: _Problem, gradient: jax.Array) -> jax.Array:
    return jnp.append((problem.inverse @ gradient[:-1]) @ problem.inverse, gradient[-1] * problem.bias_step)


def _descend(problem: _Problem, *, tolerance: float, steps: int) -> Minimum:
    width, n = len(problem.penalty), len(problem.sign)
    limit = tolerance * n
    past = jnp.zeros((_MEMORY, width + 1))
    zero = jnp.zeros(width)
    gradient = _gradient(problem, zero, jnp.zeros(n))
    start = _State(
        zero, jnp.float32(0), jnp.zeros(n), gradient, _precondition(problem, gradient), past, past, past, jnp.int32(0)
    )

    def unfinished(state: _State) -> jax.Array:
        return (jnp.max(jnp.abs(state.gradient)) > limit) & (state.iterations < steps)

    end = jax.lax.while_loop(unfinished, partial(_step, problem), start)
    gradient = _gradient(problem, end.weights, _odds(problem, end.weights, end.bias))
    return Minimum(end.weights, end.bias, jnp.max(jnp.abs(gradient)) / n, end.iterations)


def _step(problem: _Problem, state: _State) -> _State:
    direction = _direction(state)
    direction = jnp.where(direction @ state.gradient < 0, direction, -state.slant)
    rise = _odds(problem, direction[:-1], direction[-1])
    length = _search(problem, state, direction, rise)
    move = length * direction
    weights, bias = state.weights + move[:-1], state.bias + move[-1]
    odds = state.odds + length * rise
    gradient = _gradient(problem, weights, odds)
    slant = _precondition(problem, gradient)
    change = gradient - state.gradient
    return _State(
        weights,
        bias,
        odds,
        gradient,
        slant,
        _push(state.moves, move),
        _push(state.changes, change),
        _push(state.slants, slant - state.slant),
        state.iterations + 1,
    )


def _push(past: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.concatenate([past[1:], new[None]])


def _direction(state: _State) -> jax.Array:
    """Minus the gradient times the L-BFGS inverse, in the compact form of Byrd, Nocedal and Schnabel (1994).

    What the initial inverse makes of past changes is in `slants`, so it is not applied again. Slots that are empty,
    or whose product rounding has made negative, count as nothing.
    """
    products = jnp.sum(state.moves * state.changes, axis=1)
    holds = products > 0
    moves, changes, slants = (jnp.where(holds[:, None], past, 0) for past in (state.moves, state.changes, state.slants))
    bent = changes[-1] @ slants[-1]
    scale = jnp.where(bent > 0, products[-1] / jnp.where(bent > 0, bent, 1), 1)
    upper = jnp.triu(moves @ changes.T) + jnp.diag(jnp.where(holds, 0.0, 1.0))
    first = jax.scipy.linalg.solve_triangular(upper, moves @ state.gradient)
    curved = jnp.where(holds, products, 0) * first + scale * (changes @ (slants.T @ first - state.slant))
    second = jax.scipy.linalg.solve_triangular(upper, curved, trans=1)
    return scale * (slants.T @ first - state.slant) - moves.T @ second


def _search(problem: _Problem, state: _State, direction: jax.Array, rise: jax.Array) -> jax.Array:
    """Step length by Newton's method on the slope, which is increasing, kept between the lengths seen to bracket 0."""
    linear = (problem.penalty * state.weights) @ direction[:-1]
    quadratic = (problem.penalty * direction[:-1]) @ direction[:-1]

    def slopes(length: jax.Array) -> tuple[jax.Array, jax.Array]:
        wrong = jax.nn.sigmoid(-problem.sign * (state.odds + length * rise))
        slope = -(problem.sign * problem.importance * wrong) @ rise + linear + length * quadratic
        return slope, (problem.importance * wrong * (1 - wrong)) @ rise**2 + quadratic

    first = jnp.abs(slopes(jnp.float32(0))[0])

    def unfinished(carry: Any) -> jax.Array:
        _, _, _, slope, tries = carry
        return (jnp.abs(slope) > _SLOPE * first) & (tries < 20)

    def refine(carry: Any) -> Any:
        length, low, high, _, tries = carry
        slope, bend = slopes(length)
        low, high = jnp.where(slope < 0, length, low), jnp.where(slope < 0, high, length)
        newton = length - slope / bend
        far = jnp.where(jnp.isinf(high), 8 * length, (low + high) / 2)
        inside = (newton > low) & (newton < jnp.minimum(high, 8 * length))
        done = jnp.abs(slope) <= _SLOPE * first
        return jnp.where(done, length, jnp.where(inside, newton, far)), low, high, slope, tries + 1

    start = (jnp.float32(1), jnp.float32(0), jnp.float32(jnp.inf), jnp.float32(jnp.inf), jnp.int32(0))
    return jax.lax.while_loop(unfinished, refine, start)[0]

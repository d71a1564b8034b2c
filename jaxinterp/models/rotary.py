"""Rotary positions, as plain functions on arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.models.architecture import Rope


def frequencies(rope: Rope) -> np.ndarray:
    r"""Angle by which each rotated pair of dimensions turns per position.

    Pair $i$ turns by $\theta^{-2i/d}$ with $\theta$ = `rope.theta` and $d$ = `rope.rotary`. Under `"linear"` scaling
    all of them are divided by `rope.factor`; under `"llama3"` only those whose wavelength exceeds
    `rope.original_context / rope.low_frequency_factor` are, those below
    `rope.original_context / rope.high_frequency_factor` are kept, and the ones between are interpolated.

    Args:
        rope: Rotary positions of one block.

    Returns:
        Frequencies in radians per position, float32 `[rotary // 2]`, fastest first.

    Examples:
        >>> frequencies(Rope(theta=100.0, rotary=4)).tolist()
        [1.0, 0.10000000149011612]
    """
    exponents = np.arange(0, rope.rotary, 2, dtype=np.float32) / np.float32(rope.rotary)
    # The power is rounded once, to float32, because that is what the checkpoints were trained and are compared with.
    powers = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    turns = np.float32(1.0) / powers
    if rope.scaling == "linear":
        return turns / np.float32(rope.factor)
    if rope.scaling == "llama3":
        return _llama3(turns, rope)
    return turns


def _llama3(turns: np.ndarray, rope: Rope) -> np.ndarray:
    wavelengths = np.float32(2 * np.pi) / turns
    longest = rope.original_context / rope.low_frequency_factor
    shortest = rope.original_context / rope.high_frequency_factor
    slowed = turns / np.float32(rope.factor)
    span = np.float32(rope.high_frequency_factor - rope.low_frequency_factor)
    share = (np.float32(rope.original_context) / wavelengths - np.float32(rope.low_frequency_factor)) / span
    mixed = (1 - share) * turns / np.float32(rope.factor) + share * turns
    return np.where(wavelengths > longest, slowed, np.where(wavelengths < shortest, turns, mixed))


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array | np.ndarray) -> jax.Array:
    r"""Turns the first dimensions of every vector by angles proportional to its position.

    With $h$ = `len(frequencies)` and $\phi_i$ = `positions * frequencies[i]`, dimensions $i$ and $i + h$ become
    $x_i \cos\phi_i - x_{i+h} \sin\phi_i$ and $x_{i+h} \cos\phi_i + x_i \sin\phi_i$. Dimensions from $2h$ on pass
    unchanged. Angles and products are float32.

    Args:
        x: Vectors, `[..., projection]`.
        positions: Position of each vector in its text, in tokens; broadcasts against the leading axes of `x`.
        frequencies: Radians per position, `[rotary // 2]`.

    Returns:
        The rotated vectors, shape and dtype of `x`.
    """
    half = frequencies.shape[-1]
    angles = jnp.asarray(positions, jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    rotated = x[..., : 2 * half].astype(jnp.float32)
    first, second = rotated[..., :half], rotated[..., half:]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)

"""The block of the Flax NNX decoder as functions of its weights, for a whole text and for a text that grows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.models import attention
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.attention import not_kept
from jaxinterp.models.blocks import ACTIVATIONS
from jaxinterp.models.rotary import frequencies, rotate

Kept = TypeVar("Kept")
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]]
"""Queries `[batch, seq, head, projection]`, keys and values `[batch, seq, kv_head, projection]` -> what the heads read
`[batch, seq, head, projection]`, and anything to keep."""


def layer_constants(architecture: Architecture) -> dict[str, np.ndarray]:
    """What blocks differ in beside weights: rotary `frequencies` and attention `window`, each `[layer, ...]`."""
    constants = {}
    if len(set(architecture.ropes)) > 1:
        constants["frequencies"] = np.stack([frequencies(rope) for rope in architecture.ropes])
    if any(window is not None for window in architecture.windows):
        everything = np.iinfo(np.int32).max
        constants["window"] = np.array([w or everything for w in architecture.windows], np.int32)
    return constants


def block(
    architecture: Architecture,
    layer: Mapping[str, jax.Array],
    x: jax.Array,
    positions: jax.Array,
    mix: Mix[Kept],
) -> tuple[jax.Array, Kept]:
    """One block.

    Args:
        architecture: What the decoder is made of.
        layer: The block's weights and constants, without a layer axis.
        x: Residual stream, `[batch, seq, embedding]`.
        positions: Position of each token in its text, `[batch, seq]`.
        mix: How heads read: `attend` for a whole text, or something that remembers.

    Returns:
        The residual stream behind the block, and what `mix` keeps.
    """
    z, kept = mix(*_queries_keys_values(architecture, layer, norm(architecture, layer, "ln_attn", x), positions))
    attended = _biased(_product(layer["W_O"], z.reshape(*z.shape[:2], -1)), layer, "b_O")
    if architecture.post_norms:
        attended = norm(architecture, layer, "ln_attn_post", attended)
    middle = x + attended
    read = x if architecture.parallel else middle
    mixed = _mlp(architecture, layer, norm(architecture, layer, "ln_mlp", read))
    if architecture.post_norms:
        mixed = norm(architecture, layer, "ln_mlp_post", mixed)
    return middle + mixed, kept


def attend(architecture: Architecture, q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """What heads read in a text; see `jaxinterp.models.attention.attend`."""
    return attention.attend(q, k, v, seen, scale=architecture.attention_scale, softcap=architecture.attention_softcap)


def _queries_keys_values(
    architecture: Architecture, layer: Mapping[str, jax.Array], x: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    heads = (*x.shape[:2], -1, architecture.projection)
    q, k, v = (_biased(_product(layer[f"W_{c}"], x).reshape(heads), layer, f"b_{c}") for c in "QKV")
    if architecture.qk_norm:
        q = _rms(architecture, q, layer["q_norm.w"])
        k = _rms(architecture, k, layer["k_norm.w"])
    if architecture.ropes:
        turns = layer["frequencies"] if "frequencies" in layer else frequencies(architecture.ropes[0])
        q, k = (rotate(vectors, positions[..., None], turns) for vectors in (q, k))
    return q, k, v


def _mlp(architecture: Architecture, layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    activate = ACTIVATIONS[architecture.activation]
    units = _biased(_product(layer["W_in"], x), layer, "b_in")
    if architecture.gated:
        gates = _biased(_product(layer["W_gate"], x), layer, "b_gate")
        units = not_kept(lambda units, gates: units * activate(gates))(units, gates)
    else:
        units = activate(units)
    return _biased(_product(layer["W_out"], units), layer, "b_out")


def _product(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A matrix times vectors, both taken as flat: with more axes XLA turns weights and gradients around on the CPU."""
    flat = jnp.einsum("ni,oi->no", x.reshape(-1, x.shape[-1]), weight.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], -1)


def _biased(x: jax.Array, layer: Mapping[str, jax.Array], name: str) -> jax.Array:
    return x + layer[name] if name in layer else x


def norm(architecture: Architecture, weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """The norm `name` of some weights, computed in float32, in the dtype of `x`."""
    if architecture.norm == "rms":
        return not_kept(functools.partial(_rms, architecture))(x, weights[f"{name}.w"])
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + architecture.norm_eps)
    return (wide * (architecture.norm_offset + weights[f"{name}.w"]) + weights[f"{name}.b"]).astype(x.dtype)


def _rms(architecture: Architecture, x: jax.Array, weight: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + architecture.norm_eps)
    return (wide * (architecture.norm_offset + weight.astype(jnp.float32))).astype(x.dtype)

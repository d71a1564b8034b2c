"""The block of the Flax NNX decoder as functions of its weights, for a whole text and for a text that grows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.blocks import ACTIVATIONS
from jaxinterp.models.rotary import frequencies, rotate

_PART = 64
"""Fewest queries that are worth to be read on their own."""
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
    """What heads read in a text.

    Args:
        architecture: What the decoder is made of.
        q: Queries, `[batch, seq, head, projection]`.
        k: Keys, `[batch, seq, kv_head, projection]`.
        v: Values, the same.
        seen: Which keys a query sees, bool `[batch, seq, seq]`; never a later one.

    Returns:
        Values weighted by attention, `[batch, seq, head, projection]`.
    """
    texts, seq, _, projection = q.shape
    queries = q.reshape(texts, seq, architecture.kv_heads, -1, projection).transpose(0, 2, 3, 1, 4)
    keys, values = (vectors.transpose(0, 2, 1, 3) for vectors in (k, v))

    def read(queries: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
        flat = queries.reshape(-1, projection)
        products = jnp.einsum("np,tp->nt", flat, keys, preferred_element_type=jnp.float32)
        pattern = attention_pattern(architecture, products.reshape(-1, *seen.shape), seen).astype(values.dtype)
        return jnp.einsum("nt,tp->np", pattern.reshape(products.shape), values).reshape(queries.shape)

    at_once = jax.vmap(jax.vmap(read, in_axes=(0, 0, 0, None)))
    z = jax.lax.platform_dependent(queries, keys, values, seen, cpu=_in_turn(read), default=at_once)
    return z.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _in_turn(read: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Heads that share keys, one text after the other, so that scores stay in a processor's cache.

    No query sees a later key: the first quarter of the queries is shown the first quarter of the keys, and so on. A
    gradient computes scores again rather than fetch them from memory.
    """

    def text(given: tuple[jax.Array, ...]) -> jax.Array:
        *vectors, seen = given
        seq = seen.shape[0]
        size = max(_PART, -(-seq // 4))
        ends = [(start, min(start + size, seq)) for start in range(0, seq, size)]

        @_not_kept
        def again(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
            parts = [
                read(queries[:, start:end], keys[:end], values[:end], seen[start:end, :end]) for start, end in ends
            ]
            return jnp.concatenate(parts, axis=1)

        return jax.lax.map(lambda group: again(*group), tuple(vectors))

    return lambda *given: jax.lax.map(text, given)


def attention_pattern(architecture: Architecture, products: jax.Array, seen: jax.Array) -> jax.Array:
    """Attention of queries to keys, the last axis, from their products; `seen` broadcasts against them."""
    scores = softcap(products * architecture.attention_scale, architecture.attention_softcap)
    # A finite floor, so that a padded query, which sees nothing, has no NaN to leak through gradients.
    return jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min), axis=-1)


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
        units = _not_kept(lambda units, gates: units * activate(gates))(units, gates)
    else:
        units = activate(units)
    return _biased(_product(layer["W_out"], units), layer, "b_out")


def _product(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A matrix times vectors, both taken as flat: with more axes XLA turns weights and gradients around on the CPU."""
    flat = jnp.einsum("ni,oi->no", x.reshape(-1, x.shape[-1]), weight.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], -1)


def _not_kept(cheap: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function, whose intermediate values a gradient computes again: fetching them would take longer."""
    return jax.checkpoint(cheap, prevent_cse=False)


def _biased(x: jax.Array, layer: Mapping[str, jax.Array], name: str) -> jax.Array:
    return x + layer[name] if name in layer else x


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`, or `x` where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def norm(architecture: Architecture, weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """The norm `name` of some weights, computed in float32, in the dtype of `x`."""
    if architecture.norm == "rms":
        return _not_kept(functools.partial(_rms, architecture))(x, weights[f"{name}.w"])
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + architecture.norm_eps)
    return (wide * (architecture.norm_offset + weights[f"{name}.w"]) + weights[f"{name}.b"]).astype(x.dtype)


def _rms(architecture: Architecture, x: jax.Array, weight: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + architecture.norm_eps)
    return (wide * (architecture.norm_offset + weight.astype(jnp.float32))).astype(x.dtype)

"""The Flax NNX decoder on a text that grows by one token a step: keys and values are kept, nothing is read twice."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.attention import attention_pattern
from jaxinterp.models.masks import positions_in_text
from jaxinterp.models.nnx import Decoder
from jaxinterp.models.nnx_blocks import attend, block


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "mask", "filled"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the blocks keep of a batch of texts.

    Attributes:
        keys: Of each block, `[batch, kv_head, slot, projection]`: the order in which a query reads them.
        values: The same.
        mask: Whether a slot holds a token, bool `[batch, slot]`.
        filled: How many slots are used, padding included, int32 `[]`.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array
    filled: jax.Array


def separate_layers(decoder: Decoder) -> tuple[dict[str, jax.Array], ...]:
    """Weights and constants of each block by itself.

    A loop over tokens takes these: cut out of the stacked weights within the loop they would be copied at every step.

    Args:
        decoder: Any decoder.

    Returns:
        For each block what `decoder.layers()` has, without the layer axis.
    """
    layers = decoder.layers()
    return tuple({name: array[layer] for name, array in layers.items()} for layer in range(decoder.architecture.layers))


def read_prompt(decoder: Decoder, tokens: jax.Array, mask: jax.Array, slots: int) -> tuple[jax.Array, Memory]:
    """Reads the beginning of texts.

    Args:
        decoder: The decoder.
        tokens: Ids, int `[batch, seq]`, texts padded on the left.
        mask: Whether a slot holds a token, bool `[batch, seq]`.
        slots: Tokens that the memory has room for, those of the prompt and padding included.

    Returns:
        Logits of the next token, float32 `[batch, vocabulary]`, and the memory.

    Raises:
        ValueError: The positions are learned and fewer than `slots`.
    """
    architecture = decoder.architecture
    if architecture.learned_positions and slots > architecture.context:
        raise ValueError(f"{slots} tokens exceed the {architecture.context} learned positions; shorten the text")
    mask = mask.astype(bool)
    positions = positions_in_text(mask)
    places = jnp.arange(tokens.shape[1])
    distance = places[:, None] - places[None, :]

    def step(x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        near = (distance >= 0) & (distance < layer["window"]) if "window" in layer else distance >= 0
        seen = near & mask[:, None, :]
        return block(architecture, layer, x, positions, lambda q, k, v: (attend(architecture, q, k, v, seen), (k, v)))

    x, stacked = jax.lax.scan(step, decoder.embed(tokens, positions), decoder.layers())
    room = slots - tokens.shape[1]
    keys, values = (
        tuple(jnp.pad(array.swapaxes(1, 2), ((0, 0), (0, 0), (0, room), (0, 0))) for array in each) for each in stacked
    )
    memory = Memory(keys, values, jnp.pad(mask, ((0, 0), (0, room))), jnp.int32(tokens.shape[1]))
    return decoder.unembed(decoder.final_norm(x[:, -1])), memory


def read_next(
    decoder: Decoder, layers: tuple[dict[str, jax.Array], ...], memory: Memory, tokens: jax.Array
) -> tuple[jax.Array, Memory]:
    """Reads one more token of every text.

    Args:
        decoder: The decoder.
        layers: Its blocks, from `separate_layers`.
        memory: Of the texts so far, with a free slot.
        tokens: The next token of each text, int `[batch]`.

    Returns:
        Logits of the token after it, float32 `[batch, vocabulary]`, and the memory with it.
    """
    architecture, slot = decoder.architecture, memory.filled
    positions = jnp.sum(memory.mask, axis=1, dtype=jnp.int32)[:, None]
    mask = jax.lax.dynamic_update_slice_in_dim(memory.mask, jnp.ones((len(tokens), 1), bool), slot, axis=1)
    distance = slot - jnp.arange(mask.shape[1])
    x = decoder.embed(tokens[:, None], positions)
    kept = []
    for layer, keys, values in zip(layers, memory.keys, memory.values, strict=True):
        seen = mask & (distance < layer["window"]) if "window" in layer else mask
        x, pair = block(
            architecture,
            layer,
            x,
            positions,
            lambda q, k, v, keys=keys, values=values, seen=seen: _attend_to_kept(
                architecture, q, _with(keys, k, slot), _with(values, v, slot), seen
            ),
        )
        kept.append(pair)
    keys, values = zip(*kept, strict=True)
    return decoder.unembed(decoder.final_norm(x[:, 0])), Memory(keys, values, mask, slot + 1)


def _with(kept: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(kept, new.swapaxes(1, 2), slot, axis=2)


def _attend_to_kept(
    architecture: Architecture, q: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    grouped = q.reshape(len(q), architecture.kv_heads, -1, architecture.projection)
    products = jnp.einsum("bgqp,bgtp->bgqt", grouped, keys, preferred_element_type=jnp.float32)
    pattern = attention_pattern(
        products, seen[:, None, None], architecture.attention_scale, architecture.attention_softcap
    ).astype(values.dtype)
    return jnp.einsum("bgqt,bgtp->bgqp", pattern, values).reshape(q.shape), (keys, values)

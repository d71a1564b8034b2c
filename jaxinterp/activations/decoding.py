"""A text that grows by one token at a time, and what a model keeps of it: keys, values and the next token's logits."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.state import remember
from jaxinterp.models.decoder import side_inputs


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mask", "prompt_length", "filled"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Text:
    """How far a batch of texts has been written.

    Attributes:
        mask: Which slots hold tokens, boolean [batch, slot]; there is a slot for each token the texts may have.
        prompt_length: Tokens of each prompt, int [batch].
        filled: Slots that have been written to.
    """

    mask: jax.Array
    prompt_length: jax.Array
    filled: jax.Array

    @classmethod
    def of(cls, mask: jax.Array, slots: int) -> Text:
        """Prompts, padded on the left, with room for what follows."""
        seq = mask.shape[1]
        room = jnp.pad(mask, ((0, 0), (0, slots - seq)))
        return cls(room, mask.sum(axis=1, dtype=jnp.int32), jnp.asarray(seq, jnp.int32))

    def extended(self) -> Text:
        """With one more token in every row."""
        return Text(self.mask.at[:, self.filled].set(True), self.prompt_length, self.filled + 1)

    def of_rows(self, rows: jax.Array, slots: int) -> Text:
        """Some of the texts, possibly repeated, with room for so many tokens, no fewer than before."""
        room = jnp.pad(self.mask[rows], ((0, 0), (0, slots - self.mask.shape[1])))
        return Text(room, self.prompt_length[rows], self.filled)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["memory", "logits"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Reading:
    """What a model keeps of a text that it has read.

    Attributes:
        memory: State variables with the keys and values in all slots.
        logits: Of the token that follows, [batch, vocabulary].
    """

    memory: tuple[Any, ...]
    logits: jax.Array

    def of_rows(self, rows: jax.Array, slots: int) -> Reading:
        """Of some of the texts, possibly repeated, with so many slots, no fewer than before."""

        def take(kept: pz.nx.NamedArray) -> pz.nx.NamedArray:
            names = tuple(kept.named_shape)
            array = jnp.take(kept.unwrap(*names), rows, axis=names.index(axes.BATCH))
            more = [(0, slots - kept.named_shape[axes.SEQ] if name == axes.SEQ else 0) for name in names]
            return pz.nx.wrap(jnp.pad(array, more), *names)

        memory = jax.tree.map(take, self.memory, is_leaf=lambda node: isinstance(node, pz.nx.NamedArray))
        return Reading(memory, self.logits[rows])


def read_prompt(
    body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, *, slots: int, kv_heads: int, projection: int
) -> Reading:
    """Reads the prompts.

    Args:
        body: Model tree.
        tokens: Ids, padded on the left, [batch, seq].
        mask: Which of them are tokens, [batch, seq].
        slots: As many as the texts may have tokens, padding counted.
        kv_heads: Key-value heads of the model.
        projection: Width of one head.

    Returns:
        What the model keeps.
    """
    batch, seq = tokens.shape
    sizes: dict[Any, int] = {axes.BATCH: batch, axes.KV_HEAD: kv_heads, axes.SEQ: slots, axes.PROJECTION: projection}
    dtype = jax.tree_util.tree_leaves(body)[0].dtype
    reading, variables = pz.unbind_state_vars(remember(body, pz.nx.zeros(sizes, dtype), prompt=True))
    inputs = side_inputs(tokens, mask)
    inputs["read"] = pz.nx.wrap(jnp.full(batch, seq - 1), axes.BATCH)
    frozen = [variable.freeze() for variable in variables]
    output, memory = reading.stateless_call(frozen, pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), start=0, **inputs)
    return Reading(memory, output.unwrap(axes.BATCH, axes.VOCABULARY))


def read_next(body: pz.nn.Layer, memory: tuple[Any, ...], token: jax.Array, text: Text) -> Reading:
    """Reads one more token.

    Args:
        body: Model tree.
        memory: Keys and values of the tokens before it; those in its own slot are replaced.
        token: Ids, [batch].
        text: The text that ends with it.

    Returns:
        What the model keeps now.
    """
    stepping, _ = pz.unbind_state_vars(remember(body, memory[0].value, prompt=False))
    start = text.filled - 1
    inputs = side_inputs(token[:, None], text.mask, text.prompt_length, start=start)
    output, after = stepping.stateless_call(
        memory, pz.nx.wrap(token[:, None], axes.BATCH, axes.SEQ), start=start, **inputs
    )
    logits = output.unwrap(axes.BATCH, axes.SEQ, axes.VOCABULARY)[:, 0]
    return Reading(pz.nx.order_like(after, memory), logits)

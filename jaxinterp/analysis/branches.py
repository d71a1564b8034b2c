"""Attention and MLP of a block, taken apart: every receiver with an input of its own, every head's output by itself.

The layers of the model's own tree are called, so that every family's norms, rotary positions, masks and soft caps
are what they are in a plain run. What a head writes is what reaches the residual stream: behind a norm of the
attention's output (Gemma), its share under the denominator of that very run.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.state import Save
from jaxinterp.analysis.graph import EdgeGraph
from jaxinterp.models import blocks
from jaxinterp.models.low_rank import Weight, contract
from jaxinterp.sites.taps import Tap

NamedArray: TypeAlias = pz.nx.NamedArray

STREAM = (axes.BATCH, axes.SEQ, axes.EMBEDDING)


@pz.pytree_dataclass
class Given(pz.nn.Layer):
    """Returns a given array, whatever comes in."""

    value: NamedArray

    def __call__(self, _: NamedArray, /, **__: Any) -> NamedArray:
        """Returns `value`."""
        return self.value


@dataclasses.dataclass(frozen=True)
class Branch:
    """Attention or MLP of a block, with the norms around it.

    Attributes:
        norm: Residual stream -> what the core reads.
        core: The `Attention` or `MLP`.
        after: What follows before the residual stream: a norm in some families, and a tap.
    """

    norm: pz.nn.Sequential
    core: Any
    after: tuple[pz.nn.Layer, ...]

    @classmethod
    def find(cls, block: pz.nn.Layer, kind: type) -> Branch:
        """The branch of a block that holds a layer of some kind."""

        def holds(layer: Any) -> bool:
            return isinstance(layer, pz.nn.Sequential) and any(isinstance(inner, kind) for inner in layer.sublayers)

        layers = list(pz.select(block).at_subtrees_where(holds).get().sublayers)
        place = next(number for number, layer in enumerate(layers) if isinstance(layer, kind))
        return cls(pz.nn.Sequential(layers[:place]), layers[place], tuple(layers[place + 1 :]))


def normalise_stream(branch: Branch, stream: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """What the norm in front of a branch makes of a stream, [batch, seq, embedding] or [reader, ...] of those."""
    names = ("reader", *STREAM)[-stream.ndim :]
    return branch.norm(pz.nx.wrap(stream, *names), **inputs).unwrap(*names)


def split_readers(graph: EdgeGraph, streams: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What queries, keys and values read, [head or kv_head, ...] each, from [reader, ...]."""
    return streams[: graph.heads], streams[graph.heads : graph.heads + graph.kv_heads], streams[-graph.kv_heads :]


def attend(
    branch: Branch, q: jax.Array, k: jax.Array, v: jax.Array, inputs: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Attention whose heads read each its own normalised stream.

    Args:
        branch: The attention branch.
        q: What the queries read, [head, batch, seq, embedding].
        k: What the keys read, [kv_head, batch, seq, embedding].
        v: What the values read, [kv_head, batch, seq, embedding].
        inputs: Side inputs.

    Returns:
        What attention adds to the residual stream, [batch, seq, embedding], and what each head does,
        [head, batch, seq, embedding]; they differ by a constant at most.
    """
    core, z = branch.core, pz.StateVariable(_nothing())
    core = dataclasses.replace(
        core,
        query=Given(_project(core.query, pz.nx.wrap(q, axes.HEAD, *STREAM), inputs)),
        key=Given(_project(core.key, pz.nx.wrap(k, axes.KV_HEAD, *STREAM), inputs)),
        value=Given(_project(core.value, pz.nx.wrap(v, axes.KV_HEAD, *STREAM), inputs)),
        z=dataclasses.replace(core.z, edits=(*core.z.edits, Save(z, None))),
    )
    whole = core(pz.nx.wrap(q[0], *STREAM), **inputs)
    parts = contract(axes.PROJECTION, z.value, core.output)
    if core.bias is not None:
        parts = parts + core.bias.value / len(q)
    for layer in branch.after:
        if isinstance(layer, blocks.Norm):
            whole, parts = _share_norm(layer, whole, parts, inputs)
    return whole.unwrap(*STREAM), parts.unwrap(axes.HEAD, *STREAM)


def _nothing() -> NamedArray:
    return pz.nx.wrap(jnp.zeros(()))


def _project(layers: pz.nn.Layer, stream: NamedArray, inputs: dict[str, Any]) -> NamedArray:
    """Queries, keys or values of streams that already have the head axis: each head's own rows of the matrix."""
    assert isinstance(layers, pz.nn.Sequential)
    linear, *rest = layers.sublayers
    assert isinstance(linear, pz.nn.Linear)
    projected = contract(axes.EMBEDDING, stream, cast(Weight, linear.weights))
    return pz.nn.Sequential(rest)(projected, **inputs)


def _share_norm(
    norm: blocks.Norm, whole: NamedArray, parts: NamedArray, inputs: dict[str, Any]
) -> tuple[NamedArray, NamedArray]:
    """A norm of a sum, and the share of each summand under the sum's denominator."""
    kept = pz.StateVariable(_nothing())
    normed = dataclasses.replace(norm, scale=Tap("ln_scale", None, (Save(kept, None),)))(whole, **inputs)
    given = Tap("ln_scale", None, (Given(kept.value),))
    return normed, dataclasses.replace(norm, scale=given, bias=None)(parts, **inputs)


def feed(branch: Branch, stream: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """What an MLP adds to the residual stream [batch, seq, embedding] that it reads."""
    whole = pz.nn.Sequential([branch.norm, branch.core, *branch.after])
    return whole(pz.nx.wrap(stream, *STREAM), **inputs).unwrap(*STREAM)


def embed_tokens(body: blocks.Decoder, tokens: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """The residual stream entering the first block, [batch, seq, embedding]."""
    ids = pz.nx.wrap(tokens, axes.BATCH, axes.SEQ)
    return body.start(body.embedding(ids, **inputs), **inputs).unwrap(*STREAM)


def read_logits(body: blocks.Decoder, stream: jax.Array) -> jax.Array:
    """Logits [batch, vocabulary] of the last token of a stream leaving the last block, [batch, seq, embedding]."""
    normed = body.final(pz.nx.wrap(stream[:, -1], axes.BATCH, axes.EMBEDDING))
    return body.unembedding(normed, tied_table=body.embedding.table.value).unwrap(axes.BATCH, axes.VOCABULARY)

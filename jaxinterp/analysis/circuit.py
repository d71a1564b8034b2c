"""A model run by edges: each receiver reads each sender as it is in this run, or as it is in the corrupted one."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp.activations.metrics import Measure, apply_measure
from jaxinterp.activations.plan import Base
from jaxinterp.activations.run import Inputs, compiled_form
from jaxinterp.activations.stages import Texts
from jaxinterp.analysis.aligned_pairs import AlignedPairs, align_pairs, padded_length
from jaxinterp.analysis.branches import Branch, attend, embed_tokens, feed, normalise_stream, read_logits, split_readers
from jaxinterp.analysis.graph import EdgeGraph
from jaxinterp.models import blocks
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.taps import describe, edited_taps

_INSIDE = ("q", "k", "v", "attn_scores", "pattern", "z", "mlp_gate", "mlp_pre", "mlp_post")

MEMORY = 2**30
"""Bytes that all senders' outputs may take at a time; at least one pair is run whatever it takes."""

_ROWS = 128


def read_senders(base: Base, texts: Texts, *, graph: EdgeGraph) -> tuple[jax.Array, jax.Array]:
    """A plain run: last-token logits [batch, vocabulary], and what every sender writes.

    Args:
        base: The model, in stages.
        texts: The texts.
        graph: The edges.

    Returns:
        The logits, and [sender, batch, seq, embedding] up to constants that are the same in every run.
    """
    stream = _embed(base.ends, texts)
    written = [stream[None]]
    for block in base.blocks:
        stream, parts = _read_block(block, stream, texts, graph=graph)
        written.append(parts)
    return _read_logits(base.ends, stream), jnp.concatenate(written)


_read_logits = jax.jit(read_logits)


@jax.jit
def _embed(ends: blocks.Decoder, texts: Texts) -> jax.Array:
    return embed_tokens(ends, texts.tokens, texts.side_inputs(0))


@functools.partial(jax.jit, static_argnames="graph")
def _read_block(
    block: pz.nn.Layer, stream: jax.Array, texts: Texts, *, graph: EdgeGraph
) -> tuple[jax.Array, jax.Array]:
    """The stream leaving a block, and what its heads and its MLP write, [sender, batch, seq, embedding]."""
    inputs = texts.side_inputs(0)
    attention, mlp = Branch.find(block, blocks.Attention), Branch.find(block, blocks.MLP)
    normed = normalise_stream(attention, stream, inputs)
    readers = jnp.broadcast_to(normed, (graph.readers, *normed.shape))
    whole, parts = attend(attention, *split_readers(graph, readers), inputs)
    fed = feed(mlp, stream if graph.parallel else stream + whole, inputs)
    return stream + whole + fed, jnp.concatenate([parts, fed[None]])


@functools.partial(jax.jit, static_argnames="graph")
def _run_circuits(
    body: blocks.Decoder,
    tokens: jax.Array,
    valid: jax.Array,
    corrupted: jax.Array,
    lost: jax.Array,
    measure: Measure | None,
    *,
    graph: EdgeGraph,
) -> jax.Array:
    """Runs circuits that have lost edges: logits [circuit, batch, vocabulary], or measures [circuit, batch].

    Args:
        body: Model tree.
        tokens: Ids of the clean texts.
        valid: Which of them are tokens.
        corrupted: What senders write in the corrupted run, [sender, batch, seq, embedding].
        lost: [circuit, receiver, sender], 1 for edges whose sender is taken from the corrupted run, otherwise 0.
        measure: What to measure, or `None` for logits.
        graph: The edges.
    """
    inputs = side_inputs(tokens, valid)

    def run_one(lost: jax.Array) -> jax.Array:
        stream = embed_tokens(body, tokens, inputs)
        changes = corrupted[:1] - stream

        for layer, block in enumerate(body.blocks):
            attention, mlp = Branch.find(block, blocks.Attention), Branch.find(block, blocks.MLP)
            rows = graph.rows(layer)
            readers = stream + _mix(lost[rows, : len(changes)], changes)
            parts_of = split_readers(graph, normalise_stream(attention, readers, inputs))
            whole, parts = attend(attention, *parts_of, inputs)
            first, end = graph.before(layer), graph.before(layer + 1)
            changed = jnp.concatenate([changes, corrupted[first : end - 1] - parts])
            seen = graph.before_mlp(layer)
            before = stream if graph.parallel else stream + whole
            fed = feed(mlp, before + _mix(lost[rows.stop, :seen], changed[:seen]), inputs)
            stream = stream + whole + fed
            changes = jnp.concatenate([changed, corrupted[end - 1 : end] - fed])
        stream = stream.at[:, -1].add(_mix(lost[-1], changes[:, :, -1]))
        logits = read_logits(body, stream)
        return logits if measure is None else apply_measure(measure, logits)

    return jax.vmap(run_one)(lost)


def _mix(weights: jax.Array, changes: jax.Array) -> jax.Array:
    """Weighted sums over senders, [...] or [receiver, ...], of changes [sender, ...]."""
    return jnp.tensordot(weights.astype(changes.dtype), changes, axes=1)


def run_circuit(
    model: LanguageModel,
    clean: Inputs,
    corrupted: Inputs,
    edges_kept: np.ndarray,
    mask: Any = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Runs only some edges of a model on clean texts; along the others flows what the corrupted texts would send.

    Receiver `v` reads `x + sum over lost edges u -> v of (corrupted_u - current_u)`, where `x` is the stream that this
    run has built up and `current_u` what sender `u` writes in this run, which has lost edges of its own. With all edges
    kept this is the clean run, with none the corrupted one.

    The edges are numbers: another circuit compiles nothing. A pass holds the outputs of all senders about four times,
    4 x (1 + layers x (heads + 1)) x rows x seq x embedding numbers, where rows are circuits x pairs; they are chosen so
    that this stays below 1 GiB.

    Args:
        model: The model; edits inside attention and MLPs act, edits of the residual stream are refused.
        clean: Texts, lists of token ids, or ids [pair, seq].
        corrupted: The other texts, each as long as its partner.
        edges_kept: Boolean [edge], or [circuit, edge] for several; edges as `list_edges` counts them.
        mask: With ids [pair, seq]: which of them are tokens.
        batch_size: Pairs at a time; by default as many as fit.

    Returns:
        Last-token logits, float32 [pair, vocabulary] or [circuit, pair, vocabulary].

    Raises:
        ValueError: The mask has another shape, a pair differs in length, or the model has edits where no edge
            can tell them apart.

    Examples:
        >>> from jaxinterp.analysis.graph import list_edges
        >>> from jaxinterp.models.toy import toy
        >>> model = toy(num_hidden_layers=1)
        >>> run_circuit(model, [[1, 2]], [[3, 2]], np.ones(list_edges(model).height, bool)).shape
        (1, 101)
    """
    pairs = align_pairs(model, clean, corrupted, mask)
    circuits = np.asarray(edges_kept)
    single = circuits.ndim == 1
    values = measure_circuits(model, pairs, circuits[None] if single else circuits, None, batch_size)
    return values[0] if single else values


def measure_circuits(
    model: LanguageModel,
    pairs: AlignedPairs,
    circuits: np.ndarray,
    measure: Measure | None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Runs several circuits on all pairs.

    Args:
        model: The model.
        pairs: Clean and corrupted texts.
        circuits: Which edges each circuit keeps, boolean [circuit, edge].
        measure: Bound to the pairs; `None` for logits.
        batch_size: Pairs at a time; by default as many as fit.

    Returns:
        [circuit, pair], or [circuit, pair, vocabulary].

    Raises:
        ValueError: As `run_circuit`.
    """
    graph = graph_of(model)
    edges = graph.is_edge()
    if circuits.dtype != bool or circuits.shape[1:] != (edges.sum(),):
        raise ValueError(
            f"edges_kept is {circuits.dtype} of shape {list(circuits.shape)}; it must be boolean, with one entry for "
            f"each of the {edges.sum()} edges of list_edges(model)"
        )
    body, length = compiled_form(model.body), padded_length(model, pairs)
    base = Base.of(cast("blocks.Decoder", model.body))
    rows = fitting_rows(model, pairs, batch_size)
    together = max(1, min(len(circuits), fitting_rows(model, pairs, None, _ROWS) // rows))
    parts = []
    for batch, numbers in pairs.batches(rows, length):
        bound = None if measure is None else measure.take(jnp.asarray(numbers))
        _, written = read_senders(base, Texts(jnp.asarray(batch.corrupted), jnp.asarray(batch.valid)), graph=graph)
        values = []
        for first in range(0, len(circuits), together):
            block = circuits[np.minimum(np.arange(first, first + together), len(circuits) - 1)]
            lost = np.zeros((together, *edges.shape), np.float32)
            lost[:, edges] = ~block
            values.append(_run_circuits(body, batch.clean, batch.valid, written, lost, bound, graph=graph))
        parts.append(np.concatenate([np.asarray(value) for value in values])[: len(circuits)])
    return np.concatenate(parts, axis=1)[:, : len(pairs)]


def graph_of(model: LanguageModel) -> EdgeGraph:
    """The edges of a model.

    Raises:
        ValueError: The residual stream is edited, so that it is no longer the sum of what senders write.
    """
    outside = [address for address in edited_taps(model.body) if address[0] not in _INSIDE]
    if outside:
        raise ValueError(
            f"the model is edited at {describe(outside)}, so its residual stream is not the sum of what heads and "
            f"MLPs write; edges can be told apart only with edits at {', '.join(_INSIDE)}"
        )
    return EdgeGraph.of(model.architecture)


def fitting_rows(model: LanguageModel, pairs: AlignedPairs, batch_size: int | None, most: int | None = None) -> int:
    """How many pairs to run at a time: as asked, or as many (of `most`) as keep all senders' outputs in memory."""
    if batch_size is not None:
        return min(max(1, batch_size), len(pairs))
    sizes = model.architecture
    each = 4 * 4 * EdgeGraph.of(sizes).senders * padded_length(model, pairs) * sizes.embedding
    return min(len(pairs) if most is None else most, max(1, MEMORY // each))

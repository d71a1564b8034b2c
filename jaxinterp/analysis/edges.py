r"""Edge attribution: what corrupting one edge would do, estimated for all edges of a model from gradients.

To first order, giving receiver `v` the output that sender `u` has in the corrupted run changes the metric by

$$\sum_{positions} (corrupted_u - clean_u) \cdot \frac{\partial metric}{\partial input_v},$$

where `input_v` is the residual stream as `v` reads it, before its norm. Heads that share keys and values under
grouped queries share those receivers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz

from jaxinterp.activations.metrics import Measure, Metric, apply_measure, bind_metric, normalise
from jaxinterp.activations.plan import Base
from jaxinterp.activations.run import Inputs
from jaxinterp.activations.stages import Texts
from jaxinterp.analysis.aligned_pairs import align_pairs, padded_length
from jaxinterp.analysis.branches import STREAM, Branch, attend, feed, normalise_stream, read_logits, split_readers
from jaxinterp.analysis.circuit import fitting_rows, graph_of, measure_circuits, read_senders
from jaxinterp.analysis.graph import EdgeGraph, list_edges
from jaxinterp.models import blocks
from jaxinterp.models.language_model import LanguageModel

_MOST_ROWS = 50_000_000


def attribute_edges(
    model: LanguageModel,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric | Callable[[jax.Array], jax.Array],
    method: Literal["gradient", "integrated"] = "gradient",
    steps: int = 8,
    mask: Any = None,
    batch_size: int | None = None,
) -> pl.DataFrame:
    """Estimates what every edge carries, as the clean run's loss of it.

    `"gradient"` is EAP, with the gradient of the clean run. `"integrated"` is EAP-IG: the gradient is averaged over
    `steps` midpoints of the straight line between the clean and the corrupted texts' embeddings.

    Senders' outputs are held for one batch, about 4 x (1 + layers x (heads + 1)) x pairs x seq x embedding numbers;
    gradients at receivers are made and contracted layer by layer, so that only one layer's exist at a time. By default
    a batch has as many pairs as keep the former below 1 GiB.

    Args:
        model: The model; edits inside attention and MLPs act, edits of the residual stream are refused.
        clean: Texts, lists of token ids, or ids [pair, seq].
        corrupted: The other texts, each as long as its partner.
        metric: `logit_diff(...)`, `log_prob(...)`, or a function of last-token logits; bound to the pairs.
        method: `"gradient"` or `"integrated"`.
        steps: Midpoints of the path.
        mask: With ids [pair, seq]: which of them are tokens.
        batch_size: Pairs at a time; by default as many as fit.

    Returns:
        One row for each edge and pair: the columns of `list_edges`, `prompt`, `clean` and `corrupted` (the metric of
        the two runs), `effect` (estimated metric with this edge alone corrupted, minus `clean`) and `normalised`,
        `effect` / (`corrupted` - `clean`), null where the two are equal.

    Raises:
        ValueError: A pair differs in length, a setting is out of range, the table would be too long, or the residual
            stream is edited.

    References:
        Syed, Rager, Conmy 2023, arXiv:2310.10348; Hanna, Pezzelle, Belinkov 2024, arXiv:2403.17806.
    """
    if method not in ("gradient", "integrated"):
        raise ValueError(f"there is no method {method!r}; choose 'gradient' or 'integrated'")
    if steps < 1:
        raise ValueError(f"steps is {steps}; integrating needs at least 1")
    graph, pairs = graph_of(model), align_pairs(model, clean, corrupted, mask)
    edges = graph.is_edge()
    if edges.sum() * len(pairs) > _MOST_ROWS:
        raise ValueError(f"{edges.sum()} edges of {len(pairs)} pairs exceed {_MOST_ROWS} rows; give fewer pairs")
    measure = bind_metric(metric, model, len(pairs))
    base = Base.of(cast("blocks.Decoder", model.body))
    alphas = [0.0] if method == "gradient" else [(step + 0.5) / steps for step in range(steps)]
    parts = []
    for batch, numbers in pairs.batches(fitting_rows(model, pairs, batch_size), padded_length(model, pairs)):
        bound = measure.take(jnp.asarray(numbers))
        texts, others = (Texts(jnp.asarray(ids), jnp.asarray(batch.valid)) for ids in (batch.clean, batch.corrupted))
        (clean_logits, clean_written), (logits, written) = (
            read_senders(base, each, graph=graph) for each in (texts, others)
        )
        changes = jnp.moveaxis(written - clean_written, 1, 0)
        starts = [clean_written[0] + alpha * changes[:, 0] for alpha in alphas]
        scores = [_score_edges(base, start, changes, texts, bound, graph) for start in starts]
        effects = np.asarray(functools.reduce(jnp.add, scores) / len(scores))[:, edges]
        values = [np.asarray(apply_measure(bound, each)) for each in (clean_logits, logits)]
        parts.append((*values, effects))
    whole = [np.concatenate(column)[: len(pairs)] for column in zip(*parts, strict=True)]
    return _table(model, whole[0], whole[1], whole[2])


def _score_edges(
    base: Base, start: jax.Array, changes: jax.Array, texts: Texts, measure: Measure, graph: EdgeGraph
) -> jax.Array:
    """Change of every sender times gradient at every receiver, [batch, receiver, sender].

    The blocks are run and differentiated one after the other, so that no more than one of them is taken apart at a
    time. Where a sender comes behind a receiver, the product means nothing.

    Args:
        base: The model, in stages.
        start: The residual stream entering the first block, where gradients are taken, [batch, seq, embedding].
        changes: Corrupted minus clean outputs of all senders, [batch, sender, seq, embedding].
        texts: The clean texts, for the model's edits to look at.
        measure: The metric.
        graph: The edges.
    """
    streams = [start]
    for block in base.blocks:
        streams.append(_pass_block(block, streams[-1], texts))
    gradient, scores = _score_readout(base.ends, streams.pop(), changes, measure)
    parts = [scores]
    for block in reversed(base.blocks):
        gradient, scores = _score_block(block, streams.pop(), gradient, changes, texts, graph=graph)
        parts.append(scores)
    return jnp.concatenate(parts[::-1], axis=1)


@jax.jit
def _pass_block(block: pz.nn.Layer, stream: jax.Array, texts: Texts) -> jax.Array:
    return block(pz.nx.wrap(stream, *STREAM), **texts.side_inputs(0)).unwrap(*STREAM)


@jax.jit
def _score_readout(
    ends: blocks.Decoder, stream: jax.Array, changes: jax.Array, measure: Measure
) -> tuple[jax.Array, jax.Array]:
    """The gradient at the stream leaving the last block, and the scores of the edges into the logits."""

    def measure_stream(stream: jax.Array) -> jax.Array:
        return apply_measure(measure, read_logits(ends, stream)).sum()

    gradient = jax.grad(measure_stream)(stream)
    return gradient, _contract(gradient[None, :, -1:], changes[:, :, -1:])


@functools.partial(jax.jit, static_argnames="graph")
def _score_block(
    block: pz.nn.Layer, stream: jax.Array, gradient: jax.Array, changes: jax.Array, texts: Texts, *, graph: EdgeGraph
) -> tuple[jax.Array, jax.Array]:
    """From the gradient behind a block to that in front of it, and the scores of the edges into its receivers."""
    inputs = texts.side_inputs(0)
    attention, mlp = Branch.find(block, blocks.Attention), Branch.find(block, blocks.MLP)
    normed, pull_norm = jax.vjp(functools.partial(normalise_stream, attention, inputs=inputs), stream)

    def attend_apart(readers: jax.Array) -> jax.Array:
        return attend(attention, *split_readers(graph, readers), inputs)[0]

    whole, pull_attention = jax.vjp(attend_apart, jnp.broadcast_to(normed, (graph.readers, *normed.shape)))
    before = stream if graph.parallel else stream + whole
    (at_mlp,) = jax.vjp(functools.partial(feed, mlp, inputs=inputs), before)[1](gradient)
    (behind_norm,) = pull_attention(gradient if graph.parallel else gradient + at_mlp)
    (at_readers,) = jax.vmap(pull_norm)(behind_norm)
    scores = _contract(jnp.concatenate([at_readers, at_mlp[None]]), changes)
    return gradient + at_mlp + at_readers.sum(axis=0), scores


def _contract(gradients: jax.Array, changes: jax.Array) -> jax.Array:
    """Products [batch, receiver, sender] of [receiver, batch, seq, embedding] and [batch, sender, seq, embedding]."""
    return jnp.einsum("rbsd,busd->bru", gradients, changes, preferred_element_type=jnp.float32)


def exact_edges(
    model: LanguageModel,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric | Callable[[jax.Array], jax.Array],
    edges: np.ndarray | None = None,
    mask: Any = None,
    batch_size: int | None = None,
) -> pl.DataFrame:
    """Measures what corrupting one edge does, edge by edge: a forward pass for each.

    Args:
        model: The model; edits inside attention and MLPs act, edits of the residual stream are refused.
        clean: Texts, lists of token ids, or ids [pair, seq].
        corrupted: The other texts, each as long as its partner.
        metric: `logit_diff(...)`, `log_prob(...)`, or a function of last-token logits; bound to the pairs.
        edges: Numbers of the edges to measure; by default all, which suits small models.
        mask: With ids [pair, seq]: which of them are tokens.
        batch_size: Pairs at a time; by default as many as fit.

    Returns:
        A table as of `attribute_edges`, with measured effects.

    Raises:
        ValueError: As `run_circuit`; or there is no such edge.
    """
    pairs = align_pairs(model, clean, corrupted, mask)
    count = int(graph_of(model).is_edge().sum())
    chosen = np.arange(count) if edges is None else np.asarray(edges)
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"edges must be numbers from 0 to {count - 1}, at least one; list_edges(model) names them")
    circuits = np.ones((len(chosen) + 2, count), bool)
    circuits[np.arange(len(chosen)), chosen] = False
    circuits[-1] = False
    values = measure_circuits(model, pairs, circuits, bind_metric(metric, model, len(pairs)), batch_size)
    before, after = values[-2], values[-1]
    return _table(model, before, after, (values[:-2] - before).T, chosen)


def _table(
    model: LanguageModel, clean: np.ndarray, corrupted: np.ndarray, effects: np.ndarray, edges: np.ndarray | None = None
) -> pl.DataFrame:
    """Effects [pair, edge] as one row for each edge and pair."""
    names = list_edges(model) if edges is None else list_edges(model)[edges]
    pairs = np.arange(len(effects))
    return (
        names[np.repeat(np.arange(names.height), len(pairs))]
        .with_columns(
            prompt=pl.Series(np.tile(pairs, names.height)),
            clean=pl.Series(np.tile(clean, names.height)),
            corrupted=pl.Series(np.tile(corrupted, names.height)),
            effect=pl.Series(effects.T.reshape(-1)),
        )
        .with_columns(normalised=normalise(pl.col("effect")))
    )

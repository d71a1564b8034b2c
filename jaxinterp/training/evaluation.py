"""What a decoder makes of packed texts: losses and the likeliest tokens."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxinterp.models.nnx import Decoder
from jaxinterp.parallel.placement import fetch
from jaxinterp.training.packing import Rows


def arrays(rows: np.ndarray | Rows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """What `predict` takes of rows: tokens, and of whole documents which is where and what is learned."""
    return (rows, None, None) if isinstance(rows, np.ndarray) else (rows.tokens, rows.documents, rows.counted)


def predict(
    decoder: Decoder, tokens: jax.Array, documents: jax.Array | None, counted: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a decoder makes of a batch.

    Args:
        decoder: The decoder.
        tokens: Int [row, length + 1].
        documents: To which document a token belongs, int [row, length + 1]; `None` for one text a row.
        counted: Whether a prediction is learned, bool [row, length]; `None` for all.

    Returns:
        Losses in nats, float32 [row, length]; whether each counts; and the logits, [row, length, vocabulary].
    """
    tokens = tokens.astype(jnp.int32)
    logits = decoder(tokens[:, :-1], documents=None if documents is None else documents[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses, jnp.ones(losses.shape, bool) if counted is None else counted, logits


def mean_loss(decoder: Decoder, rows: np.ndarray | Rows, batch: int = 16) -> float:
    """How well a decoder predicts packed texts.

    Args:
        decoder: The decoder.
        rows: Int [row, length + 1], or whole documents.
        batch: Rows in one forward pass.

    Returns:
        Mean negative log-probability of the tokens that are learned, in nats.
    """
    total = counted = 0.0
    for losses, _, counts in _read(decoder, rows, batch):
        total, counted = total + float(losses[counts].sum(dtype=np.float64)), counted + int(counts.sum())
    return total / counted


def predictions(decoder: Decoder, rows: np.ndarray | Rows, batch: int = 16) -> np.ndarray:
    """The likeliest token at every place of packed texts, given what stands before it.

    Args:
        decoder: The decoder.
        rows: Int [row, length + 1], or whole documents.
        batch: Rows in one forward pass.

    Returns:
        Int [row, length].
    """
    return np.concatenate([likeliest for _, likeliest, _ in _read(decoder, rows, batch)])


def _read(decoder: Decoder, rows: np.ndarray | Rows, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Losses, likeliest tokens, and which predictions count, [row, length] each, batch by batch."""
    graph, weights = nnx.split(decoder)
    for first in range(0, len(rows), batch):
        here = min(batch, len(rows) - first)
        part = rows[np.minimum(np.arange(first, first + batch), len(rows) - 1)]
        losses, counted, likeliest = _losses_and_likeliest(graph, weights, arrays(part))
        yield fetch(losses)[:here], fetch(likeliest)[:here], fetch(counted)[:here]


@functools.partial(jax.jit, static_argnames="graph")
def _losses_and_likeliest(graph: Any, weights: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    losses, counted, logits = predict(nnx.merge(graph, weights), *batch)
    return losses, counted, jnp.argmax(logits, axis=-1)

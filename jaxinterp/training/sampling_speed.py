"""What the sampler's memory is worth: tokens per second beside a loop that reads the whole text for every token."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx

from jaxinterp.models.nnx import Decoder
from jaxinterp.training.sampling import Samples, sample


def measure(decoder: Decoder, tokens: np.ndarray, mask: np.ndarray, new: int, repeats: int = 3) -> pl.DataFrame:
    """Draws the same responses with the sampler and with a loop that recomputes, in turn.

    Args:
        decoder: The decoder.
        tokens: Prompts, int `[batch, seq]`, padded on the left.
        mask: Which of them are tokens, bool `[batch, seq]`.
        new: Most tokens of a response.
        repeats: Timed repeats; the first, which compiles, is not among them.

    Returns:
        A row for each way: `way`, `rows`, `tokens` (drawn), `seconds` (the least) and `tokens_per_second`.
    """
    ways: dict[str, Callable[..., Samples]] = {"sampler": sample, "recomputing": recompute}
    key = jax.random.key(0)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    drawn: dict[str, int] = {}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            drawn[name] = int(way(decoder, tokens, mask, new, key=key).lengths.sum())
            taken[name].append(time.perf_counter() - began)
    return pl.DataFrame(
        [
            {
                "way": name,
                "rows": len(tokens),
                "tokens": drawn[name],
                "seconds": min(taken[name][1:]),
                "tokens_per_second": drawn[name] / min(taken[name][1:]),
            }
            for name in ways
        ]
    )


def recompute(
    decoder: Decoder, tokens: np.ndarray, mask: np.ndarray, new: int, *, key: jax.Array, temperature: float = 1.0
) -> Samples:
    """Draws what `sample` draws, up to rounding, and reads the whole text for every token.

    Args:
        decoder: The decoder.
        tokens: Prompts, int `[batch, seq]`, padded on the left.
        mask: Which of them are tokens, bool `[batch, seq]`.
        new: Most tokens of a response.
        key: A typed key.
        temperature: Of the drawing, above 0.

    Returns:
        The responses.
    """
    graph, weights = nnx.split(decoder)
    width = tokens.shape[1]
    text, seen = (jnp.pad(jnp.asarray(array), ((0, 0), (0, new))) for array in (tokens, mask))
    found = np.zeros((len(tokens), new), np.float32)
    ended, lengths = np.zeros(len(tokens), bool), np.zeros(len(tokens), np.int32)
    for step in range(new):
        text, seen, token, chance = _draw(
            graph, weights, text, seen, width + step, jax.random.fold_in(key, step), temperature=temperature
        )
        found[:, step] = np.where(ended, 0.0, chance)
        lengths += ~ended
        ended |= np.isin(token, decoder.architecture.eos)
        if ended.all():
            break
    written = np.arange(new) < lengths[:, None]
    return Samples(np.where(written, np.asarray(text[:, width:]), 0), lengths, ended, found)


@functools.partial(jax.jit, static_argnames=("graph", "temperature"))
def _draw(
    graph: Any, weights: Any, text: jax.Array, seen: jax.Array, place: int, key: jax.Array, *, temperature: float
) -> tuple[jax.Array, ...]:
    decoder: Decoder = nnx.merge(graph, weights)
    hidden = jax.lax.dynamic_index_in_dim(decoder.hidden(text, seen), place - 1, axis=1, keepdims=False)
    logits = decoder.unembed(hidden) / temperature
    token = jax.random.categorical(key, logits).astype(text.dtype)
    chance = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
    text = jax.lax.dynamic_update_slice_in_dim(text, token[:, None], place, axis=1)
    seen = jax.lax.dynamic_update_slice_in_dim(seen, jnp.ones((len(text), 1), seen.dtype), place, axis=1)
    return text, seen, token, chance

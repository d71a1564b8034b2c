"""Responses drawn from a decoder: the prompt pass and the loop over tokens are one compiled program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxinterp.models.nnx import Decoder
from jaxinterp.models.nnx_decoding import read_next, read_prompt, separate_layers


@dataclasses.dataclass(frozen=True)
class Samples:
    """Drawn responses.

    Attributes:
        tokens: New ids, int32 `[batch, new]`; the padding id behind an end token.
        lengths: New tokens of each row, the end token included, int32 `[batch]`.
        ended: Whether a row drew an end token, bool `[batch]`.
        log_probabilities: Of each token as it was drawn, in nats, float32 `[batch, new]`; 0 behind the end.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray
    log_probabilities: np.ndarray

    def responses(self) -> list[list[int]]:
        """Ids of each response, the end token included."""
        return [row[:length].tolist() for row, length in zip(self.tokens, self.lengths, strict=True)]


def pad_left(prompts: Sequence[Sequence[int]], width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as rows of one width.

    Args:
        prompts: Token ids of each prompt.
        width: Tokens in a row.
        pad: Id that fills the left.

    Returns:
        Ids, int32 `[batch, width]`, and which of them are tokens, bool `[batch, width]`.

    Raises:
        ValueError: A prompt is empty or longer than a row.

    >>> pad_left([[5, 6], [7]], 3, 0)[0].tolist()
    [[0, 5, 6], [0, 0, 7]]
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    if not lengths.all() or lengths.max() > width:
        raise ValueError(
            f"prompts have {lengths.min()} to {lengths.max()} tokens, but a row has from 1 to {width}; "
            "shorten them or allow more tokens"
        )
    mask = np.arange(width) >= width - lengths[:, None]
    tokens = np.full(mask.shape, pad, np.int32)
    tokens[mask] = np.concatenate([np.asarray(prompt) for prompt in prompts])
    return tokens, mask


def sample(
    decoder: Decoder,
    tokens: np.ndarray | jax.Array,
    mask: np.ndarray | jax.Array,
    new: int,
    *,
    key: jax.Array,
    temperature: float = 1.0,
    pad: int = 0,
) -> Samples:
    """Draws one response to every prompt.

    The loop ends with the row that is last to draw one of the architecture's end tokens.

    Args:
        decoder: The decoder.
        tokens: Prompts, int `[batch, seq]`, padded on the left; repeat a prompt for several responses.
        mask: Which of them are tokens, bool `[batch, seq]`.
        new: Most tokens of a response.
        key: A typed key; the same one gives the same responses.
        temperature: Of the drawing; 0 takes the most probable token, whose log-probability is that at temperature 1.
        pad: Id behind an end token.

    Returns:
        The responses.

    Raises:
        ValueError: `new` or the temperature is out of range, or prompt and response exceed learned positions.
    """
    if new < 1:
        raise ValueError(f"a response of at most {new} tokens cannot be drawn; allow at least 1")
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is negative")
    graph, weights = nnx.split(decoder)
    drawn = _sample(graph, weights, tokens, mask, key, new=new, temperature=temperature, pad=pad)
    return Samples(*(np.asarray(array) for array in drawn))


@functools.partial(jax.jit, static_argnames=("graph", "new", "temperature", "pad"))
def _sample(
    graph: Any,
    weights: Any,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    new: int,
    temperature: float,
    pad: int,
) -> tuple[jax.Array, ...]:
    decoder: Decoder = nnx.merge(graph, weights)
    ends = jnp.asarray(decoder.architecture.eos or (-1,), jnp.int32)
    layers = separate_layers(decoder)
    rows = len(tokens)
    # The last token of a response is drawn but not read.
    logits, memory = read_prompt(decoder, tokens, mask, tokens.shape[1] + new)

    def is_open(state: tuple) -> jax.Array:
        step, ended = state[0], state[1]
        return (step < new) & ~jnp.all(ended)

    def draw(state: tuple) -> tuple:
        step, ended, lengths, logits, memory, text, found = state
        scaled = logits / (temperature or 1.0)
        token = jax.random.categorical(jax.random.fold_in(key, step), scaled) if temperature else jnp.argmax(scaled, -1)
        token = token.astype(jnp.int32)
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(scaled), token[:, None], axis=-1)[:, 0]
        text = jax.lax.dynamic_update_slice_in_dim(text, jnp.where(ended, pad, token)[:, None], step, axis=1)
        found = jax.lax.dynamic_update_slice_in_dim(
            found, jnp.where(ended, 0.0, log_probability)[:, None], step, axis=1
        )
        lengths = lengths + ~ended
        logits, memory = read_next(decoder, layers, memory, token)
        return step + 1, ended | jnp.isin(token, ends), lengths, logits, memory, text, found

    start = (
        jnp.int32(0),
        jnp.zeros(rows, bool),
        jnp.zeros(rows, jnp.int32),
        logits,
        memory,
        jnp.full((rows, new), pad, jnp.int32),
        jnp.zeros((rows, new), jnp.float32),
    )
    _, ended, lengths, _, _, text, found = jax.lax.while_loop(is_open, draw, start)
    return text, lengths, ended, found

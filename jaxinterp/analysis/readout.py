"""The end of a model as a function of its own: what residual streams would predict, layer by layer."""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.memory import host_memory
from jaxinterp.activations.run import bucket, compiled_form, forward_pass, pad_rows
from jaxinterp.models import blocks
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import describe, edited_taps

_CHUNK_BYTES = 2**28
_COPIES = 6  # arrays [token, vocabulary] alive at a time in the readout of one layer


class Translators(Protocol):
    """Affine maps in front of the unembedding, one for each layer: a residual $h$ becomes $h + D h + b$."""

    @property
    def changes(self) -> np.ndarray:
        """D, [layer, embedding, embedding]."""
        ...

    @property
    def biases(self) -> np.ndarray:
        """b, [layer, embedding]."""
        ...


class Readout(NamedTuple):
    """What a lens shows of some tokens.

    Attributes:
        divergence: KL(final | lens), [layer, token].
        top: The likeliest tokens, int [layer, token, rank].
        top_log_prob: Their log-probabilities.
        log_prob: Those of the tokens asked for, [layer, token, answer].
        rank: How many tokens are likelier than they, int [layer, token, answer].
    """

    divergence: np.ndarray
    top: np.ndarray
    top_log_prob: np.ndarray
    log_prob: np.ndarray
    rank: np.ndarray


def read_residuals(
    model: LanguageModel, ids: np.ndarray, valid: np.ndarray, where: np.ndarray, batch_size: int
) -> np.ndarray:
    """The residual streams that leave all blocks, at chosen tokens.

    Args:
        model: The model.
        ids: Token ids, padded on the left, [batch, seq].
        valid: Which of them are tokens, [batch, seq].
        where: Which are chosen, [batch, seq].
        batch_size: Rows in one forward pass.

    Returns:
        Float32 [layer, token, embedding], the chosen tokens in the order of `np.nonzero(where)`.

    Raises:
        ValueError: They would exceed the free memory.
    """
    architecture = model.architecture
    size = 4 * architecture.layers * int(where.sum()) * architecture.embedding
    if size > host_memory():
        raise ValueError(
            f"the residuals of {where.sum()} tokens at {architecture.layers} layers take {size / 2**30:.1f} GiB, more "
            f"than the {host_memory() / 2**30:.1f} GiB that are free; ask for fewer tokens"
        )
    length = bucket(ids.shape[1], architecture.context if architecture.learned_positions else None)
    step = min(max(1, batch_size), len(ids))
    body = compiled_form(model.body)
    starts = range(0, len(ids), step)
    most = max(int(where[first : first + step].sum()) for first in starts)
    parts = []
    for first in starts:
        part = slice(first, first + step)
        rows, slots = np.nonzero(where[part])
        count = len(rows)
        tokens, held = pad_rows(ids[part], valid[part], step, length)
        places = np.pad(np.stack([rows, slots + length - ids.shape[1]]), ((0, 0), (0, most - count)))
        parts.append(np.asarray(_residuals(body, tokens, held, places))[:, :count])
    return np.concatenate(parts, axis=1)


def read_out(
    model: LanguageModel,
    residuals: np.ndarray,
    lens: Translators | None = None,
    answers: np.ndarray | None = None,
    top: int = 1,
) -> Readout:
    """Turns residual streams into predictions, in chunks of tokens.

    Args:
        model: The model.
        residuals: [layer, token, embedding], all layers of the model, or whatever ends with its last.
        lens: See `logit_lens`.
        answers: Token ids whose log-probabilities are wanted, [answer].
        top: How many of the likeliest tokens are wanted.

    Returns:
        What the lens shows.
    """
    maps = None if lens is None else (jnp.asarray(lens.changes), jnp.asarray(lens.biases))
    asked = np.zeros(0, np.int32) if answers is None else answers
    count = residuals.shape[1]
    step = min(max(1, _CHUNK_BYTES // (4 * _COPIES * model.architecture.vocabulary)), count)
    parts = []
    for first in range(0, count, step):
        part = residuals[:, first : first + step]
        missing = step - part.shape[1]
        filled = np.pad(part, ((0, 0), (0, missing), (0, 0)), mode="edge")
        shown = _read_out(readers(model), filled, maps, asked, top=top)
        parts.append([np.asarray(array)[:, : step - missing] for array in shown])
    return Readout(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))


def mean_probabilities(model: LanguageModel, residuals: np.ndarray) -> np.ndarray:
    """What residual streams would predict, on average over tokens.

    Args:
        model: The model; edits are left out.
        residuals: [layer, token, embedding], of any layers.

    Returns:
        Mean probability of every token of the vocabulary, [layer, vocabulary].
    """
    count = residuals.shape[1]
    step = min(max(1, _CHUNK_BYTES // (4 * _COPIES * model.architecture.vocabulary)), count)
    total = np.zeros((len(residuals), model.architecture.vocabulary))
    for first in range(0, count, step):
        part = residuals[:, first : first + step]
        missing = step - part.shape[1]
        filled = np.pad(part, ((0, 0), (0, missing), (0, 0)), mode="edge")
        counted = np.arange(step) < step - missing
        total += np.asarray(_sum_probabilities(readers(model), filled, counted))
    return total / count


class Readers(NamedTuple):
    """The end of a model.

    Attributes:
        norm: Final norm.
        unembedding: Residual stream -> logits.
        tied_table: W_E, for a tied unembedding.
    """

    norm: pz.nn.Layer
    unembedding: blocks.Unembedding
    tied_table: pz.nx.NamedArray

    def log_probs(self, residuals: jax.Array) -> jax.Array:
        """Residuals [token, embedding] -> log-probabilities [token, vocabulary], in float32."""
        named = pz.nx.wrap(residuals, axes.BATCH, axes.EMBEDDING)
        logits = self.unembedding(self.norm(named), tied_table=self.tied_table)
        return jax.nn.log_softmax(logits.unwrap(axes.BATCH, axes.VOCABULARY))


def readers(model: LanguageModel) -> Readers:
    """The final norm and the unembedding of a model, without their taps."""
    body = model.body
    assert isinstance(body, blocks.Decoder)
    return Readers(body.final.sublayers[0], body.unembedding, body.embedding.table.value)


def refuse_edits_behind(model: LanguageModel) -> None:
    """Refuses a model whose output is edited behind the residual stream.

    Raises:
        ValueError: It is.
    """
    late = [address for address in edited_taps(model.body) if address[0] in ("ln_final", "logits")]
    if late:
        raise ValueError(
            f"the edit at {describe(late)} acts behind the residual stream, where a lens does not look; leave it out"
        )


def check_translators(model: LanguageModel, lens: Translators) -> None:
    """Refuses translators of another model.

    Raises:
        ValueError: They do not fit.
    """
    wanted = (model.architecture.layers, *2 * (model.architecture.embedding,))
    if lens.changes.shape != wanted or lens.biases.shape != wanted[:2]:
        raise ValueError(
            f"the translators have shape {list(lens.changes.shape)} and this model needs {list(wanted)}; fit some to it"
        )


@jax.jit
def _residuals(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, places: jax.Array) -> jax.Array:
    _, reads = forward_pass(body, tokens, mask, sites=(Site("resid_post"),), logits=None)
    return jnp.stack([array[places[0], places[1]].astype(jnp.float32) for array in reads.values()])


@functools.partial(jax.jit, static_argnames="top")
def _read_out(
    ends: Readers, residuals: jax.Array, maps: tuple[jax.Array, jax.Array] | None, answers: jax.Array, *, top: int
) -> tuple[jax.Array, ...]:
    final = ends.log_probs(residuals[-1])

    def one(layer: tuple[jax.Array, tuple[jax.Array, jax.Array] | None]) -> tuple[jax.Array, ...]:
        stream, own = layer
        values = ends.log_probs(stream if own is None else stream + stream @ own[0].T + own[1])
        best, which = jax.lax.top_k(values, top)
        asked = values[:, answers]
        rank = jax.lax.map(lambda column: jnp.sum(values > column[:, None], axis=-1), asked.T).T
        return jnp.sum(jnp.exp(final) * (final - values), axis=-1), which, best, asked, rank

    return jax.lax.map(one, (residuals, maps))


@jax.jit
def _sum_probabilities(ends: Readers, residuals: jax.Array, counted: jax.Array) -> jax.Array:
    def one(stream: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(ends.log_probs(stream)), axis=0, where=counted[:, None])

    return jax.lax.map(one, residuals)

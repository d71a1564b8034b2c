"""Head scores: which heads look at the previous token, at an earlier copy of their own, or at what followed it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz

from jaxinterp.activations.run import bucket, compiled_form, forward_pass, pad_rows
from jaxinterp.analysis.statistics import bootstrap
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site

SCORES = ("previous", "duplicate", "induction")
_PATTERN_BYTES = 2**28


def head_scores(
    model: LanguageModel,
    *,
    tokens: int = 50,
    rows: int = 16,
    seed: int = 0,
    batch_size: int | None = None,
) -> pl.DataFrame:
    r"""Scores every head on random tokens that are said twice.

    A row is the token that starts a text (a random one where the model has none), `tokens` random tokens, different
    ones as far as the vocabulary goes, and the same again. With $A_{ij}$ the attention of token $i$ to token $j$, the
    start counted as 0, and $n$ = `tokens`:

    * `previous`: mean of $A_{i,i-1}$ over $i = 2 \dots 2n$;
    * `duplicate`: mean of $A_{i,i-n}$ over $i = n + 1 \dots 2n - 1$, the same token in the first copy;
    * `induction`: mean of $A_{i,i-n+1}$ over the same $i$, the token that came after it.

    Args:
        model: The model, edited or not.
        tokens: Length of the repeated part.
        rows: Number of rows.
        seed: Of the random tokens.
        batch_size: Rows in one forward pass; by default as many as keep one block's patterns below 256 MiB.

    Returns:
        One row for each head and score: `layer`, `head`, `score`, `value` in [0, 1], its 95% interval over rows
        `low` and `high`, `rows`, and `uniform`, the value of a head that looks at all tokens alike.

    Raises:
        ValueError: The rows are too short or longer than the model's learned positions, or there are none.

    References:
        Elhage et al. 2021, A mathematical framework for transformer circuits; Olsson et al. 2022, In-context learning
        and induction heads.
    """
    ids = repeated_tokens(model, tokens, rows, seed)
    architecture = model.architecture
    length = bucket(ids.shape[1], architecture.context if architecture.learned_positions else None)
    fitting = max(1, _PATTERN_BYTES // (4 * architecture.heads * length * length))
    step = min(fitting if batch_size is None else max(1, batch_size), rows)
    body = compiled_form(model.body)
    parts = []
    for first in range(0, rows, step):
        part = ids[first : first + step]
        padded, valid = pad_rows(part, np.ones(part.shape, bool), step, length)
        parts.append(np.asarray(_score(body, padded, valid, np.int32(tokens)))[:, :, : len(part)])
    return _table(np.concatenate(parts, axis=2), tokens, seed)


def repeated_tokens(model: LanguageModel, tokens: int, rows: int, seed: int) -> np.ndarray:
    """Rows of a start token and the same random tokens twice.

    Args:
        model: Whose vocabulary and start token count; its special tokens are not drawn.
        tokens: Length of the repeated part.
        rows: Number of rows.
        seed: Of the random tokens.

    Returns:
        Token ids, int32 [rows, 1 + 2 x tokens].

    Raises:
        ValueError: See `head_scores`.
    """
    if tokens < 2 or rows < 1:
        raise ValueError(f"{rows} rows of {tokens} repeated tokens score nothing; ask for at least 1 row of 2 tokens")
    architecture = model.architecture
    if architecture.learned_positions and 2 * tokens + 1 > architecture.context:
        raise ValueError(
            f"{2 * tokens + 1} tokens exceed the {architecture.context} learned positions; repeat at most "
            f"{(architecture.context - 1) // 2} tokens"
        )
    special = {*architecture.eos, *(() if architecture.bos is None else (architecture.bos,))}
    drawn = np.array([token for token in range(architecture.vocabulary) if token not in special])
    rng = np.random.default_rng(seed)
    row = np.stack([rng.choice(drawn, tokens + 1, replace=tokens >= len(drawn)) for _ in range(rows)])
    if architecture.bos is not None:
        row[:, 0] = architecture.bos
    return np.concatenate([row, row[:, 1:]], axis=1).astype(np.int32)


@jax.jit
def _score(body: pz.nn.Layer, ids: jax.Array, mask: jax.Array, tokens: jax.Array) -> jax.Array:
    """Scores [score, layer, batch, head]; each pattern is reduced as soon as it is there."""
    _, patterns = forward_pass(body, ids, mask, sites=(Site("pattern"),), logits=None)
    pick = functools.partial(_diagonals, start=jnp.argmax(mask[0]), tokens=tokens)
    return jnp.stack([pick(pattern) for pattern in patterns.values()], axis=1)


def _diagonals(pattern: jax.Array, *, start: jax.Array, tokens: jax.Array) -> jax.Array:
    """Scores [score, batch, head] of one block's pattern [batch, head, seq, kv_seq] whose text begins at `start`."""
    slot = jnp.arange(pattern.shape[-1])
    query, distance = (slot - start)[:, None], slot[:, None] - slot[None, :]
    second = (query > tokens) & (query < 2 * tokens)
    chosen = [
        (query >= 2) & (distance == 1),
        second & (distance == tokens),
        second & (distance == tokens - 1),
    ]
    return jnp.stack([jnp.einsum("bhqk,qk->bh", pattern, which) / which.sum() for which in chosen])


def _table(scores: np.ndarray, tokens: int, seed: int) -> pl.DataFrame:
    numbers = np.arange(2, 2 * tokens + 1)
    uniform = {"previous": np.mean(1 / (numbers + 1))}
    uniform |= dict.fromkeys(SCORES[1:], np.mean(1 / (numbers[numbers > tokens][:-1] + 1)))
    rows = []
    for (layer, head), _ in np.ndenumerate(scores[0, :, 0]):
        for name, values in zip(SCORES, scores[:, layer, :, head], strict=True):
            low, high = bootstrap(values, seed, n=500)
            rows.append((layer, head, name, float(values.mean()), low, high, len(values), float(uniform[name])))
    return pl.DataFrame(rows, ["layer", "head", "score", "value", "low", "high", "rows", "uniform"], orient="row")

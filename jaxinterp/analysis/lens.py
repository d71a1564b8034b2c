"""Lenses: what the residual stream of each layer would predict if the model ended there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxinterp import axes
from jaxinterp.activations.run import Inputs, prepare
from jaxinterp.analysis.readout import (
    Readout,
    Translators,
    check_translators,
    read_out,
    read_residuals,
    refuse_edits_behind,
)
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import Positions, last


@dataclasses.dataclass(frozen=True)
class LensReading:
    """What a lens shows, as tidy tables; layer `l` is the residual stream that leaves block `l`.

    Attributes:
        divergence: `prompt`, `position`, `layer`, and `kl`, the divergence KL(final | lens) in nats.
        top: `prompt`, `position`, `layer`, `rank` from 0, `token`, `text`, and `log_prob` in nats.
        answers: `prompt`, `position`, `layer`, `token`, `text`, `log_prob`, and `rank`, how many tokens are likelier.
    """

    divergence: pl.DataFrame
    top: pl.DataFrame
    answers: pl.DataFrame


def logit_lens(
    model: LanguageModel,
    prompts: Inputs,
    mask: Any = None,
    *,
    tokens: Sequence[str | int] = (),
    at: Positions | None = None,
    top: int = 5,
    lens: Translators | None = None,
    batch_size: int = 32,
) -> LensReading:
    r"""Reads every layer's residual stream through the final norm and the unembedding.

    At the last layer the lens is the model itself: its divergence is 0 there.

    Args:
        model: The model; it may have edits up to the last residual stream, but none behind it.
        prompts: Texts, lists of token ids, or ids [batch, seq].
        mask: With ids [batch, seq]: which of them are tokens.
        tokens: Tokens, by text or id, whose log-probability and rank are wanted.
        at: At which tokens of the prompts; by default the last.
        top: How many of the likeliest tokens are wanted.
        lens: Translators to apply before, such as `fit_tuned_lens` makes; without them this is the logit lens.
        batch_size: Prompts in one forward pass. The readout goes layer by layer and in chunks of tokens whose logits
            take at most 256 MiB.

    Returns:
        The tables.

    Raises:
        ValueError: A token is none of the model's, the translators are of another model, nothing is asked at any
            token, or there is an edit behind the residual stream.

    References:
        nostalgebraist 2020, Interpreting GPT: the logit lens; Belrose et al. 2023, arXiv:2303.08112.
    """
    refuse_edits_behind(model)
    if lens is not None:
        check_translators(model, lens)
    ids, valid = prepare(model, prompts, mask)
    vocabulary = model.architecture.vocabulary
    if not 1 <= top <= vocabulary:
        raise ValueError(f"top is {top}; ask for 1 to {vocabulary} tokens")
    answers = np.array([_token_id(model, token) for token in tokens], np.int32)
    named = side_inputs(jnp.asarray(ids), jnp.asarray(valid))
    seen = {name: named[name] for name in ("tokens", "positions", "prompt_length")}
    chosen = (at or last()).choose(**seen) & (named["positions"] >= 0)
    where = np.asarray(chosen.unwrap(axes.BATCH, axes.SEQ))
    if not where.any():
        raise ValueError("the positions choose no token of any prompt; try ji.last() or ji.everywhere()")
    residuals = read_residuals(model, ids, valid, where, batch_size)
    shown = read_out(model, residuals, lens, answers, top)
    rows, slots = np.nonzero(where)
    return _tables(model, shown, rows, slots - np.argmax(valid, axis=1)[rows], answers)


def _token_id(model: LanguageModel, token: str | int) -> int:
    number = model.require_tokenizer().id(token) if isinstance(token, str) else int(token)
    if not 0 <= number < model.architecture.vocabulary:
        raise ValueError(f"token id {number} lies outside the vocabulary of {model.architecture.vocabulary}")
    return number


def _tables(
    model: LanguageModel, shown: Readout, rows: np.ndarray, positions: np.ndarray, answers: np.ndarray
) -> LensReading:
    def tidy(values: dict[str, np.ndarray]) -> pl.DataFrame:
        """Arrays [layer, token] or [layer, token, choice] as a table sorted by prompt."""
        shape = next(iter(values.values())).shape
        layer, token = (index.reshape(-1) for index in np.indices(shape)[:2])
        places = {"prompt": rows[token], "position": positions[token], "layer": layer}
        table = pl.DataFrame(places | {name: array.reshape(-1) for name, array in values.items()})
        return table.sort("prompt", "position", "layer", maintain_order=True)

    def with_text(table: pl.DataFrame) -> pl.DataFrame:
        known = {number: _text(model, number) for number in table["token"].unique().to_list()}
        text = pl.col("token").replace_strict(known, return_dtype=pl.String)
        return table.with_columns(text=text if known else pl.lit(None, pl.String))

    place = np.broadcast_to(np.arange(shown.top.shape[-1]), shown.top.shape)
    best = with_text(tidy({"rank": place, "token": shown.top, "log_prob": shown.top_log_prob}))
    asked = np.broadcast_to(answers, shown.rank.shape)
    told = with_text(tidy({"token": asked, "log_prob": shown.log_prob, "rank": shown.rank}))
    where = ("prompt", "position", "layer")
    return LensReading(
        tidy({"kl": shown.divergence}),
        best.select(*where, "rank", "token", "text", "log_prob"),
        told.select(*where, "token", "text", "log_prob", "rank"),
    )


def _text(model: LanguageModel, number: int) -> str | None:
    return None if model.tokenizer is None else model.tokenizer.token(number)

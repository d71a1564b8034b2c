"""Direct logit attribution: a logit difference as a sum of what each component wrote to the residual stream."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz

from jaxinterp.activations.metrics import LogitDiff, Metric, bind_metric
from jaxinterp.activations.run import Inputs, bucket, compiled_form, forward_pass, pad_rows, prepare
from jaxinterp.models import blocks
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.decoder import read_weights
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import describe, edited_taps

_BEHIND_THE_TERMS = ("head_out", "attn_out", "resid_pre", "resid_mid", "resid_post", "ln_final", "logits")


def direct_logit_attribution(
    model: LanguageModel, prompts: Inputs, metric: Metric, mask: Any = None, *, batch_size: int = 32
) -> pl.DataFrame:
    r"""Splits the logit difference of two next tokens into what each component contributes, exactly.

    The last residual is a sum of terms $t_i$, and the final norm is linear once its denominator $s$, that of the run,
    is given: with gain $g$, shift $\beta$ and rows $u$ of W_U,
    $u_\text{right} \cdot y - u_\text{wrong} \cdot y = \sum_i (u_\text{right} - u_\text{wrong}) \cdot g \odot t_i / s
    + (u_\text{right} - u_\text{wrong}) \cdot \beta$, each $t_i$ centred first under layer norm. A head's term behind
    a norm of the attention output (Gemma) is divided by that norm's denominator in the run. Where logits are
    soft-capped, it is the difference before the cap that is split; the column `of` says so.

    Args:
        model: The model; it may have edits up to `z` and in the MLP, but none behind the terms.
        prompts: Texts, lists of token ids, or ids [batch, seq].
        metric: `logit_diff(right, wrong)`, with one pair or one for each text.
        mask: With ids [batch, seq]: which of them are tokens.
        batch_size: Prompts in one forward pass; it bounds the memory, batch_size x seq x embedding x layers floats.

    Returns:
        One row for each prompt and component: `prompt`, `component` (`embed`, `positions`, `head`, `attn_bias`,
        `mlp`, `norm_bias`, as far as the family has them), `layer` and `head` (null where there is none),
        `contribution` in nats, `of` (`logit_diff` or `logit_diff_before_softcap`), and, repeated for each prompt,
        `logit_diff`, the number that the model computes, and `residual`, that number minus the sum of the
        contributions, which is rounding.

    Raises:
        ValueError: The metric is no logit difference, or an edit changes the residual stream behind the terms.

    References:
        Elhage et al. 2021, A mathematical framework for transformer circuits.
    """
    late = [address for address in edited_taps(model.body) if address[0] in _BEHIND_THE_TERMS]
    if late:
        raise ValueError(
            f"the edit at {describe(late)} changes the residual stream behind the components, which then do not sum to "
            "the logits; edit z, mlp_post or mlp_out instead, or attribute the unedited model"
        )
    tokens, valid = prepare(model, prompts, mask)
    measure = bind_metric(metric, model, len(tokens))
    if not isinstance(measure, LogitDiff):
        raise ValueError("only a logit difference is a sum over components; pass ji.logit_diff(right, wrong)")
    architecture = model.architecture
    length = bucket(tokens.shape[1], architecture.context if architecture.learned_positions else None)
    step = min(max(1, batch_size), len(tokens))
    body, pairs = compiled_form(_without_softcap(model.body)), np.asarray(measure.tokens)
    tables = []
    for first in range(0, len(tokens), step):
        part = slice(first, first + step)
        count = len(tokens[part])
        ids, held = pad_rows(tokens[part], valid[part], step, length)
        pair = np.pad(pairs[part], ((0, step - count), (0, 0)), mode="edge")
        total, terms = _split(body, ids, held, pair, architecture=architecture)
        tables.append(_table(np.asarray(total)[:count], {name: np.asarray(x) for name, x in terms.items()}, first))
    of = "logit_diff" if architecture.logit_softcap is None else "logit_diff_before_softcap"
    return pl.concat(tables).with_columns(of=pl.lit(of)).select(*_COLUMNS)


_COMPONENTS = ("embed", "positions", "head", "attn_bias", "mlp", "norm_bias")
_COLUMNS = ("prompt", "component", "layer", "head", "contribution", "of", "logit_diff", "residual")


def _without_softcap(body: pz.nn.Layer) -> pz.nn.Layer:
    last = pz.select(body).at_instances_of(blocks.Unembedding)
    return last.apply(lambda unembedding: dataclasses.replace(unembedding, softcap=None))


@functools.partial(jax.jit, static_argnames="architecture")
def _split(
    body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, pair: jax.Array, *, architecture: Architecture
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The logit difference [batch], and its terms, [batch], [layer, batch] or [layer, batch, head]."""
    sites = (Site("embed"), Site("z"), Site("mlp_out"), Site("resid_post", (architecture.layers - 1,)))
    logits, reads = forward_pass(body, tokens, mask, sites=sites, logits="last")
    assert logits is not None
    total = jnp.take_along_axis(logits, pair, axis=1) @ jnp.array([1.0, -1.0])
    seen = {address: array[:, -1].astype(jnp.float32) for address, array in reads.items()}
    weights = {name: array.astype(jnp.float32) for name, array in read_weights(body).items()}
    unembed = weights["W_E" if architecture.tied else "W_U"]
    direction = unembed[pair[:, 0]] - unembed[pair[:, 1]]
    last = seen["resid_post", architecture.layers - 1]
    into = _in_front_of_norm(direction, weights["ln_final.w"], last, architecture)
    terms = {"embed": _dot(into, seen["embed", None])}
    if architecture.learned_positions:
        terms["positions"] = _dot(into, weights["W_pos"][mask.sum(axis=1) - 1])
    if "ln_final.b" in weights:
        terms["norm_bias"] = direction @ weights["ln_final.b"]
    layers = range(architecture.layers)
    attention = [_attention(into, seen["z", layer], weights, f"blocks.{layer}.", architecture) for layer in layers]
    terms |= {name: jnp.stack([part[name] for part in attention]) for name in attention[0]}
    return total, terms | {"mlp": jnp.stack([_dot(into, seen["mlp_out", layer]) for layer in layers])}


def _attention(
    into: jax.Array, z: jax.Array, weights: Mapping[str, jax.Array], prefix: str, architecture: Architecture
) -> dict[str, jax.Array]:
    """What the heads [batch, head] and b_O [batch] contribute, with z [batch, head, projection]."""
    output, bias = weights[f"{prefix}W_O"], weights.get(f"{prefix}b_O")
    if architecture.post_norms:
        out = jnp.einsum("bhp,ehp->be", z, output) + (0 if bias is None else bias)
        into = _in_front_of_norm(into, weights[f"{prefix}ln_attn_post.w"], out, architecture)
    terms = {"head": jnp.einsum("be,ehp,bhp->bh", into, output, z)}
    return terms if bias is None else terms | {"attn_bias": into @ bias}


def _in_front_of_norm(direction: jax.Array, gain: jax.Array, x: jax.Array, architecture: Architecture) -> jax.Array:
    """The direction [batch, embedding] that reads from a norm's input `x` what `direction` reads from its output."""
    turned = direction * (gain + architecture.norm_offset)
    if architecture.norm == "layer":
        turned -= turned.mean(axis=-1, keepdims=True)
        x = x - x.mean(axis=-1, keepdims=True)
    return turned / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + architecture.norm_eps)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.sum(left * right, axis=-1)


def _table(total: np.ndarray, terms: Mapping[str, np.ndarray], first: int) -> pl.DataFrame:
    """The rows of some prompts, the first of which has the number `first`."""
    rows = []
    for number, value in enumerate(total):
        for component in filter(terms.__contains__, _COMPONENTS):
            array = terms[component]
            values = array[number] if array.ndim == 1 else array[:, number]
            for at, contribution in np.ndenumerate(values):
                layer, head = (*at, None, None)[:2]
                rows.append((first + number, component, layer, head, float(contribution), float(value)))
    schema = {"prompt": pl.Int64, "component": pl.String, "layer": pl.Int64, "head": pl.Int64}
    schema |= {"contribution": pl.Float64, "logit_diff": pl.Float64}
    summed = pl.col("contribution").sum().over("prompt")
    return pl.DataFrame(rows, schema, orient="row").with_columns(residual=pl.col("logit_diff") - summed)

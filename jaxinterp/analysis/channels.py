r"""Channels between layers: how well what a head writes drives the gates of some MLP units.

A gated unit `i` has the activation $f(g_i \cdot x) \, (u_i \cdot x)$ with the model's nonlinearity $f$. A head that
wrote `o` would by itself set it to $f(g_i \cdot o) \, (u_i \cdot o)$: its *drive*. What is taken for `o` makes the
score: a diagonal in the weights, or the mean of what the head really writes. `overlap` asks no more than how far what
heads can write and what units read are the same directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxinterp.analysis.composition import head_factors, read_through
from jaxinterp.analysis.units import Unit
from jaxinterp.models.blocks import ACTIVATIONS
from jaxinterp.models.language_model import LanguageModel


def receptive_fields(
    model: LanguageModel, units: Sequence[Unit], *, norm: bool = True, scales: Mapping[int, float] | None = None
) -> np.ndarray:
    """What units read.

    Args:
        model: The model; edits are not weights and are left out.
        units: Units of its gated MLPs.
        norm: Whether the gain of the norm in front of the MLP is folded in, so that they read the residual stream
            over the norm's denominator.
        scales: Layer -> denominator of that norm, to fold it in too.

    Returns:
        [unit, 2, embedding], the row of the gate and that of the linear branch.

    Raises:
        ValueError: The MLPs have no gate, there are no units, or one does not exist.
    """
    architecture, weights = model.architecture, model.weights()
    if not architecture.gated:
        raise ValueError(f"{model.source} has MLPs without a gate; channels into gated units need a model with them")
    if not units:
        raise ValueError("there are no units to drive; choose at least one")
    for layer, unit in units:
        if not (0 <= layer < architecture.layers and 0 <= unit < architecture.neurons):
            raise ValueError(
                f"there is no unit {unit} of layer {layer}; this model has {architecture.layers} layers of "
                f"{architecture.neurons} units"
            )
    fields = np.zeros((len(units), 2, architecture.embedding), np.float32)
    for layer in dict.fromkeys(layer for layer, _ in units):
        here = [place for place, (own, _) in enumerate(units) if own == layer]
        chosen = np.array([units[place][1] for place in here])
        rows = jnp.stack([weights[f"blocks.{layer}.{name}"][chosen] for name in ("W_gate", "W_in")], axis=1)
        rows = rows.astype(jnp.float32)
        if norm:
            rows = read_through(rows, weights[f"blocks.{layer}.ln_mlp.w"], model)
        fields[here] = np.asarray(rows) / (1.0 if scales is None else scales[layer])
    return fields


def weight_diagonals(model: LanguageModel) -> np.ndarray:
    """The diagonal of `W_V W_O` of every head, in plain weights: no norm's gain and no bias.

    It stands for what a head writes in the authors' code. It depends on no text and on the basis of the residual
    stream: turned into another basis, the same head has another diagonal.

    Args:
        model: The model; edits are not weights and are left out.

    Returns:
        [layer, head, embedding].

    References:
        Lee et al., 2025, "The geometry of self-verification in a task-specific reasoning model", arXiv:2504.14379.
    """
    weights, architecture = model.weights(), model.architecture
    group = architecture.heads // architecture.kv_heads
    diagonals = []
    for layer in range(architecture.layers):
        values = jnp.repeat(weights[f"blocks.{layer}.W_V"].astype(jnp.float32), group, axis=0)
        outputs = weights[f"blocks.{layer}.W_O"].astype(jnp.float32)
        diagonals.append(jnp.einsum("hpe,ehp->he", values, outputs))
    return np.asarray(jnp.stack(diagonals))


def written(model: LanguageModel, z: np.ndarray) -> np.ndarray:
    """What heads add to the residual stream, from their weighted values.

    Args:
        model: The model; edits are not weights and are left out.
        z: [layer, ..., head, projection], such as a mean of the site `z` over texts.

    Returns:
        [layer, ..., head, embedding], as at the site `head_out`.
    """
    weights = model.weights()
    return np.stack(
        [
            np.einsum("...hp,ehp->...he", array, np.asarray(weights[f"blocks.{layer}.W_O"], np.float32))
            for layer, array in enumerate(z)
        ]
    )


def drive(
    model: LanguageModel, outputs: np.ndarray, fields: np.ndarray, unit_layers: Sequence[int] | None = None
) -> np.ndarray:
    r"""How strongly each head by itself would drive some units.

    The score of head `j` is $\frac{1}{N} \sum_i f(g_i \cdot o_j) \, (u_i \cdot o_j)$ over the `N` units `i`.

    Args:
        model: Its nonlinearity is `f`.
        outputs: What heads write, `o`, [layer, head, embedding].
        fields: As from `receptive_fields`, [unit, 2, embedding].
        unit_layers: Layer of each unit, to average over those that stand behind the head only, its own block's among
            them; by default over all.

    Returns:
        [layer, head]; 0 for a head with no unit behind it.
    """
    gate, linear = np.moveaxis(np.einsum("lhe,uke->lhuk", outputs, fields), -1, 0)
    bend = ACTIVATIONS[model.architecture.activation]
    return _mean_behind(np.asarray(bend(jnp.asarray(gate))) * linear, unit_layers)


def overlap(model: LanguageModel, fields: np.ndarray, unit_layers: Sequence[int] | None = None) -> np.ndarray:
    r"""How much of what units read lies in what each head can write, whatever the text.

    With $R_i = [g_i; u_i]$ the score of head `j` is the mean over units of
    $\lVert R_i W_{OV}^j \rVert_F / (\lVert R_i \rVert_F \lVert W_{OV}^j \rVert_F)$, as composition scores of heads are.

    Args:
        model: The model; edits are not weights and are left out.
        fields: As from `receptive_fields`, [unit, 2, embedding].
        unit_layers: As in `drive`.

    Returns:
        [layer, head], in [0, 1].

    References:
        Elhage et al. 2021, A mathematical framework for transformer circuits.
    """
    scores = []
    sizes = np.linalg.norm(fields, axis=(1, 2))
    for layer in range(model.architecture.layers):
        factors = head_factors(model, [layer])
        values, outputs = factors["V"][0], factors["O"][0]
        within = jnp.einsum("hpe,hqe->hpq", values, values)
        through = jnp.einsum("uke,hep->hukp", fields, outputs)
        product = jnp.einsum("hukp,hpq,hukq->hu", through, within, through)
        whole = jnp.einsum("hep,hpq,heq->h", outputs, within, outputs)
        product, whole = (np.sqrt(np.maximum(np.asarray(array), 0)) for array in (product, whole))
        size = whole[:, None] * sizes
        scores.append(np.divide(product, size, out=np.zeros_like(product), where=size > 0))
    return _mean_behind(np.stack(scores), unit_layers)


def _mean_behind(values: np.ndarray, unit_layers: Sequence[int] | None) -> np.ndarray:
    """Means of [layer, head, unit] over the units that stand in the head's layer or a later one, [layer, head]."""
    if unit_layers is None:
        return values.mean(axis=-1)
    behind = np.asarray(unit_layers) >= np.arange(len(values))[:, None]
    count = behind.sum(axis=1)[:, None]
    total = np.einsum("lhu,lu->lh", values, behind)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)

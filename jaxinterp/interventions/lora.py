"""Low-rank edits of weights (LoRA): few numbers beside the frozen weights, to be trained, merged or saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.low_rank import MATRICES, LowRank, Weight, exchange_weights, find_low_rank, name_of

Numbers = dict[str, dict[str, jax.Array]]
"""Weight name -> `{"A": [rank, inputs], "B": [outputs, rank]}`."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """A change of one weight, by two thin matrices and a factor: $s B A$.

    Attributes:
        down: `A`, [rank, inputs], the weight's input axes in order.
        up: `B`, [outputs, rank], the weight's output axes in order.
        scale: `s`.
    """

    down: Any
    up: Any
    scale: float


def lora(
    model: LanguageModel,
    targets: Iterable[str] = ("W_Q", "W_V"),
    layers: Iterable[int] | None = None,
    *,
    rank: int = 8,
    alpha: float | None = None,
    key: jax.Array,
) -> LanguageModel:
    r"""Puts a low-rank term, to be trained, beside some weights.

    Each chosen weight `W` acts as $W + (\alpha / r) B A$ from now on. `A` is drawn uniformly from
    $\pm 1 / \sqrt{n}$ for `n` inputs and `B` is zero, so that the logits are those of the model until it is trained by
    `jaxinterp.training.adapters.train_lora`. Keys and values have their own, smaller weights where queries share them.

    `model.weights()` are the frozen ones, edits aside, and so is what `ji.save`, `ji.W_OV` and their like see of them;
    for the changed weights, `ji.merge_lora` first.

    Args:
        model: The model; it stays as it is.
        targets: Weights, among `W_Q W_K W_V W_O W_gate W_in W_out`.
        layers: Blocks, negative ones counted from the end; by default all.
        rank: `r`, the rank of the change; no larger than either side of any of the weights.
        alpha: The factor on the change is `alpha / rank`; by default 1.
        key: Typed key; a weight's draw does not depend on which others are chosen.

    Returns:
        The edited model. The factors are float32 whatever the model's dtype.

    Raises:
        ValueError: There is no such weight or layer, or the rank does not fit.

    Examples:
        >>> import jaxinterp as ji
        >>> from jaxinterp.models.toy import toy
        >>> edited = lora(toy(), ["W_K"], [1], rank=2, key=jax.random.key(0))
        >>> {name: sorted(numbers) for name, numbers in lora_numbers(edited).items()}
        {'blocks.1.W_K': ['A', 'B']}

    References:
        Hu et al., 2021, "LoRA: low-rank adaptation of large language models", arXiv:2106.09685.
    """
    architecture = model.architecture
    chosen = [(layer, name) for layer in _layers(architecture, layers) for name in _targets(model, targets)]
    order = list(architecture.weights())
    factors = {}
    for layer, name in chosen:
        outputs, inputs = sides(architecture, name)
        _check_rank(rank, layer, name, outputs, inputs)
        label = f"blocks.{layer}.{name}"
        bound = math.prod(inputs.values()) ** -0.5
        own = jax.random.fold_in(key, order.index(label))
        down = jax.random.uniform(own, (rank, *inputs.values()), jnp.float32, -bound, bound)
        up = jnp.zeros((*outputs.values(), rank), jnp.float32)
        factors[label] = Factors(down, up, 1.0 if alpha is None else alpha / rank)
    return add_factors(model, factors)


def add_factors(model: LanguageModel, factors: Mapping[str, Factors]) -> LanguageModel:
    """Puts given low-rank terms beside weights.

    Args:
        model: The model; it stays as it is. Terms that its weights have already stay below the new ones.
        factors: Weight name, such as `blocks.3.W_Q` -> its change.

    Returns:
        The edited model.

    Raises:
        ValueError: The model's tree has no such weight.
    """
    left = set(factors)

    def change(weight: Weight) -> Weight:
        if name_of(weight) not in factors:
            return weight
        left.discard(name_of(weight))
        own = factors[name_of(weight)]
        outputs, inputs = sides(model.architecture, name_of(weight).rsplit(".", 1)[-1])
        return LowRank(
            weight,
            pz.nx.wrap(jnp.asarray(own.down), axes.RANK, *inputs),
            pz.nx.wrap(jnp.asarray(own.up), *outputs, axes.RANK),
            pz.nx.wrap(jnp.asarray(own.scale, jnp.float32)),
        )

    edited = model.with_body(exchange_weights(model.body, change))
    if left:
        raise ValueError(f"the tree of {model.source} has no {min(left)}; load a decoder to edit its weights")
    return edited


def sides(architecture: Architecture, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """The axes of a block's matrix.

    Args:
        architecture: What the model is made of.
        name: One of `W_Q W_K W_V W_O W_gate W_in W_out`.

    Returns:
        Output axes and input axes, each {axis: size} in storage order.

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> sides(toy().architecture, "W_O")
        ({'embedding': 32}, {'head': 4, 'projection': 8})
    """
    sizes = list(architecture.block_weights()[name].items())
    inputs = 2 if name == "W_O" else 1
    return dict(sizes[:-inputs]), dict(sizes[-inputs:])


def merge_lora(model: LanguageModel) -> LanguageModel:
    """Adds all low-rank terms to the weights that they stand beside.

    Args:
        model: A model with such edits; it stays as it is.

    Returns:
        A model of plain weights with the same logits, up to rounding to the weights' dtype; other edits stay.

    Raises:
        ValueError: There is nothing to merge.
    """
    require_low_rank(model)

    def change(weight: Weight) -> Weight:
        if not isinstance(weight, LowRank):
            return weight
        plain = weight.base
        while isinstance(plain, LowRank):
            plain = plain.base
        return dataclasses.replace(plain, value=weight.value)

    merged = model.with_body(exchange_weights(model.body, change))
    return dataclasses.replace(merged, source=f"{model.source}, changed by LoRA")


def lora_numbers(model: LanguageModel) -> Numbers:
    """The numbers of a model's low-rank edits, such as an optimiser takes.

    Args:
        model: A model with such edits; where a weight has several, the last one made counts.

    Returns:
        Weight name -> `{"A": [rank, inputs], "B": [outputs, rank]}`.

    Raises:
        ValueError: There are no such edits.
    """
    found = require_low_rank(model)
    return {name: {"A": weight.down.data_array, "B": weight.up.data_array} for name, weight in found.items()}


def with_lora_numbers(model: LanguageModel, numbers: Mapping[str, Mapping[str, Any]]) -> LanguageModel:
    """Exchanges the numbers of low-rank edits.

    Args:
        model: A model with such edits; it stays as it is.
        numbers: As `lora_numbers` gives them, for some or all of the weights.

    Returns:
        The model with these numbers; differentiable in them.

    Raises:
        ValueError: A weight has no low-rank edit, or numbers have another shape than the ones they replace.
    """
    found = require_low_rank(model)
    problems = [f"{name} has no low-rank edit" for name in numbers if name not in found]
    for name, own in numbers.items():
        shapes = {"A": found[name].down.data_array.shape, "B": found[name].up.data_array.shape} if name in found else {}
        problems += [
            f"{part} of {name} has shape {list(jnp.shape(own[part]))} instead of {list(shape)}"
            for part, shape in shapes.items()
            if jnp.shape(own[part]) != shape
        ]
    if problems:
        raise ValueError(f"{'; '.join(problems)}; pass what ji.lora_numbers gave for this model")

    def change(weight: Weight) -> Weight:
        if not isinstance(weight, LowRank) or name_of(weight) not in numbers:
            return weight
        own = numbers[name_of(weight)]
        down, up = (
            dataclasses.replace(old, data_array=jnp.asarray(own[part]))
            for old, part in ((weight.down, "A"), (weight.up, "B"))
        )
        return dataclasses.replace(weight, down=down, up=up)

    return model.with_body(exchange_weights(model.body, change))


def require_low_rank(model: LanguageModel) -> dict[str, LowRank]:
    """The low-rank edits of a model.

    Args:
        model: The model.

    Returns:
        Weight name -> the weight with its edit.

    Raises:
        ValueError: There are none.
    """
    found = find_low_rank(model.body)
    if not found:
        raise ValueError(f"{model.source} has no low-rank edit; make one with ji.lora or ji.load_lora")
    return found


def _targets(model: LanguageModel, targets: Iterable[str]) -> list[str]:
    names = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
    own = [name for name in MATRICES if name in model.architecture.block_weights()]
    unknown = [name for name in names if name not in own]
    if unknown or not names:
        problem = f"{unknown[0]!r} cannot have a low-rank edit" if unknown else "no weight was chosen"
        raise ValueError(f"{problem}; choose among the block matrices of {model.source}, {', '.join(own)}")
    return names


def _layers(architecture: Architecture, layers: Iterable[int] | None) -> list[int]:
    count = architecture.layers
    chosen = list(range(count)) if layers is None else list(layers)
    outside = [layer for layer in chosen if not -count <= layer < count]
    if outside or not chosen:
        problem = f"there is no layer {outside[0]}" if outside else "no layer was chosen"
        raise ValueError(f"{problem}; the model has layers 0..{count - 1}")
    return list(dict.fromkeys(layer % count for layer in chosen))


def _check_rank(rank: int, layer: int, name: str, outputs: Mapping[str, int], inputs: Mapping[str, int]) -> None:
    ins, outs = math.prod(inputs.values()), math.prod(outputs.values())
    if not 1 <= rank <= min(ins, outs):
        raise ValueError(
            f"a rank of {rank} does not fit {name} of layer {layer}, which maps {ins} numbers to {outs}; "
            f"choose 1 to {min(ins, outs)}"
        )

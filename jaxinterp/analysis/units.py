r"""MLP units: what each of them writes, how near that is to a direction, and which tokens it raises.

A gated MLP is a sum over units, $\sum_i a_i v_i$: the activation $a_i$ (site `mlp_post`) depends on the text and can
have either sign, the value vector $v_i$ is column $i$ of `W_out`. So a unit can write $v_i$ or $-v_i$.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from jaxinterp.interventions.ablate import ablate
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites import selectors
from jaxinterp.sites.positions import Positions

Unit = tuple[int, int]
"""Layer and index in the layer, both from 0."""


def value_vectors(model: LanguageModel) -> np.ndarray:
    """What each unit writes into the residual stream where its activation is 1.

    Args:
        model: The model; edits are not weights and are left out.

    Returns:
        Float32 [layer, unit, embedding]. Where a norm stands behind the MLP, its gain is folded in and its denominator
        left out.
    """
    weights, architecture = model.weights(), model.architecture
    vectors = []
    for layer in range(architecture.layers):
        own = np.asarray(weights[f"blocks.{layer}.W_out"], np.float32).T
        if architecture.post_norms:
            own = own * (np.asarray(weights[f"blocks.{layer}.ln_mlp_post.w"], np.float32) + architecture.norm_offset)
        vectors.append(own)
    return np.stack(vectors)


def cosines(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Cosine of every value vector with every direction; 0 where one of the two is 0.

    Args:
        vectors: [layer, unit, embedding].
        directions: [..., embedding].

    Returns:
        [..., layer, unit].
    """
    return np.tensordot(_unit(directions), _unit(vectors), axes=(-1, -1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def highest(scores: np.ndarray, count: int, first: int = 0) -> list[Unit]:
    """The units with the highest scores of each layer.

    Args:
        scores: [layer, unit].
        count: How many in each layer.
        first: First layer that counts.

    Returns:
        Layer by layer, the highest first.

    >>> highest(np.array([[0.1, 0.2, 0.3], [0.9, 0.7, 0.8]]), 2)
    [(0, 2), (0, 1), (1, 0), (1, 2)]
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [(layer, int(unit)) for layer in range(first, len(scores)) for unit in order[layer]]


def pooled_ranking(cosines: np.ndarray, count: int, most: int, first: int = 0) -> list[Unit]:
    """Units ranked by their largest cosine with the direction of their own layer or of a later one.

    Args:
        cosines: [direction's layer, layer, unit].
        count: How many units each pair of layers contributes.
        most: How many units are kept of all.
        first: First layer whose direction counts; units of all layers up to it do.

    Returns:
        Distinct units, the highest first.

    >>> pooled_ranking(np.array([[[0.1, 0.9], [1.0, 1.0]], [[0.2, 0.1], [0.5, 0.4]]]), 1, 2)
    [(0, 1), (1, 0)]
    """
    best: dict[Unit, float] = {}
    for direction in range(first, len(cosines)):
        for unit in highest(cosines[direction, : direction + 1], count):
            best[unit] = max(best.get(unit, -1.0), float(cosines[direction][unit]))
    return sorted(best, key=lambda unit: -best[unit])[:most]


def top_tokens(
    model: LanguageModel, vectors: np.ndarray, count: int, *, gain: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens whose unembedding rows have the largest dot product with a vector.

    Args:
        model: The model.
        vectors: [vector, embedding].
        count: How many tokens.
        gain: Whether the vector passes the final norm first, but for its denominator, which would change no order.

    Returns:
        Token ids [vector, count], the highest first, and their products.
    """
    weights, architecture = model.weights(), model.architecture
    table = np.asarray(weights["W_E" if architecture.tied else "W_U"], np.float32)
    if gain:
        table = table * (np.asarray(weights["ln_final.w"], np.float32) + architecture.norm_offset)
        table = table - table.mean(axis=-1, keepdims=True) if architecture.norm == "layer" else table
    ids, values = [], []
    for vector in vectors:
        products = table @ vector
        best = np.argsort(-products, kind="stable")[:count]
        ids.append(best)
        values.append(products[best])
    return np.stack(ids), np.stack(values)


def ablate_units(model: LanguageModel, units: Iterable[Unit], at: Positions | None = None) -> LanguageModel:
    """Sets the activations of some units to 0.

    Args:
        model: The model; it stays as it is.
        units: Which; none leaves the model as it is.
        at: At which tokens; by default all.

    Returns:
        The edited model.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, unit in units:
        by_layer.setdefault(layer, []).append(unit)
    sites = [selectors.unit(layer, *own) for layer, own in sorted(by_layer.items())]
    return ablate(model, *sites, at=at) if sites else model


def draw_units(
    size: int, layers: Sequence[int], count: int, outside: Collection[Unit], rng: np.random.Generator
) -> list[Unit]:
    """As many random units of each layer, none of which is among some others.

    Args:
        size: Units in a layer.
        layers: Which layers.
        count: How many of each.
        outside: Units that are not drawn.
        rng: Source of randomness.

    Returns:
        Distinct units, in order of layer.

    Raises:
        ValueError: A layer has too few others.
    """
    drawn: list[Unit] = []
    for layer in layers:
        pool = np.array([unit for unit in range(size) if (layer, unit) not in outside], int)
        if len(pool) < count:
            raise ValueError(f"{len(pool)} of {size} units of layer {layer} are left to draw {count} from; use fewer")
        drawn += [(layer, int(unit)) for unit in np.sort(rng.choice(pool, count, replace=False))]
    return drawn


def label(unit: Unit) -> str:
    """A unit as text.

    >>> label((6, 512))
    'L6.U512'
    """
    return f"L{unit[0]}.U{unit[1]}"

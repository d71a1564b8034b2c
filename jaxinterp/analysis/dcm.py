"""Desiderata-based component masking: which singular vectors of the activations an interchange has to move."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxinterp.analysis.interchange import Exchange, evaluate, group_names
from jaxinterp.analysis.pairs import Pairs
from jaxinterp.analysis.subspaces import (
    Course,
    Lessons,
    Objective,
    descend,
    draw_rows,
    gather,
    over_cells,
    prepare_material,
    stream_taps,
)
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site, resid_post


@dataclasses.dataclass(frozen=True)
class Masks:
    """What `fit_dcm` found.

    Attributes:
        masks: Weights in [0, 1] before rounding, [layer, penalty, component]; with `up_to`
            [layer, penalty, block, component].
        bases: Layer -> orthonormal rows, [component, width].
        layers: The layers.
        penalties: The penalties.
        losses: Loss before each step, in nats, [layer, penalty, step].
        table: One row for each layer, `penalty`, `subspace`, `split` (`"train"`, on which a layer or penalty may be
            chosen, and `"held out"`) and `answer`: the `rank` that is exchanged, `n`, `hits`, `iia` with its 95 %
            Wilson interval. The subspaces are `"mask"` (rounded), `"random mask"` (as many components, drawn at
            random), `"shuffled targets"` (learned with the expected tokens shuffled among the training pairs),
            `"all components"`, and `"everything"` (the whole vector is exchanged).
    """

    masks: np.ndarray
    bases: Mapping[int, np.ndarray]
    layers: tuple[int, ...]
    penalties: tuple[float, ...]
    losses: np.ndarray
    table: pl.DataFrame


def fit_dcm(
    model: LanguageModel,
    pairs: Pairs,
    site: Site | None = None,
    group: str | None = None,
    *,
    basis: Mapping[int, Any] | None = None,
    components: int | None = None,
    centred: bool = False,
    penalties: Sequence[float] = (0.1,),
    objective: Objective = "logit",
    up_to: bool = False,
    held: Sequence[str] | str = (),
    held_up_to: Sequence[str] | str = (),
    epochs: int = 1,
    batch_size: int = 1,
    learning_rate: float = 0.1,
    held_out: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> Masks:
    r"""Learns, for all layers and penalties at once, how few singular vectors an interchange needs.

    With $v_1 \dots v_k$ the singular vectors of activations and a mask $m \in [0, 1]^k$, which starts at 1, the
    interchange moves $h$ by $\sum_i m_i^2 v_i v_i^\top (h' - h)$. Adam minimises the mean of minus the expected
    token's logit over a batch, plus $\lambda \lVert m \rVert_1$, and $m$ is clipped to [0, 1] after each step. In the
    end it is rounded; the number of ones is the rank. A random half of the pairs is for training, the other for
    evaluation.

    Args:
        model: The unedited model; its weights stay as they are.
        pairs: Pairs, such as `make_pairs` makes.
        site: Where; by default the residual stream after each block.
        group: The group of `pairs.positions` to exchange; it may be left out where there is only one.
        basis: Layer -> orthonormal rows, as many in each, such as `singular_vectors` gives for prompts of your own
            (with `up_to` for every block). By default the singular vectors of both prompts of the training pairs, at
            the tokens of the group.
        components: How many singular vectors there shall be; by default as many as can be.
        centred: Whether the mean is subtracted before they are computed (principal components); by default not.
        penalties: Values of $\lambda$.
        objective: `"logit"`, the raw logit, or `"log_prob"`.
        up_to: Whether all blocks up to the layer are edited, each with a mask of its own, learned together.
        held: Groups of tokens to hold at their clean values at this site, in all blocks.
        held_up_to: Groups of tokens to hold there in the blocks up to the layer.
        epochs: How often every training pair is seen.
        batch_size: Pairs in each step.
        learning_rate: Of Adam.
        held_out: Fraction of the pairs that is kept for evaluation.
        seed: Of the split, the batches and the controls.
        progress: Whether to show a bar on stderr during the evaluation.

    Returns:
        The masks, and how well they and the controls do on either split.

    Raises:
        ValueError: A group or site does not exist or holds no one vector for each token, the basis lacks a layer or is
            not orthonormal, there is no penalty, or there are too few pairs.

    References:
        Prakash et al., 2025, "Language models use lookbacks to track beliefs", arXiv:2505.14685; Davies et al., 2023,
        "Discovering variable binding circuitry with desiderata", arXiv:2307.03637.
    """
    where = site or resid_post()
    addresses, layers, axis, width = stream_taps(model, where)
    group = pairs.group(group)
    held, held_up_to = group_names(pairs, held), group_names(pairs, held_up_to)
    if not len(penalties):
        raise ValueError("no penalty was given; pass at least one, such as penalties=(0.1,)")
    train, test = pairs.split(seed, 1 - held_out)
    blocks = len(addresses)
    needed = list(range(max(layers) + 1)) if up_to else layers
    if basis is None:
        wanted = [addresses[block] for block in needed]
        sides = (train.clean, train.clean_mask, 0), (train.counterfactual, train.counterfactual_mask, 1)
        read = [gather(model, ids, mask, wanted, train.positions[group][..., side]) for ids, mask, side in sides]
        vectors = np.concatenate([part.reshape(len(needed), -1, width) for part in read], axis=1)
        basis = dict(zip(needed, singular_vectors(vectors, components, centred), strict=True))
    fixed = _stack(basis, needed, blocks, width)
    count = fixed.shape[1]
    rng = np.random.default_rng(seed)
    batch = min(batch_size, len(train))
    rows = draw_rows(len(train), batch, -(-epochs * len(train) // batch), rng)
    expected = np.stack([train.expected, train.expected[rng.permutation(len(train))]])
    # Cells: layer, penalty, and whether the targets are shuffled.
    shape = (len(layers), len(penalties), 2)
    below = np.arange(blocks) <= np.asarray(layers)[:, None]
    active = below if up_to else np.arange(blocks) == np.asarray(layers)[:, None]
    kept = np.zeros((len(layers), len(held) + len(held_up_to), blocks), bool)
    kept[:, : len(held)] = True
    kept[:, len(held) :] = below[:, None]
    start = np.repeat(active[..., None], count, axis=-1) if up_to else np.ones((len(layers), count))
    lessons = Lessons(
        jnp.asarray(over_cells(rows[None, None, None], shape), jnp.int32),
        jnp.asarray(over_cells(expected[None, None], shape), jnp.int32),
        jnp.asarray(over_cells(active[:, None, None], shape)),
        jnp.asarray(over_cells(kept[:, None, None], shape)),
        jnp.asarray(over_cells(np.asarray(penalties, np.float32)[None, :, None], shape)),
    )
    course = Course(addresses, axis, _masked, objective, learning_rate, bounded=True)
    material = prepare_material(model, train, addresses, group, (*held, *held_up_to))
    parameters = over_cells(start[:, None, None].astype(np.float32), shape)
    learned, losses = descend(model, material, parameters, jnp.asarray(fixed), lessons, course)
    masks = learned.reshape(*shape, *learned.shape[1:])
    exchanges = []
    for number, layer in enumerate(layers):
        for place, penalty in enumerate(penalties):
            found = np.rint(masks[number, place, 0])
            chosen: dict[str, np.ndarray | None] = {
                "mask": found,
                "random mask": rng.permuted(found, axis=-1),
                "shuffled targets": np.rint(masks[number, place, 1]),
                "all components": start[number].astype(np.float32),
                "everything": None,
            }
            for name, weights in chosen.items():
                rank = (layer + 1 if up_to else 1) * width if weights is None else int(weights.sum())
                labels = {"layer": layer, "penalty": float(penalty), "subspace": name, "rank": rank}
                by_layer = None if weights is None else _by_layer(weights, layer, up_to)
                own = None if weights is None else basis
                exchanges.append(Exchange(labels, where, layer, group, own, by_layer, up_to, held, held_up_to))
    table = evaluate(model, {"train": train, "held out": test}, exchanges, progress=progress)
    history = losses.reshape(*shape, -1)[:, :, 0]
    return Masks(masks[:, :, 0], basis, tuple(layers), tuple(map(float, penalties)), history, table)


def singular_vectors(activations: np.ndarray, components: int | None = None, centred: bool = False) -> np.ndarray:
    """Right singular vectors of activations, the largest first.

    Args:
        activations: [..., n, width].
        components: How many; by default all there are, the lesser of `n` and `width`.
        centred: Whether the mean over `n` is subtracted before.

    Returns:
        Orthonormal rows, [..., component, width].

    Raises:
        ValueError: More are asked for than there are.

    >>> abs(singular_vectors(np.array([[3.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), components=1)).round(3).tolist()
    [[1.0, 0.0]]
    """
    most = min(activations.shape[-2:])
    if components is not None and not 0 < components <= most:
        raise ValueError(f"there are {most} singular vectors of {activations.shape[-2]} activations, not {components}")
    shifted = activations - activations.mean(axis=-2, keepdims=True) if centred else activations
    rows = np.linalg.svd(shifted.astype(np.float64), full_matrices=False)[2]
    return rows[..., :components, :].astype(np.float32)


def _masked(own: jax.Array, fixed: jax.Array) -> tuple[jax.Array, jax.Array]:
    return fixed, own if own.ndim == 2 else own[None]


def _stack(basis: Mapping[int, Any], needed: Sequence[int], blocks: int, width: int) -> np.ndarray:
    """The rows of all blocks, [block, component, width]; zeros in blocks where nothing is exchanged."""
    missing = [layer for layer in needed if layer not in basis]
    if missing:
        raise ValueError(f"the basis lacks layer {missing[0]}; it has {sorted(basis)}")
    shapes = {np.shape(basis[layer]) for layer in needed}
    if len(shapes) > 1 or len(shape := next(iter(shapes))) != 2 or shape[1] != width:
        raise ValueError(f"the basis has rows of shape {sorted(shapes)}; give [component, {width}] in every layer")
    stacked = np.zeros((blocks, *shape), np.float32)
    for layer in needed:
        stacked[layer] = basis[layer]
    return stacked


def _by_layer(weights: np.ndarray, layer: int, up_to: bool) -> dict[int, np.ndarray]:
    return {block: weights[block] for block in range(layer + 1)} if up_to else {layer: weights}

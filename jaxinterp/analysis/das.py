"""Distributed alignment search: the subspace in which a causal variable is, learned by gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxinterp.analysis.interchange import Exchange, evaluate
from jaxinterp.analysis.pairs import Pairs
from jaxinterp.analysis.subspaces import (
    Course,
    Lessons,
    descend,
    draw_rows,
    over_cells,
    prepare_material,
    stream_taps,
)
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site, resid_post


@dataclasses.dataclass(frozen=True)
class Alignment:
    """What `fit_das` found.

    Attributes:
        bases: Orthonormal rows of the learned subspaces, [layer, seed, component, width].
        layers: The layers.
        seeds: The seeds.
        losses: Mean negative log-probability of the expected token before each step, in nats, [layer, seed, step].
        table: One row for each layer, seed, `subspace` and `split` (`"train"`, on which a layer or seed may be chosen,
            and `"held out"`) and `answer`: `n`, `hits`, `iia` with its 95 % Wilson interval. The subspaces are
            `"learned"`, `"random labels"` (learned with the expected tokens shuffled among the training pairs),
            `"random subspace"` (not learned) and `"everything"` (the whole vector is exchanged; no seed).
    """

    bases: np.ndarray
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    losses: np.ndarray
    table: pl.DataFrame


def fit_das(
    model: LanguageModel,
    pairs: Pairs,
    site: Site | None = None,
    rank: int = 1,
    group: str | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 0.05,
    held_out: float = 0.5,
    split_seed: int = 0,
    progress: bool = True,
) -> Alignment:
    r"""Learns, for every layer and seed at once, the subspace whose interchange makes the model say what is expected.

    Of an orthogonal rotation only the `rank` directions that are exchanged matter. They are the $Q$ of the thin
    factorisation $A = Q R$ of a free matrix $A \in \mathbb{R}^{d \times k}$, so every step stays on orthonormal
    directions and the gradient goes through the factorisation; $A$ starts normal. The loss is the mean of
    $-\log p(y_i \mid x_i; h \leftarrow h + Q Q^\top (h'_i - h))$ over a batch of training pairs, minimised by Adam.
    A random half of the pairs is for training, the other for evaluation.

    All layers, seeds and the random-label control are one compiled step. It runs all blocks for each of them, since the
    layer is a number in it, but only the tokens from the first exchanged one on; as many run together as fit into
    `subspaces.MEMORY`.

    Args:
        model: The unedited model; its weights stay as they are.
        pairs: Pairs, such as `make_pairs` makes.
        site: Where; by default the residual stream after each block.
        rank: Directions to exchange, `k`.
        group: The group of `pairs.positions` to exchange; it may be left out where there is only one.
        seeds: Of the initial directions, of the batches and of the controls; one fit each.
        steps: Adam steps.
        batch_size: Pairs in each.
        learning_rate: Of Adam.
        held_out: Fraction of the pairs that is kept for evaluation.
        split_seed: Of the split.
        progress: Whether to show a bar on stderr during the evaluation.

    Returns:
        The subspaces, and how well they and the controls do on either split.

    Raises:
        ValueError: The rank exceeds the width, the site has no one vector for each token, or there are too few pairs.

    References:
        Geiger et al., 2023, "Finding alignments between interpretable causal variables and distributed neural
        representations", arXiv:2303.02536.
    """
    addresses, layers, axis, width = stream_taps(model, site or resid_post())
    group = pairs.group(group)
    if not 0 < rank <= width:
        raise ValueError(f"rank {rank} lies outside 1..{width}, the width of the site")
    if not seeds:
        raise ValueError("no seed was given; pass at least one, such as seeds=(0,)")
    train, test = pairs.split(split_seed, 1 - held_out)
    batch = min(batch_size, len(train))
    initial, rows, expected = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        initial.append([np.random.default_rng([seed, layer]).normal(size=(width, rank)) for layer in layers])
        rows.append(draw_rows(len(train), batch, steps, rng))
        expected.append([train.expected, train.expected[rng.permutation(len(train))]])
    # Cells: layer, seed, and whether the labels are random.
    shape = (len(layers), len(seeds), 2)
    start = np.broadcast_to(np.stack(initial, axis=1)[:, :, None], (*shape, width, rank))
    active = np.arange(len(addresses)) == np.asarray(layers)[:, None]
    lessons = Lessons(
        jnp.asarray(over_cells(np.asarray(rows)[None, :, None], shape), jnp.int32),
        jnp.asarray(over_cells(np.asarray(expected)[None], shape), jnp.int32),
        jnp.asarray(over_cells(active[:, None, None], shape)),
        jnp.zeros((int(np.prod(shape)), 0, len(addresses)), bool),
        jnp.zeros(int(np.prod(shape))),
    )
    course = Course(addresses, axis, _rotated, "log_prob", learning_rate, bounded=False)
    material = prepare_material(model, train, addresses, group)
    learned, losses = descend(model, material, over_cells(start, shape), jnp.zeros(()), lessons, course)
    bases = np.linalg.qr(learned.reshape(start.shape))[0].swapaxes(-1, -2)
    untrained = np.linalg.qr(start[:, :, 0])[0].swapaxes(-1, -2)
    exchanges = []
    where = site or resid_post()
    for number, layer in enumerate(layers):
        found: dict[tuple[str, int | None], np.ndarray | None] = {("everything", None): None}
        for place, seed in enumerate(seeds):
            found["learned", int(seed)] = bases[number, place, 0]
            found["random labels", int(seed)] = bases[number, place, 1]
            found["random subspace", int(seed)] = untrained[number, place]
        for (name, seed), basis in found.items():
            labels = {"layer": layer, "seed": seed, "subspace": name}
            exchanges.append(Exchange(labels, where, layer, group, basis))
    table = evaluate(model, {"train": train, "held out": test}, exchanges, progress=progress)
    kept = losses.reshape(*shape, steps)[:, :, 0]
    return Alignment(bases[:, :, 0], tuple(layers), tuple(int(seed) for seed in seeds), kept, table)


def _rotated(own: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.linalg.qr(own)[0].T[None], jnp.ones((1, own.shape[1]))

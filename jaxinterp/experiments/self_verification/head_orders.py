"""Heads in the order of a score: how well they drive units, and how many of them have to go before verdicts turn."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.analysis import channels, heads
from jaxinterp.analysis.heads import Head
from jaxinterp.analysis.units import Unit
from jaxinterp.experiments.self_verification import cases, head_removal
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.experiments.self_verification.head_removal import Removal
from jaxinterp.models.language_model import LanguageModel

SCORES: tuple[str, ...] = ("diag", "data at verdict", "data at result", "matrix")
"""The channel scores: the authors' own, and those that follow what heads write, or can write, in the model."""
ENOUGH = 0.9
"""The share of verdicts that has to turn."""

_LOG = logging.getLogger(__name__)


def score_heads(
    model: LanguageModel,
    chosen: Sequence[Unit],
    selection: Sequence[Case],
    read: Mapping[str, Mapping[str, np.ndarray]],
) -> list[np.ndarray]:
    """The channel scores of all heads.

    Args:
        model: The model.
        chosen: The units that are to be driven.
        selection: Cases of both verdicts.
        read: Place -> `z` and `ln_scale_mlp` in these cases, as from `cases.read`.

    Returns:
        [layer, head] for each of `SCORES`.
    """
    layers = [layer for layer, _ in chosen]
    plain = channels.receptive_fields(model, chosen, norm=False)
    scores = [channels.drive(model, channels.weight_diagonals(model), plain)]
    for place in cases.PLACES:
        scales = dict(enumerate(read[place]["ln_scale_mlp"].mean(axis=1).tolist()))
        fields = channels.receptive_fields(model, chosen, scales=scales)
        scores.append(channels.drive(model, difference(model, selection, read[place]["z"]), fields, layers))
    return [*scores, channels.overlap(model, channels.receptive_fields(model, chosen), layers)]


def difference(model: LanguageModel, selection: Sequence[Case], z: np.ndarray) -> np.ndarray:
    """What heads write where the verdict accepts, less what they write where it rejects.

    Args:
        model: The model.
        selection: Cases of both verdicts.
        z: The heads' weighted values in these cases, [layer, case, head, projection].

    Returns:
        Difference of the means over cases, [layer, head, embedding].
    """
    valid = np.array([case.valid for case in selection])
    return channels.written(model, z[:, valid].mean(axis=1) - z[:, ~valid].mean(axis=1))


def curves(
    model: LanguageModel,
    accepted: Sequence[Case],
    scores: Mapping[str, np.ndarray],
    pools: Mapping[str, Sequence[Head]],
    sizes: Mapping[str, Collection[int]],
    orders: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Takes more and more heads out, in each order of each pool.

    Args:
        model: The model.
        accepted: Cases whose verdict accepts.
        scores: Order -> [layer, head]; the highest goes first.
        pools: Name -> heads that are put in order.
        sizes: Name of a pool -> how many are taken out; those beyond its heads are left out.
        orders: Random orders of each pool.
        rng: Draws them.

    Returns:
        Rows of the stages `curve`, the share of verdicts that turn without the first `n_heads`, zeroed at all tokens,
        and `needed`: the first of these numbers that turns 90 % of them, with no value if none does. The same set in
        two orders is run once.
    """
    prefixes: list[tuple[dict[str, Any], tuple[Head, ...]]] = []
    for pool, members in pools.items():
        ordered: dict[tuple[str, int | None], list[Head]] = {
            (name, None): [head for head in heads.ranked(score) if head in set(members)]
            for name, score in scores.items()
        }
        for draw in range(orders):
            ordered["random", draw] = [members[index] for index in rng.permutation(len(members))]
        for (name, draw), order in ordered.items():
            labels = {"order": name, "pool": pool, "draw": draw, "control": draw is not None}
            prefixes += [(labels, tuple(order[:size])) for size in sizes[pool] if size <= len(order)]
    different = list(dict.fromkeys(tuple(sorted(some)) for _, some in prefixes))
    _LOG.info("%d sets of heads on %d cases", len(different), len(accepted))
    cells = head_removal.removal_cells([Removal("order", some) for some in different])
    margins = cases.values(cases.sweep(model, accepted, cells, cases.margin(model)), accepted)
    flipped = dict(zip(different, margins < 0, strict=True))
    rows: list[dict[str, Any]] = []
    needed: dict[tuple[Any, ...], dict[str, Any]] = {}
    for labels, some in prefixes:
        flips = cases.proportion(flipped[tuple(sorted(some))])
        about = {"heads": heads.label(some), "n_heads": len(some)}
        rows.append({"stage": "curve", "measure": "flips"} | labels | about | flips)
        first = needed.setdefault(tuple(labels.values()), {"stage": "needed", "measure": "heads"} | labels)
        if "value" not in first and flips["value"] >= ENOUGH:
            first |= {"value": float(len(some)), "heads": about["heads"]}
        first |= {"n_heads": len(some), "n": flips["n"]}
    return rows + list(needed.values())

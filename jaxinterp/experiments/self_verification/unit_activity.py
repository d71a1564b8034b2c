"""How active MLP units are where a verdict opens: where it accepts, where it rejects, and where heads are taken out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxinterp as ji
from jaxinterp.analysis import statistics
from jaxinterp.analysis.units import Unit
from jaxinterp.experiments.self_verification import cases, head_removal
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.experiments.self_verification.head_removal import Removal
from jaxinterp.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class UnitSet:
    """Units that are averaged.

    Attributes:
        name: What they are.
        units: Which; their layers count from 0.
        draw: Number of a random set.
    """

    name: str
    units: tuple[Unit, ...]
    draw: int | None = None


def measure(
    model: LanguageModel,
    accepted: Sequence[Case],
    rejected: Sequence[Case],
    sets: Sequence[UnitSet],
    removals: Sequence[Removal],
    seed: int,
) -> list[dict[str, Any]]:
    """Mean activations at the verdict's opening, and how far they fall without some heads.

    A fall is the mean activation where the verdict accepts, less the one without the heads, as a fraction of the
    difference between accepted and rejected: 1 where the units become as active as where the verdict rejects.

    Args:
        model: The model.
        accepted: Cases whose verdict accepts; in these the heads are taken out.
        rejected: As many cases whose verdict rejects.
        sets: Units; the first set is the one that random sets (those with a `draw`) are compared with.
        removals: Heads; those that are themselves a random draw are not combined with random units.
        seed: Of the bootstrap.

    Returns:
        Rows with `condition`, `units`, `measure`, `heads`, `n_heads`, `draw`, `value`, `low`, `high`, `n` and
        `control`. Random units have besides their own fall, all draws together, the fall as a fraction of how far the
        first set is apart: on average random units are hardly apart, so that their own fall says little.
    """
    clean, away = _activations(model, accepted, sets), _activations(model, rejected, sets)
    rows = [
        {"condition": condition, "units": one.name, "measure": "activation", "draw": one.draw}
        | {"control": one.draw is not None}
        | cases.mean(numbers[index], seed)
        for condition, numbers in (("accepted", clean), ("rejected", away))
        for index, one in enumerate(sets)
    ]
    random = [index for index, one in enumerate(sets) if one.draw is not None]
    for removal in removals:
        without = _activations(head_removal.take_out(model, removal), accepted, sets)
        about = {name: removal.labels[name] for name in ("condition", "heads", "n_heads")}
        for index, one in enumerate(sets):
            if None not in (one.draw, removal.draw):
                continue
            row = about | {"units": one.name, "draw": removal.draw if one.draw is None else one.draw}
            row["control"] = row["draw"] is not None
            rows.append(row | {"measure": "activation"} | cases.mean(without[index], seed))
            apart = index if one.draw is None else 0
            columns = np.stack([clean[index], without[index], clean[apart], away[apart]], axis=1)
            name = "fall" if one.draw is None else "fall over the gap of the first set"
            rows.append(row | {"measure": name} | fall(columns, seed))
        if random and removal.draw is None:
            means = [numbers[random].mean(axis=1) for numbers in (clean, without, clean, away)]
            row = about | {"units": "random, all draws", "control": True}
            rows.append(row | {"measure": "fall"} | fall(np.stack(means, axis=1), seed))
            means[2:] = [np.full(len(random), numbers[0].mean()) for numbers in (clean, away)]
            name = "fall over the gap of the first set"
            rows.append(row | {"measure": name} | fall(np.stack(means, axis=1), seed))
    return rows


def _activations(model: LanguageModel, some: Sequence[Case], sets: Sequence[UnitSet]) -> np.ndarray:
    """Means over the units of each set, [set, case]."""
    layers = sorted({layer for one in sets for layer, _ in one.units})
    posts = cases.read(model, some, [ji.mlp_post(*layers)])["mlp_post"]
    return np.stack([np.mean([posts[layers.index(at), :, unit] for at, unit in one.units], axis=0) for one in sets])


def fall(columns: np.ndarray, seed: int) -> dict[str, Any]:
    """First minus second column, as a fraction of third minus fourth, means each.

    Args:
        columns: [row, 4].
        seed: Of the bootstrap over rows.

    Returns:
        `value`, `low`, `high` and `n`; NaN where third and fourth are equal on average.

    >>> fall(np.array([[1.0, 0.25, 1.0, 0.0], [3.0, 0.75, 3.0, 0.0]]), 0)["value"]
    0.75
    """

    def fraction(rows: np.ndarray) -> float:
        first, second, third, fourth = rows.mean(axis=0)
        return float((first - second) / (third - fourth)) if abs(third - fourth) > 1e-9 else float("nan")

    low, high = statistics.bootstrap(columns, seed, fraction)
    return {"value": fraction(columns), "low": low, "high": high, "n": len(columns)}

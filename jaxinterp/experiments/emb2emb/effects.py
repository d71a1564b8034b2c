"""The numbers of the steering experiment on next words: dose and response, nulls, gates, ratios, the direct path."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxinterp.analysis.crossed_bootstrap import crossed_interval, crossed_means, crossed_ratio
from jaxinterp.experiments.emb2emb.groups import Group
from jaxinterp.experiments.emb2emb.vectors import MAIN, REMOVED, TRANSFERRED, Candidate, Side, make_push

Row: TypeAlias = dict[str, Any]
Trial: TypeAlias = tuple[Candidate, int, float, bool]
"""A vector, the index of its depth, its signed scale, and whether it takes the direct path."""

LEAST_COSINE = 0.3
"""Split-half cosine that a vector needs to count as one."""


@dataclasses.dataclass(frozen=True)
class Effects:
    """What every vector did to one behaviour.

    Attributes:
        doses: (vector, draw, depth, scale) -> change of the log-odds [text, pair].
        halves: (vector, draw, depth, whether on the direct path) -> half the change from minus to plus one unit.
    """

    doses: dict[tuple[str, int, int, float], np.ndarray]
    halves: dict[tuple[str, int, int, bool], np.ndarray]

    def means(self, vector: str, slot: int) -> np.ndarray:
        """Mean effects of all draws of a control, [draw]."""
        found = [
            values.mean() for (name, _, at, direct), values in self.halves.items() if name == vector and at == slot
        ]
        return np.array(found)


def measure(
    group: Group, taker: Side, tried: Sequence[Candidate], scales: Sequence[float], label: str
) -> dict[int, Effects]:
    """Adds every vector at every depth and scale.

    Controls are tried at plus and minus one unit, the vectors of interest at all scales and on the direct path.

    Args:
        group: The behaviours and their texts.
        taker: The model.
        tried: The vectors.
        scales: Lengths in units of the model's own vectors.
        label: Of the progress bar.

    Returns:
        Behaviour -> what the vectors did.
    """
    trials: list[Trial] = []
    for candidate in tried:
        lengths = sorted({1.0, *scales}) if candidate.vector in MAIN else [1.0]
        for slot in range(len(taker.layers)):
            trials += [(candidate, slot, sign * length, False) for length in lengths for sign in (1, -1)]
            if not candidate.control and not candidate.vector.endswith(REMOVED):
                trials += [(candidate, slot, sign, True) for sign in (1.0, -1.0)]
    pushes = [
        make_push(taker, candidate, slot, scale * group.norms[slot], direct=direct)
        for candidate, slot, scale, direct in trials
    ]
    changes = group.changes(pushes, label)
    effects = {place: Effects({}, {}) for place in group.members}
    plus: dict[tuple[int, str, int, int, bool], np.ndarray] = {}
    for (candidate, slot, scale, direct), change in zip(trials, changes, strict=True):
        for place in group.members if candidate.behaviour is None else [candidate.behaviour]:
            values = group.contrast(change, place)
            name, draw = candidate.vector, candidate.draw
            if name in MAIN and not direct:
                effects[place].doses[name, draw, slot, scale] = values
            if scale == 1:
                plus[place, name, draw, slot, direct] = values
            elif scale == -1:
                both = (plus.pop((place, name, draw, slot, direct)) - values) / 2
                effects[place].halves[name, draw, slot, direct] = both
    return effects


def dose_rows(effects: Effects, seed: int) -> Iterator[Row]:
    """Change of the log-odds at every scale."""
    for (vector, draw, slot, scale), values in effects.doses.items():
        row = {"stage": "dose", "vector": vector, "draw": draw, "slot": slot, "scale": scale}
        yield row | {"measure": "log-odds"} | _mean(values, seed)


def effect_rows(effects: Effects, seed: int) -> Iterator[Row]:
    """Half the change from minus to plus one unit: of every vector, of every control, and on the direct path."""
    for (vector, draw, slot, direct), values in effects.halves.items():
        row = {"stage": "direct path" if direct else "effect", "vector": vector, "draw": draw, "slot": slot}
        row |= {"scale": 1.0, "measure": "half change", "control": vector in ("shuffled", "random")}
        yield row | (_mean(values, seed) if not row["control"] else {"value": values.mean(), "n": len(values)})


def ratio_rows(effects: Effects, seed: int) -> Iterator[Row]:
    """Each carried vector's effect over the native one's, and the share of every vector that takes the direct path.

    A ratio to an effect of exactly nothing is left out.
    """
    for (vector, draw, slot, direct), values in effects.halves.items():
        if direct:
            measure, lower = "direct path / full", effects.halves[vector, draw, slot, False]
        elif vector in TRANSFERRED:
            measure, lower = "carried / native", effects.halves["native", 0, slot, False]
        elif vector.endswith(REMOVED):
            measure, lower = (
                "without scored words / full",
                effects.halves[vector.removesuffix(REMOVED), draw, slot, False],
            )
        else:
            continue
        if lower.any():
            value, low, high = crossed_ratio(values, lower, seed)
            row = {"stage": "ratio", "vector": vector, "draw": draw, "slot": slot, "scale": 1.0, "measure": measure}
            yield row | {"value": value, "low": low, "high": high, "n": len(values)}


def gate_rows(effects: Effects, halves: np.ndarray, seed: int) -> Iterator[Row]:
    """Whether a model can be steered by its own vector at all.

    Args:
        effects: Of the behaviour in that model.
        halves: Split-half cosines of the model's own vector [depth, split].
        seed: Of the bootstrap.

    Yields:
        For each depth the three parts of the gate and whether it is passed.
    """
    for slot, cosines in enumerate(halves):
        native = effects.halves["native", 0, slot, False]
        row = {"stage": "gate", "vector": "native", "slot": slot, "scale": 1.0}
        errors = float(native.mean() / max(crossed_means(native, seed).std(), 1e-12))
        bound = float(np.quantile(effects.means("random", slot), 0.95))
        low, high = np.quantile(cosines, [0.025, 0.975])
        cosine = {"measure": "split-half cosine", "value": cosines.mean(), "low": low, "high": high, "n": len(cosines)}
        yield row | cosine
        yield row | {"measure": "standard errors", "value": errors, "n": len(native)}
        count = len(effects.means("random", slot))
        yield row | {"measure": "95th percentile of random vectors", "value": bound, "n": count, "control": True}
        passed = cosines.mean() > LEAST_COSINE and errors > 2 and native.mean() > bound
        yield row | {"measure": "passed", "value": float(passed), "n": len(native)}


def _mean(values: np.ndarray, seed: int) -> Row:
    low, high = crossed_interval(values, seed)
    return {"value": values.mean(), "low": low, "high": high, "n": len(values)}

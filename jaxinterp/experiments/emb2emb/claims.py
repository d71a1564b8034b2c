"""The claims of the steering experiment; every threshold was fixed before an effect was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.emb2emb.vectors import DIRECTIONS, REMOVED

DEPTHS = (0.5, 0.7)
"""Where the claims are made, if vectors were added there."""
FIRST = "sentiment"
"""The concept that is known to work in these models; the others are a claim together."""
LEAST_RATIO = 0.35
MAP = "least squares"


def claims(table: pl.DataFrame) -> list[Claim]:
    """Holds the table against the criteria.

    Args:
        table: As from the experiment.

    Returns:
        For each direction and depth two claims about sentiment, against the nulls and against the native vector; and
        one about all other behaviours.
    """
    depths = [depth for depth in DEPTHS if depth in table["depth"].to_list()]
    depths = depths or table["depth"].drop_nulls().unique(maintain_order=True).to_list()
    found: list[Claim] = []
    for direction in DIRECTIONS:
        for depth in depths:
            found += _first(table, direction, depth)
    return [*found, _others(table, depths)]


def _first(table: pl.DataFrame, direction: str, depth: float) -> Iterator[Claim]:
    here = table.filter(pl.col("direction") == direction, pl.col("depth") == depth, pl.col("concept") == FIRST)
    if here.is_empty():
        return
    giver, taker = direction.split(" to ")
    carried = _one(here, "effect", "half change", MAP)
    random, shuffled = (_control(here, name) for name in ("random", "shuffled"))
    nulls = f"95th percentile of {len(random)} random vectors {_bound(random):.2f}, of {len(shuffled)} shuffled maps "
    nulls += f"{_bound(shuffled):.2f}"
    shares = {vector: _one(here, "ratio", "direct path / full", vector)["value"] for vector in (MAP, "native")}
    without = _one(here, "effect", "half change", f"{MAP}{REMOVED}")["value"]
    yield Claim(
        criterion=f"{FIRST} vector of the {giver} model carried to the {taker} model by least squares, depth {depth}: "
        "its effect at the native norm exceeds the 95th percentile of random vectors and of shuffled maps",
        paper="transferred vectors steer; figures only, numbers not known",
        **from_row(carried),
        control=f"{nulls}; direct path {shares[MAP]:.2f} of it, {shares['native']:.2f} of the native vector's effect; "
        f"without the scored words' span {without:.2f}; native vector {_gate(table, direction, depth, FIRST)}",
        met=bool(carried["value"] > max(_bound(random), _bound(shuffled))),
    )
    ratio = _one(here, "ratio", "carried / native", MAP)
    native = _one(here, "effect", "half change", "native")
    yield Claim(
        criterion=f"{FIRST}, {direction}, depth {depth}: the carried vector has at least {LEAST_RATIO} of the native "
        "vector's effect",
        paper="not known",
        **from_row(ratio),
        control=f"native effect {native['value']:.2f}; a shuffled map's mean ratio "
        f"{shuffled.mean() / native['value']:.2f}",
        met=bool(ratio["value"] >= LEAST_RATIO),
    )


def _others(table: pl.DataFrame, depths: list[float]) -> Claim:
    names = [name for name in table["concept"].drop_nulls().unique(maintain_order=True) if name != FIRST]
    places = [(direction, depth) for direction in DIRECTIONS for depth in depths]
    gated = [name for name in names if all(_passes(table, *place, name) for place in places)]
    passing = [name for name in gated if all(_beats(table, *place, name) for place in places)]
    failed = [name for name in names if name not in gated]
    return Claim(
        criterion=f"At least one further behaviour that passes the gate in both models at all of depths {depths} "
        "exceeds both nulls there in both directions, carried by least squares",
        paper="seven behaviours transfer within families; numbers not known",
        ours=float(len(passing)),
        n=len(gated),
        control=f"passing: {', '.join(passing) or 'none'}; gated: {', '.join(gated) or 'none'}; "
        f"not gated in both models at all depths: {', '.join(failed) or 'none'}",
        met=len(passing) >= 1,
    )


def _beats(table: pl.DataFrame, direction: str, depth: float, concept: str) -> bool:
    here = table.filter(pl.col("direction") == direction, pl.col("depth") == depth, pl.col("concept") == concept)
    bounds = [_bound(_control(here, name)) for name in ("random", "shuffled")]
    return bool(_one(here, "effect", "half change", MAP)["value"] > max(bounds))


def _passes(table: pl.DataFrame, direction: str, depth: float, concept: str) -> bool:
    here = table.filter(pl.col("direction") == direction, pl.col("depth") == depth, pl.col("concept") == concept)
    return bool(_one(here, "gate", "passed", "native")["value"])


def _gate(table: pl.DataFrame, direction: str, depth: float, concept: str) -> str:
    return "passes the gate" if _passes(table, direction, depth, concept) else "fails the gate"


def _one(here: pl.DataFrame, stage: str, measure: str, vector: str) -> dict[str, Any]:
    columns = {"stage": stage, "measure": measure, "vector": vector}
    return here.filter(*(pl.col(name) == value for name, value in columns.items())).row(0, named=True)


def _control(here: pl.DataFrame, vector: str) -> np.ndarray:
    return here.filter(pl.col("stage") == "effect", pl.col("vector") == vector)["value"].to_numpy()


def _bound(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.95))

"""The benchmark's table: what is asked, how results are compared, and what has to be reached.

A time stands in it only beside a result that agrees with the reference's.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

Start = Literal["cold", "cold, compiled before", "first", "warm"]
Kind = Literal["absolute", "relative", "neighbours", "tokens", "accuracy"]
OURS = "jaxinterp"
GATES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 6.25e-3}
"""Dtype -> the largest difference from the reference's result, which is in the same dtype.

A number in bfloat16 has 8 bits, and two right programs round in different places. After 32 layers of random weights
PyTorch's own logits are 0.024 of the largest from those in float32, ours 0.023, and the two are 0.028 from each other;
no site that is read is further than 0.032, and effects are as large as 0.3 to 0.7. The gate lies between; in float16,
with 3 bits more, at an eighth.
"""
ACCURACY_GATE = 1e-3
GATE_ONLY = "gate only"
"""The name of a variant that does less than the task, enough for the others to be compared with; it gets no times."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Something that all peers are asked to do.

    Attributes:
        title: What it is, in a few words.
        kind: How results are compared. "absolute": effects, differences of logits and weights by their largest
            difference, in other dtypes than float32 over the largest of the logits that they are differences of;
            "relative": activations and logits by the same, over the largest absolute value of the reference;
            "neighbours": indices of points by how far away these are, in float64 and in order, since of points that
            are equal any may be named, over the largest distance of the reference; "tokens": texts by the share of
            tokens that differ, a gate in float32 alone, since in others nearly equal logits change places and all
            that follows is another text; "accuracy": as "absolute", at a thousandth.
        reference: The peer whose result the others must agree with.
    """

    title: str
    kind: Kind
    reference: str = "torch"


TASKS = {
    "w1_first": Task("first logits, 1 x 16", "relative"),
    "w1_new_length": Task("logits of a new length, 1 x 17", "relative"),
    "w2_residuals": Task("read the residual stream", "relative"),
    "w2_all": Task("read eleven sites of every layer", "relative"),
    "w3_patching": Task("patch every layer and position", "absolute"),
    "w4_heads": Task("ablate every head", "absolute"),
    "w5_generate": Task("generate while steering", "tokens"),
    "w5_grid": Task("generate over layers x scales", "tokens"),
    "w6_forward": Task("forward pass of the pairs", "absolute"),
    "w6_attribution": Task("attribution patching", "absolute"),
    "w6_edges": Task("attribution of edges", "absolute"),
    "w6_integrated": Task("integrated gradients", "absolute"),
    "w7_probes": Task("probes at every layer", "accuracy", "scikit_learn"),
    "w8_neighbours": Task("nearest neighbours of every token", "neighbours", "scikit_learn"),
    "w8_weights": Task("locally linear weights", "absolute", "scikit_learn"),
}
"""Task -> what it is; the first two letters are its workload."""

FASTER = {
    ("w2_residuals", "torch", "hooks"): 1.0,
    ("w2_all", "torch", "hooks"): 1.0,
    ("w3_patching", "transformer_lens", None): 12.0,
    ("w3_patching", "nnsight", "invokes batched"): 3.0,
    ("w3_patching", "torch", "restarting loop"): 3.0,
    ("w4_heads", "transformer_lens", None): 6.0,
    ("w5_generate", "torch", "hook"): 1.3,
    ("w7_probes", "scikit_learn", None): 1.0,
    ("w8_neighbours", "faiss", None): 1.0,
    ("w8_weights", "scikit_learn", None): 1.0,
}
"""(task, peer, variant or any) -> how many times faster, warm, this package is to be."""

WITHIN = {"w5_grid": ("w5_generate", 4.0), "w6_attribution": ("w6_forward", 3.4)}
"""Task -> another task, and how many times its seconds this package's may be."""


@dataclasses.dataclass
class Measurement:
    """What one peer needed for one task in one way.

    Attributes:
        task: The task.
        peer: The peer.
        variant: Which of its ways.
        start: Whether the process was fresh, or the run the first of its kind, or neither.
        version: Versions of the peer's packages.
        answers: One for each repetition.
        error: Why there is none.
        difference: Largest difference from the reference's result; `None` if it was not compared.
        is_reference: Whether it is that result.
        dtype: What it was computed in.
        device: What it was computed on, as the worker calls it.
        flops: Operations that the task needs, where that is the same for all.
        peak_flops: Operations a second that the device can do, if known.
    """

    task: str
    peer: str
    variant: str
    start: Start
    version: str
    answers: list[dict[str, float]] = dataclasses.field(default_factory=list)
    error: str | None = None
    difference: float | None = None
    is_reference: bool = False
    dtype: str = "float32"
    device: str = ""
    flops: float | None = None
    peak_flops: float | None = None


def difference(
    given: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    kind: Kind,
    scale: float = 1.0,
    points: np.ndarray | None = None,
) -> float:
    """How far a result is from the reference's.

    Args:
        given: Name -> array.
        reference: The same arrays, from the reference.
        kind: See `Task`.
        scale: What an "absolute" difference is divided by.
        points: For "neighbours": the points, [point, feature], in the order of the rows of indices.

    Returns:
        The largest difference over all arrays; infinite if an array is missing, has another shape or is not finite.

    Examples:
        >>> difference({"x": np.array([1.0, 2.5])}, {"x": np.array([1.0, 2.0])}, "absolute")
        0.5
        >>> points = np.array([[0.0], [1.0], [1.0], [2.0]])
        >>> difference({"x": np.array([[1]])}, {"x": np.array([[2]])}, "neighbours", points=points)
        0.0
        >>> difference({"x": np.array([[3]])}, {"x": np.array([[2]])}, "neighbours", points=points)
        1.0
    """
    worst = 0.0
    for name, right in reference.items():
        if name not in given or given[name].shape != right.shape or not np.isfinite(given[name]).all():
            return float("inf")
        mine = given[name]
        if kind == "neighbours":
            assert points is not None, "indices say nothing without their points"
            mine, right = (_distances(points, indices) for indices in (mine, right))
        if kind == "tokens":
            worst = max(worst, float((mine != right).mean()))
            continue
        largest = float(np.abs(mine.astype(np.float64) - right).max(initial=0))
        worst = max(worst, largest / (float(np.abs(right).max()) if kind in ("relative", "neighbours") else scale))
    return worst


def _distances(points: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """How far the named points are from those whose rows they stand in, the nearest first, [row, neighbour]."""
    exact = points.astype(np.float64)
    columns = [np.linalg.norm(exact[: len(indices)] - exact[column], axis=1) for column in indices.T]
    return np.sort(np.stack(columns, axis=1), axis=1)


def tabulate(found: Iterable[Measurement]) -> pl.DataFrame:
    """Turns measurements into the table: a time stands in it only if its gate was passed.

    Args:
        found: What was measured, or could not be.

    Returns:
        Columns `workload`, `task`, `title`, `peer`, `variant`, `version`, `start`, `dtype`, `device`, `gate` ("passed",
        "failed", "reference", "no reference", "not gated" or "not measured"), `gate_difference`, `wall_min`,
        `wall_median`, `cpu_min`, `cpu_median` (seconds; CPU over all threads), `peak_memory` and `extra_memory` (MiB of
        the host's memory resident at most, and above what was resident before), `repeats`, `flop_utilisation` (the
        share of the device's speed that the operations of plain forward passes amount to, of warm medians, for the
        first two workloads and a known speed alone; see `task_flops`), `ratio_to_ours` and `cpu_ratio_to_ours` (median
        over our fastest median of the same task and start), `target`, `reached`, `reason`.
    """
    rows = [_row(entry) for entry in found]
    best: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["peer"] == OURS and row["wall_median"] is not None:
            key = (row["task"], row["start"])
            best[key] = min(best.get(key, row), row, key=lambda entry: entry["wall_median"])
    for row in rows:
        own = best.get((row["task"], row["start"])) or best.get((row["task"], row["start"].partition(",")[0]))
        if own and row["wall_median"] is not None:
            row["ratio_to_ours"] = row["wall_median"] / own["wall_median"]
            row["cpu_ratio_to_ours"] = row["cpu_median"] / own["cpu_median"]
        if row["start"] == "warm":
            row |= _target(row, best)
    order = {name: place for place, name in enumerate(TASKS)}
    rows.sort(key=lambda row: (order[row["task"]], ("cold", "first", "warm").index(row["start"].partition(",")[0])))
    return pl.DataFrame(rows, schema=SCHEMA)


SCHEMA = {
    **dict.fromkeys(("workload", "task", "title", "peer", "variant", "version", "start"), pl.String),
    **dict.fromkeys(("dtype", "device", "gate"), pl.String),
    **dict.fromkeys(("gate_difference", "wall_min", "wall_median", "cpu_min", "cpu_median"), pl.Float64),
    **dict.fromkeys(("peak_memory", "extra_memory"), pl.Float64),
    "repeats": pl.Int64,
    "flop_utilisation": pl.Float64,
    **dict.fromkeys(("ratio_to_ours", "cpu_ratio_to_ours"), pl.Float64),
    "target": pl.String,
    "reached": pl.Boolean,
    "reason": pl.String,
}


def _row(entry: Measurement) -> dict[str, Any]:
    task = TASKS[entry.task]
    limit = ACCURACY_GATE if task.kind == "accuracy" else GATES[entry.dtype]
    row = dict.fromkeys(SCHEMA) | {
        "workload": entry.task[:2].upper(),
        "task": entry.task,
        "title": task.title,
        "peer": entry.peer,
        "variant": entry.variant,
        "version": entry.version,
        "start": entry.start,
        "dtype": entry.dtype,
        "device": entry.device,
        "gate_difference": entry.difference,
        "repeats": len(entry.answers),
    }
    if entry.error is not None:
        return row | {"gate": "not measured", "reason": entry.error}
    gated = task.kind != "tokens" or entry.dtype == "float32" or entry.difference is None
    # Accuracies are counts over a number, so that a difference of exactly the limit may come out an ulp above it.
    if gated and entry.difference is not None and entry.difference > limit * (1 + 1e-9):
        return row | {"gate": "failed", "reason": f"differs from the reference by {entry.difference:.2g}"}
    if entry.variant == GATE_ONLY:
        return row | {"gate": "reference", "reason": "does less than the task, to compare with"}
    row["gate"] = "no reference" if entry.difference is None else "reference" if entry.is_reference else "passed"
    if not (gated or entry.is_reference):
        row |= {"gate": "not gated", "reason": f"in {entry.dtype} nearly equal logits change places: see float32"}
    for name in ("wall", "cpu"):
        seconds = [answer[name] for answer in entry.answers]
        row |= {f"{name}_min": min(seconds), f"{name}_median": statistics.median(seconds)}
    if entry.start == "warm" and entry.flops and entry.peak_flops:
        median = statistics.median(answer["wall"] for answer in entry.answers)
        row["flop_utilisation"] = entry.flops / median / entry.peak_flops
    for name in ("peak_memory", "extra_memory"):
        row[name] = max(answer[name] for answer in entry.answers)
    return row


def wanted_factor(task: str, peer: str, variant: str) -> float | None:
    """How many times faster than this way of doing a task this package is to be; `None` if nothing is said."""
    return FASTER.get((task, peer, variant)) or FASTER.get((task, peer, None))


def _target(row: Mapping[str, Any], best: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, Any]:
    """What this row has to show, and whether it does; `None` where a time is missing."""
    task, peer = row["task"], row["peer"]
    if peer == OURS and task in WITHIN:
        other, factor = WITHIN[task]
        base = best.get((other, "warm"))
        reached = None
        if base is not None and row["wall_median"] is not None:
            reached = row["wall_median"] <= factor * base["wall_median"]
        return {"target": f"at most {factor:g} times our {TASKS[other].title}", "reached": reached}
    factor = wanted_factor(task, peer, row["variant"])
    if factor is None:
        return {}
    ratio = row["ratio_to_ours"]
    return {"target": f"at least {factor:g} times our seconds", "reached": None if ratio is None else ratio >= factor}

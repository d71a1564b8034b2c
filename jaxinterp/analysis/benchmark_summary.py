"""The benchmark in a few lines of Markdown, as the README shows it."""

from __future__ import annotations

import polars as pl

from jaxinterp.analysis.benchmark_table import GATE_ONLY, OURS

_PEERS = {
    "torch": "torch hooks",
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
    "scikit_learn": "scikit-learn",
    "faiss": "faiss",
}


def summarise(table: pl.DataFrame) -> str:
    """One line for each task: our seconds, and how many times as long each peer takes in its fastest way.

    Args:
        table: As from `tabulate`, or its CSV.

    Returns:
        A Markdown table of warm medians (cold ones where a task starts a process), in the order of the table. A dash
        stands for a task that a peer cannot do or was not asked for, "differs" for a result that did not pass its gate.
    """
    lines = [
        f"| | task | jaxinterp | {' | '.join(_PEERS.values())} | to reach |",
        "|---|---|" + "---:|" * (1 + len(_PEERS)) + "---|",
    ]
    shown = table.filter(pl.col("start") == "warm")
    for task in shown["task"].unique(maintain_order=True):
        rows = shown.filter(pl.col("task") == task)
        own = rows.filter((pl.col("peer") == OURS) & pl.col("wall_median").is_not_null()).sort("wall_median")
        seconds = f"{own['wall_median'][0]:.3g} s" if own.height else "-"
        cells = [_cell(rows.filter(pl.col("peer") == peer)) for peer in _PEERS]
        first = rows.row(0, named=True)
        lines.append(f"| {first['workload']} | {first['title']} | {seconds} | {' | '.join(cells)} | {_targets(rows)} |")
    return "\n".join(lines)


def _cell(rows: pl.DataFrame) -> str:
    timed = rows.filter(pl.col("ratio_to_ours").is_not_null() & (pl.col("variant") != GATE_ONLY))
    if timed.height:
        return f"{timed['ratio_to_ours'].min():.2f}x"
    return "differs" if rows.filter(pl.col("gate") == "failed").height else "-"


def _targets(rows: pl.DataFrame) -> str:
    """What is to be reached, and whether it is."""
    said = []
    for row in rows.filter(pl.col("target").is_not_null()).iter_rows(named=True):
        name = "" if row["peer"] == OURS else f"{_PEERS[row['peer']]} ({row['variant']}) "
        wanted = row["target"].replace(" our seconds", "")
        verdict = {True: "yes", False: "no", None: "not measured"}[row["reached"]]
        ratio = "" if row["ratio_to_ours"] is None or row["peer"] == OURS else f", is {row['ratio_to_ours']:.2f}"
        said.append(f"{name}{wanted}{ratio}: {verdict}")
    return "; ".join(said)

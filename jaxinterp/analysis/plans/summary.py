"""Many plans as one table, a row for each."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from jaxinterp.analysis.plans.collectives import KINDS

_ASKED = ("model", "workload", "topology", "mesh", "dtype", "rows", "seq", "new")
_COLUMNS = {
    "memory": "GiB of a chip",
    "flops": "TFLOP",
    "bytes": "GB read and written",
    "sent": "GB sent",
    "least time": "seconds at least",
    "compiled in": "compiled in, s",
}
_UNITS = {"flops": 1e12, "bytes": 1e9, "sent": 1e9}


def summarise(plans: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Puts plans together.

    Args:
        plans: Tables as from `jaxinterp.analysis.plans.plan.measure`.

    Returns:
        One row for each: what was asked for, `memory` and `available` (GiB of a chip), `fits`, `flops`, `bytes`,
        `sent` (of a chip, all programs together; null where the compiler refused), `collectives` (how many of each
        kind a chip takes part in), `least time` and `compiled in` (seconds), and `note`, the first thing to change.
    """
    return pl.DataFrame([_row(plan) for plan in plans], infer_schema_length=None)


def _row(plan: pl.DataFrame) -> dict[str, object]:
    first = plan.row(0, named=True)
    whole = plan.filter(pl.col("part") == "whole")
    found = dict(whole.select("quantity", "value").filter(pl.col("quantity") != "change").iter_rows())
    changes = whole.filter(pl.col("quantity") == "change")["note"].to_list()
    times = dict(plan.filter(pl.col("quantity") == "times").select("part", "value").iter_rows())
    counts = dict.fromkeys(KINDS, 0.0)
    for part, kind, often in (
        plan.filter(pl.col("quantity").is_in(KINDS)).select("part", "quantity", "value").iter_rows()
    ):
        counts[kind] += times[part] * often
    return {
        **{name: first[name] for name in _ASKED},
        "memory": found["memory"],
        "available": found["available"],
        "fits": bool(found["fits"]),
        **{name: found.get(name) for name in ("flops", "bytes", "sent")},
        "collectives": ", ".join(f"{often:.0f} {kind}" for kind, often in counts.items() if often),
        "least time": found.get("least time"),
        "compiled in": found["compiled in"],
        "note": changes[0] if changes else None,
    }


def markdown(table: pl.DataFrame) -> str:
    """Writes a summary for a page.

    Args:
        table: As from `summarise`.

    Returns:
        A Markdown table.
    """
    heads = ["model", "workload", "slice", "mesh", "texts", "fits", *_COLUMNS.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * 6}{'---:|' * len(_COLUMNS)}"]
    for row in table.iter_rows(named=True):
        texts = f"{row['rows']} x {row['seq']}" + (f" + {row['new']}" if row["workload"] == "generate" else "")
        cells = [row["model"].removeprefix("shape:"), row["workload"], row["topology"], row["mesh"], texts]
        cells += ["yes" if row["fits"] else f"**no**: {row['note']}" if row["note"] else "**no**"]
        cells += [_number(row[name], _UNITS.get(name, 1.0)) for name in _COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{float(f'{value / unit:.3g}'):,g}"

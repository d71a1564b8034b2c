"""A claim of a paper as a number: what it reports, what was found here, and whether the criterion is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One criterion and the number it was held against.

    A claim that is not met stays in the list and says so; the threshold is part of `criterion` and is never
    moved after the number is known.

    Attributes:
        criterion: The claim as a sentence with its threshold.
        paper: What the paper reports, in its own units, or "not reported".
        ours: The measured number.
        low: Lower end of the 95 % interval of `ours`, or `None` where the number is a count.
        high: Upper end of the same interval.
        n: How many independent examples (or draws) stand behind `ours`.
        control: The random or shuffled comparison, in words, with its number.
        met: Whether `ours` satisfies `criterion`.
    """

    criterion: str
    paper: str
    ours: float
    low: float | None = None
    high: float | None = None
    n: int
    control: str
    met: bool


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The measured part of a claim, from a row of an experiment's table: `Claim(criterion=..., **from_row(row))`.

    Args:
        row: With `value`, `low`, `high` and `n`.

    Returns:
        `ours`, `low`, `high` and `n`.
    """
    return {"ours": row["value"], "low": row["low"], "high": row["high"], "n": row["n"]}


def records(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """The rows of `check.json`.

    Args:
        claims: Claims in the order in which they are shown.

    Returns:
        One dictionary per claim, keys as the attributes of `Claim`.

    >>> claim = Claim(criterion="accuracy >= 0.9", paper="0.95", ours=0.97, n=100, control="chance 0.5", met=True)
    >>> records([claim])[0]["met"]
    True
    """
    return [dataclasses.asdict(claim) for claim in claims]


def summarise(gathered: Iterable[Mapping[str, Any]]) -> str:
    """Claims of several experiments as a Markdown table.

    Args:
        gathered: Rows of `check.json`, each with the name of its `experiment`.

    Returns:
        One line per claim.

    >>> row = {"experiment": "x", "criterion": "a >= 1", "paper": "2", "ours": 3.0, "low": 2.5, "high": 3.5, "n": 9}
    >>> print(summarise([row | {"met": True}]).splitlines()[-1])
    | x | a >= 1 | 2 | 3 [2.5, 3.5] | 9 | yes |
    """
    lines = ["| experiment | criterion | paper | here, 95 % interval | n | met |", "|---|---|---|---:|---:|---|"]
    for row in gathered:
        interval = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
        words = [row["experiment"], row["criterion"], row["paper"], f"{row['ours']:.3g}{interval}", str(row["n"])]
        met = "yes" if row["met"] else "**no**"
        lines.append(f"| {' | '.join(word.replace('|', '/') for word in words)} | {met} |")
    return "\n".join(lines)

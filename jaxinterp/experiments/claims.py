"""A claim of a paper as a number: what it reports, what was found here, and whether the criterion is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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

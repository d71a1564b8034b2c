"""CountDown problems of any number of operands: drawn from a seed, or read from a data set's files."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from jaxinterp.tasks.countdown import Problem, Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemSettings:
    """Which problems there are."""

    operands: tuple[int, ...] = (3, 4)
    """How many numbers a problem may have, each count equally often."""
    largest: int = 99
    """The largest number; the smallest is 1."""
    smallest_target: int = 10
    """The smallest target."""
    largest_target: int = 100
    """The largest target."""
    leading: float = 0.12
    """Share of problems made with one exact * or / in front; the others are made of + and - alone."""


def draw_problem(draw: random.Random, settings: ProblemSettings, split: Split = "train") -> Problem:
    """Draws a solvable problem of one split."""
    raise NotImplementedError


def draw_problems(split: Split, n: int, seed: int, settings: ProblemSettings | None = None) -> list[Problem]:
    """Draws distinct solvable problems of one split, as `jaxinterp.tasks.countdown.draw_problems` for any settings."""
    raise NotImplementedError


def read_problems(path: str | Path) -> list[Problem]:
    """Reads problems from a Parquet, JSONL or NDJSON file with the columns `nums` and `target`."""
    raise NotImplementedError

"""CountDown problems of any number of operands: drawn from a seed, or read from a data set's files.

A drawn problem is made backwards: numbers are drawn, joined to a random expression, and its value is the target if it
lies in the asked range. So every problem has a solution. `jaxinterp.tasks.countdown.draw_problems` draws the problems
of the shipped models' evaluation; those here have settings, and their order does not depend on how many are drawn.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxinterp.tasks.countdown import Problem, Split

_KINDS, _TRIES = 10, 20_000
_COLUMNS = ("nums", "target")
_SHOWN = 3


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
    """Share of problems that need one * or exact / in front, equally often; of the others + and - are enough."""

    def __post_init__(self) -> None:
        wrong = []
        if not self.operands or min(self.operands) < 2 or max(self.operands) > 6:
            wrong.append(f"operands is {list(self.operands)}, but has to hold counts from 2 to 6")
        if self.largest < 1:
            wrong.append(f"largest is {self.largest}, but the smallest number is 1")
        if not 0 <= self.smallest_target <= self.largest_target:
            span = f"from {self.smallest_target} to {self.largest_target}"
            wrong.append(f"targets {span} are no range of whole numbers from 0 on")
        if not 0 <= self.leading <= 1:
            wrong.append(f"leading is {self.leading}, but has to be a share from 0 to 1")
        if wrong:
            raise ValueError(f"problems: {'; '.join(wrong)}")


def draw_problem(draw: random.Random, settings: ProblemSettings, split: Split = "train") -> Problem:
    """Draws a solvable problem of one split.

    Args:
        draw: Random numbers.
        settings: How many numbers, how large, and how they are joined.
        split: Part of the hash split in which it has to lie.

    Returns:
        The problem, its numbers in random order.

    Raises:
        ValueError: No such problem was found, since the targets are out of the numbers' reach.

    >>> draw_problem(random.Random(0), ProblemSettings(operands=(2,))).split
    'train'
    """
    for _ in range(_KINDS):
        count = draw.choice(settings.operands)
        lead = draw.choice("*/") if draw.random() < settings.leading else ""
        for _ in range(_TRIES):
            numbers = [1 + int(draw.random() * settings.largest) for _ in range(count)]
            target = _joined(numbers, lead, draw)
            if target is None or not settings.smallest_target <= target <= settings.largest_target:
                continue
            if lead and _is_sum(target, numbers):
                continue
            draw.shuffle(numbers)
            problem = Problem(tuple(numbers), target)
            if problem.split == split:
                return problem
    raise ValueError(
        f"no {split} problem of {' or '.join(map(str, settings.operands))} numbers up to {settings.largest} was found "
        f"whose target lies from {settings.smallest_target} to {settings.largest_target} ({_KINDS * _TRIES:,} tries); "
        "widen the targets or raise the largest number"
    )


def _joined(numbers: Sequence[int], lead: str, draw: random.Random) -> int | None:
    """The value of numbers behind random signs, the first two joined by `lead` if there is one and if that is exact."""
    value, *rest = numbers
    if lead:
        second = rest.pop(0)
        if min(value, second) == 1 or (lead == "/" and value % second):
            return None
        value = value * second if lead == "*" else value // second
    for number in rest:
        value += number if draw.random() < 0.5 else -number
    return value


def _is_sum(target: int, numbers: Sequence[int]) -> bool:
    """Whether some choice of signs reaches the target."""
    reached = {0}
    for number in numbers:
        reached = {value + term for value in reached for term in (number, -number)}
    return target in reached


def draw_problems(split: Split, n: int, seed: int, settings: ProblemSettings | None = None) -> list[Problem]:
    """Draws solvable problems of one split, no two with the same numbers and target.

    Args:
        split: Part of the hash split.
        n: How many.
        seed: Of the random numbers; more problems of one seed begin with the fewer ones.
        settings: Which problems.

    Returns:
        The problems.

    Raises:
        ValueError: There are not so many, or none.

    >>> len(draw_problems("test", 5, seed=0))
    5
    """
    settings, draw = settings or ProblemSettings(), random.Random(f"problems {seed}")  # noqa: S311
    found: dict[tuple[tuple[int, ...], int], Problem] = {}
    repeats = 0
    while len(found) < n:
        problem = draw_problem(draw, settings, split)
        key = (tuple(sorted(problem.numbers)), problem.target)
        repeats = repeats + 1 if key in found else 0
        found.setdefault(key, problem)
        if repeats > 1000:
            raise ValueError(f"only {len(found)} different {split} problems were found, not {n}; widen the settings")
    return list(found.values())


def read_problems(path: str | Path) -> list[Problem]:
    """Reads problems from the columns `nums` and `target`, as the public CountDown data sets have them.

    Args:
        path: A `.parquet` file, or a `.jsonl` or `.ndjson` file with one object a line. Other columns are not read.

    Returns:
        The problems in the order of the file, repeats included.

    Raises:
        ValueError: The file is missing or broken, or holds something else; the sentence names file, row (from 1) and
            column.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a Parquet or JSONL file with the columns nums and target")
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = _lines(path)
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}; problems are read from .parquet, .jsonl and .ndjson files")
    problems, wrong = [], []
    for number, nums, target in rows:
        faults = [*_faults("nums", nums), *_faults("target", target)]
        wrong += [f"row {number}, column {fault}" for fault in faults]
        if not faults:
            problems.append(Problem(tuple(nums), target))
    if wrong:
        more = f", and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise ValueError(f"{path}: {'; '.join(wrong[:_SHOWN])}{more}")
    if not problems:
        raise ValueError(f"{path} holds no problem")
    return problems


def _parquet(path: Path) -> Iterator[tuple[int, Any, Any]]:
    try:
        known = pl.read_parquet_schema(path)
        if missing := [column for column in _COLUMNS if column not in known]:
            raise ValueError(f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(known)}")
        table = pl.read_parquet(path, columns=list(_COLUMNS))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error
    return _numbered(zip(*(table[column].to_list() for column in _COLUMNS), strict=True))


def _numbered(rows: Iterable[tuple[Any, Any]]) -> Iterator[tuple[int, Any, Any]]:
    return ((number, nums, target) for number, (nums, target) in enumerate(rows, start=1))


def _lines(path: Path) -> Iterator[tuple[int, Any, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: row {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} is no object with the keys nums and target")
        if missing := [column for column in _COLUMNS if column not in row]:
            raise ValueError(f"{path}: row {number} has no column {' and no column '.join(missing)}")
        yield number, row["nums"], row["target"]


def _faults(column: str, value: Any) -> Iterator[str]:
    if column == "nums":
        if not isinstance(value, list) or len(value) < 2:
            yield f"nums: {_short(value)} is no list of two numbers or more"
            return
        bad = [entry for entry in value if type(entry) is not int or not 1 <= entry < 10**9]
        if bad:
            yield f"nums: {_short(bad[0])} is no whole number from 1 to 999,999,999"
    elif type(value) is not int or not 0 <= value < 10**9:
        yield f"target: {_short(value)} is no whole number from 0 to 999,999,999"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."

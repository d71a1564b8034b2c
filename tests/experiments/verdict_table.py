"""A table as the `verdicts` experiment gives it, from traces that are written by rule and not by a model."""

import itertools

import numpy as np
import polars as pl

from jaxinterp.experiments import verdicts
from jaxinterp.tasks import countdown, verification


def attempts(problem: countdown.Problem) -> tuple[list[str], list[str]]:
    """Sums and differences of all numbers that reach the target, and that miss it."""
    right, wrong = [], []
    for symbols in itertools.product("+-", repeat=len(problem.numbers) - 1):
        for numbers in itertools.permutations(problem.numbers):
            pieces = [str(numbers[0]), *(f"{s} {x}" for s, x in zip(symbols, numbers[1:], strict=True))]
            expression = " ".join(pieces)
            result = countdown.chain(expression)[-1]
            (right if result == str(problem.target) else wrong).append(expression)
    return right, wrong


def write(
    training: int = 12, selection: int = 8, evaluation: int = 8, pairs: int = 8, choosing: int = 4, seed: int = 0
) -> pl.DataFrame:
    """As many accepted cases in each split, and as many rejected ones, of problems with three numbers.

    Args:
        training: Cases of either verdict to train on.
        selection: To choose on.
        evaluation: To evaluate on.
        pairs: Minimal pairs made of accepted attempts, and as many made of rejected ones, where those can be made.
        choosing: The same, to choose on.
        seed: Of problems and attempts.

    Returns:
        The table.
    """
    rng = np.random.default_rng(seed)
    counts = dict(zip(verdicts.SPLITS, (training, selection, evaluation, choosing, pairs), strict=True))
    drawn = countdown.draw_problems("test", 4 * sum(counts.values()), seed)
    found = [(problem, *attempts(problem)) for problem in drawn if len(problem.numbers) == 3]
    usable = iter(enumerate(one for one in found if one[1] and one[2]))
    rows = []
    for split, count in counts.items():
        for number, (problem, right, wrong) in itertools.islice(usable, count):
            tried = [str(rng.choice(wrong)), str(rng.choice(right))]
            rows += _rows(countdown.parse(countdown.write(problem, tried)), split, number, rng)
    return pl.DataFrame(rows, schema=verdicts._SCHEMA)


def _rows(trace: countdown.Trace, split: str, number: int, rng: np.random.Generator) -> list[dict]:
    rows = []
    for index, attempt in enumerate(trace.attempts):
        row = {"split": split, "problem": number, "attempt": index, "valid": attempt.valid, "chosen": True}
        row |= {"reached": attempt.valid, "sound": True, "solved": True, "finished": True}
        row |= {"prefix": trace.text[: attempt.open] + verification.OPEN, "twin": None, "kind": None}
        if split.startswith("pairs"):
            pair = verification.minimal_pair(trace, attempt, rng)
            row |= {"chosen": pair is not None}
            row |= {} if pair is None else {"twin": pair.twin, "kind": pair.kind}
        rows.append(row)
    return rows

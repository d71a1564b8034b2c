"""A table of verdicts for tests, of traces that are written by rule: every attempt is a sum or difference."""

import itertools

import polars as pl

from jaxinterp.experiments import verdicts
from jaxinterp.tasks import countdown


def table(count, splits=("training", "selection", "evaluation")):
    """`count` problems a split, each with one rejected attempt and one accepted."""
    rows, problem = [], 0
    for number, asked in enumerate(countdown.eval_problems()):
        if problem == count * len(splits):
            break
        right, wrong = attempts(asked)
        if right and wrong:
            problem += 1
            about = {"split": splits[problem % len(splits)], "problem": number, "chosen": True}
            for tries, valid in (([wrong[0]], False), ([wrong[0], right[0]], True)):
                text = countdown.write(asked, tries)
                rows.append(about | {"prefix": text[: text.rindex(" (") + 2], "valid": valid})
    return pl.DataFrame(rows, schema=verdicts._SCHEMA)


def attempts(problem):
    """Expressions that reach the target, and others."""
    found = ([], [])
    for order in itertools.permutations(problem.numbers):
        for signs in itertools.product([" + ", " - "], repeat=len(order) - 1):
            parts = [part for pair in zip(map(str, order), [*signs, ""], strict=True) for part in pair]
            expression = "".join(parts)
            found[countdown.chain(expression)[-1] != str(problem.target)].append(expression)
    return found

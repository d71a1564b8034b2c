"""Worked CountDown traces in front of a problem, for models that were not trained on the task.

A general model takes the form of a trace from some that stand in front of its own problem. They are of the training
split, so that no problem that is asked is ever among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jaxinterp.tasks import countdown
from jaxinterp.tasks.countdown import Problem

_REJECTED = (1, 2, 0, 3)
"""Rejected attempts in front of the accepted one, in turn, so that no place in a trace stands for a verdict."""


def draw(count: int, seed: int) -> tuple[str, ...]:
    """Draws worked traces, each of another problem of the training split.

    Args:
        count: How many.
        seed: Of problems and attempts.

    Returns:
        Traces as `jaxinterp.tasks.countdown.write` writes them: none to three rejected attempts, then the accepted
        one.

    Examples:
        >>> len(draw(2, seed=0)), draw(1, seed=0)[0].count("this works")
        (2, 1)
    """
    rng = np.random.default_rng(seed)
    traces = []
    for number, problem in enumerate(countdown.draw_problems("train", count, seed)):
        right, wrong = attempts(problem)
        rejected = rng.permutation(len(wrong))[: _REJECTED[number % len(_REJECTED)]]
        expressions = [*(wrong[index] for index in rejected), right[int(rng.integers(len(right)))]]
        traces.append(countdown.write(problem, expressions))
    return tuple(traces)


def prompt(problem: Problem, examples: Sequence[str] = ()) -> str:
    r"""The text that a model continues.

    With examples the response is begun, up to the dash of its first attempt: tokens that join a line's end with the
    next line, as many tokenizers have them, are then as they are in the examples.

    Args:
        problem: What is asked.
        examples: Worked traces to stand in front, such as `draw` makes.

    Returns:
        The problem's own prompt, or examples, prompt and the response's beginning.

    Examples:
        >>> problem = Problem((31, 12, 71), 28)
        >>> prompt(problem) == problem.prompt
        True
        >>> prompt(problem, draw(1, seed=0))[-47:]
        "We need 28. Let's try different combinations:\n-"
    """
    if not examples:
        return problem.prompt
    return "\n\n".join([*examples, f"{problem.prompt}\n{countdown.preamble(problem)}\n-"])


def attempts(problem: Problem) -> tuple[list[str], list[str]]:
    """Expressions of a problem's numbers, each number used once.

    Args:
        problem: The problem.

    Returns:
        Those that reach the target, whose first operation may be `*` or `/`; and sums and differences that miss it.

    Examples:
        >>> attempts(Problem((3, 2), 6))
        (['3 * 2', '2 * 3'], ['3 + 2', '3 - 2', '2 + 3', '2 - 3'])
    """
    right, wrong = [], []
    for numbers in dict.fromkeys(itertools.permutations(problem.numbers)):
        for symbols in itertools.product("+-*/", *["+-"] * (len(numbers) - 2)):
            expression = str(numbers[0]) + "".join(f" {s} {x}" for s, x in zip(symbols, numbers[1:], strict=True))
            steps = countdown.chain(expression)
            if steps and steps[-1] == str(problem.target):
                right.append(expression)
            elif symbols[0] in "+-":
                wrong.append(expression)
    return right, wrong

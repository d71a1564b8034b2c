"""A CountDown attempt put as a question, to be answered with one word.

Using the numbers [31, 12, 71], create an equation that equals 28.
Attempt: 71 - 31 - 12 = 40 - 12 = 28.
Is it right? Yes
"""

from __future__ import annotations

from jaxinterp.tasks.countdown import Attempt, Problem

YES, NO = "Yes", "No"


def question(problem: Problem, attempt: Attempt) -> str:
    r"""Asks whether an attempt is right.

    Args:
        problem: What the attempt is to solve.
        attempt: Its expression and running results.

    Returns:
        The text up to the answer.

    >>> attempt = Attempt(expression="5 + 4", steps=("9",), result=9, valid=True, result_span=(0, 0), open=0)
    >>> question(Problem((5, 4), 9), attempt).splitlines()[1:]
    ['Attempt: 5 + 4 = 9.', 'Is it right? ']
    """
    asked = problem.prompt.partition("\n")[0]
    tried = " = ".join([attempt.expression, *attempt.steps])
    return f"{asked}\nAttempt: {tried}.\nIs it right? "

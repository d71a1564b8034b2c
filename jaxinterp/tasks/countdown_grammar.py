"""How a CountDown response is written: six bullet styles, which differ in the words of their verdicts, and prose.

Every style has the same first line and the same end::

    We need 28. Let's try different combinations:
    - 31 + 12 - 71 = 43 - 71 = -28 (not 28)
    - 71 - 31 - 12 = 40 - 12 = 28 (this works)
    So the equation that equals 28 is 71 - 31 - 12.
    </think>
    <answer> 71 - 31 - 12 </answer>

In prose an attempt is a sentence without running results::

    Maybe 31 + 12 - 71 gives -28, which misses 28

A search that found nothing ends with "The closest is ..." and the attempt whose result came closest.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxinterp.tasks import countdown
from jaxinterp.tasks.countdown import Problem

PROSE = "prose"
STYLES = (*countdown.POSITIVE, PROSE)
"""Names of the styles: the words of acceptance, and prose."""
REJECTIONS: dict[str, str] = dict(zip(countdown.POSITIVE, ("not", *countdown.NEGATIVE), strict=True))
"""The word of rejection of each bullet style; behind "not" stands the target."""


def write_response(problem: Problem, expressions: Sequence[str], style: str) -> str:
    r"""Writes a response that tries expressions in order; what it says about them is true.

    Args:
        problem: What is asked.
        expressions: Attempts: numbers joined by operators, worked off from left to right in whole numbers.
        style: One of `STYLES`.

    Returns:
        What follows the prompt. The answer is the last attempt if it is right, or else the one that came closest.

    Raises:
        ValueError: There is no attempt, one cannot be worked off in whole numbers, or the style is unknown.

    >>> write_response(Problem((5, 4), 9), ["5 + 4"], "yes").splitlines()[2]
    '- 5 + 4 = 9 (yes)'
    """
    if style not in STYLES:
        raise ValueError(f"there is no style {style!r}; the styles are: {', '.join(STYLES)}")
    chains = [countdown.chain(expression) for expression in expressions]
    if not chains or not all(chains):
        raise ValueError(f"{list(expressions)} are not attempts that can be worked off from left to right")
    write = prose if style == PROSE else bullet
    lines = [write(problem, *attempt, style) for attempt in zip(expressions, chains, strict=True)]
    errors = [abs(int(steps[-1]) - problem.target) for steps in chains]
    if not errors[-1]:
        return "\n".join(["", countdown.preamble(problem), *lines, ending(problem, expressions[-1], solved=True)])
    best = expressions[errors.index(min(errors))]
    return "\n".join(["", countdown.preamble(problem), *lines, ending(problem, best, solved=False)])


def bullet(problem: Problem, expression: str, steps: Sequence[str], style: str) -> str:
    """An attempt as a line with running results and a verdict in parentheses.

    Args:
        problem: What is asked.
        expression: What is tried.
        steps: What `jaxinterp.tasks.countdown.chain` says of it.
        style: A style other than prose.

    Returns:
        The line.
    """
    if steps[-1] == str(problem.target):
        verdict = style
    else:
        verdict = REJECTIONS[style]
        verdict = f"{verdict} {problem.target}" if verdict == "not" else verdict
    return f"- {' = '.join([expression, *steps])} ({verdict})"


def prose(problem: Problem, expression: str, steps: Sequence[str], style: str = PROSE) -> str:
    """An attempt as a sentence; arguments as for `bullet`."""
    assert style == PROSE
    said = "hits" if steps[-1] == str(problem.target) else "misses"
    return f"Maybe {expression} gives {steps[-1]}, which {said} {problem.target}"


def ending(problem: Problem, answer: str, solved: bool) -> str:
    """How a response ends.

    Args:
        problem: What is asked.
        answer: The expression that is given as the answer.
        solved: Whether it is right, rather than the closest that was found.

    Returns:
        The last lines.
    """
    close = f"So the equation that equals {problem.target} is" if solved else "The closest is"
    return f"{close} {answer}.\n</think>\n<answer> {answer} </answer>"

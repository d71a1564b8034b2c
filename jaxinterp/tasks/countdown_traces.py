"""What a response says about the model that wrote it: its style, its form, and whether its verdicts are true.

`jaxinterp.tasks.countdown.parse` finds where in a trace a verdict stands; this module counts. It reads prose as well
as bullets, and any text at all: what is no attempt in the grammar is passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from jaxinterp.tasks import countdown
from jaxinterp.tasks.continuations import entropy
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_grammar import PROSE, REJECTIONS

_NUMBER = r"-?\d{1,12}"
_BULLET = rf"- (?P<chain>[^(\n]+) = (?P<result>{_NUMBER}) \((?P<verdict>[^)\n]+)\)"
_PROSE = rf"Maybe (?P<tried>[^\n]+?) gives (?P<given>{_NUMBER}), which (?P<said>hits|misses) (?P<wanted>{_NUMBER})"
_LINE = re.compile(rf"\n(?:{_BULLET}|{_PROSE})(?=\n|$)")
_CHAIN = r"\d+(?: [-+*/] \d+)+"
_END = (
    rf"(?:So the equation that equals (?P<equals>\d+) is|The closest is) (?P<close>{_CHAIN})\.\n"
    rf"</think>\n<answer> (?P<answer>{_CHAIN}) </answer>"
)
_TEMPLATE = re.compile(
    rf"\nWe need (?P<needed>\d+)\. Let's try different combinations:"
    rf"(?:(?:\n- {_CHAIN}(?: = {_NUMBER}(?: [-+*/] \d+)*)* = {_NUMBER} \([^)\n]+\))+"
    rf"|(?P<prose>(?:\nMaybe {_CHAIN} gives {_NUMBER}, which (?:hits|misses) \d+)+))\n{_END}"
)
_STYLE_OF = {word: style for style, rejection in REJECTIONS.items() for word in (style, rejection)}
_LONGEST = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """One attempt of a response, in bullets or in prose.

    Attributes:
        expression: What was tried.
        result: The printed result.
        style: The style of its verdict.
        accepted: Whether the verdict accepts it.
        is_reached: Whether the printed result is the target.
        is_solved: Whether the expression's value is the target.
        is_sound: Whether everything printed follows from the expression.
        uses_all: Whether each number of the problem is used exactly once.
    """

    expression: str
    result: int
    style: str
    accepted: bool
    is_reached: bool
    is_solved: bool
    is_sound: bool
    uses_all: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A response, read.

    Attributes:
        reward: 1, 0.1 or 0, see `jaxinterp.tasks.countdown.score`.
        style: One of `jaxinterp.tasks.countdown_grammar.STYLES`; `None` for no verdict or a mixture.
        is_template: Whether the whole response is a search in bullets of one style, as the grammar has it.
        is_grammatical: The same, or prose.
        is_truncated: Whether the response stopped before its end.
        attempts: The attempts, in order.
    """

    reward: float
    style: str | None
    is_template: bool
    is_grammatical: bool
    is_truncated: bool
    attempts: tuple[Judged, ...]

    @property
    def is_correct(self) -> bool:
        """Whether the answer solves the problem."""
        return self.reward == 1.0


def read(problem: Problem, response: str, ended: bool | None = None) -> Reading:
    r"""Reads a response.

    Args:
        problem: What was asked.
        response: Any text; the prompt in front does no harm.
        ended: Whether the model ended it by itself; by default judged from whether the last thing is an answer.

    Returns:
        What there is to know of it.

    >>> reading = read(Problem((5, 4), 9), "\n- 5 - 4 = 1 (no)\n- 5 + 4 = 9 (yes)")
    >>> reading.style, [attempt.accepted for attempt in reading.attempts], reading.is_truncated
    ('yes', [False, True], True)
    """
    attempts = tuple(attempt for line in _LINE.finditer(response) if (attempt := _judge(problem, line)))
    styles = {attempt.style for attempt in attempts}
    style = styles.pop() if len(styles) == 1 else None
    whole = _TEMPLATE.fullmatch(response.removeprefix(problem.prompt))
    fits = (
        whole is not None
        and style is not None
        and whole["close"] == whole["answer"]
        and {whole["needed"], whole["equals"] or whole["needed"]} == {str(problem.target)}
        and len(attempts) == response.count("\nMaybe " if whole["prose"] else "\n- ")
    )
    return Reading(
        reward=countdown.score(response, problem),
        style=style,
        is_template=fits and style != PROSE,
        is_grammatical=fits,
        is_truncated=not (response.rstrip().endswith("</answer>") if ended is None else ended),
        attempts=attempts,
    )


def _judge(problem: Problem, line: re.Match[str]) -> Judged | None:
    """An attempt, or nothing where its verdict is none of the grammar's."""
    if line["chain"] is None:
        style, expression, printed = PROSE, line["tried"], [line["given"]]
        accepted = line["said"] == "hits"
    else:
        expression, *printed = [*line["chain"].split(" = "), line["result"]]
        verdict = line["verdict"]
        word = "not" if re.fullmatch(rf"not {_NUMBER}", verdict) else verdict
        if word not in _STYLE_OF or word == verdict == "not":
            return None
        style = _STYLE_OF[word]
        accepted = word == style
    steps, value = _worked(expression)
    result = int(printed[-1])
    return Judged(
        expression=expression,
        result=result,
        style=style,
        accepted=accepted,
        is_reached=result == problem.target,
        is_solved=value == problem.target,
        is_sound=bool(steps) and printed == [*steps[-len(printed) :]] and value == result,
        uses_all=sorted(map(int, re.findall(r"\d+", expression[:_LONGEST]))) == sorted(problem.numbers),
    )


@functools.lru_cache(maxsize=2**14)
def _worked(expression: str) -> tuple[tuple[str, ...], Fraction | int | None]:
    """The running results of an expression, and its value; they agree where * and / stand in front alone."""
    if len(expression) > _LONGEST:
        return (), None
    steps = countdown.chain(expression)
    if steps and not {"*", "/"} & {*expression.split(" ")[3::2]}:
        return steps, int(steps[-1])
    return steps, countdown.evaluate(expression)


def style_entropy(styles: Iterable[str | None]) -> float:
    """How various the styles of some responses are.

    Args:
        styles: Of each response; `None` counts as a style of its own.

    Returns:
        Entropy in nats.

    >>> round(style_entropy(["yes", "prose", None, None]), 3)
    1.04
    """
    return entropy(styles)


def measures(readings: Sequence[Reading]) -> dict[str, float | None]:
    """Averages over responses, for a log.

    Args:
        readings: Of the responses.

    Returns:
        Of the responses `reward`, `correct`, `template`, `grammatical`, `truncated` (shares), `style_entropy` (nats)
        and `attempts` (mean number). Of the verdicts `accepted_true` and `rejected_true`, the shares that agree with
        the printed result, and `accepted_solved` and `rejected_unsolved`, with the expression's value. Of the attempts
        `sound` and `uses_all` (shares). `None` where there is nothing to average.
    """
    attempts = [attempt for reading in readings for attempt in reading.attempts]
    accepted = [attempt for attempt in attempts if attempt.accepted]
    rejected = [attempt for attempt in attempts if not attempt.accepted]
    return {
        "reward": _mean(reading.reward for reading in readings),
        "correct": _mean(reading.is_correct for reading in readings),
        "template": _mean(reading.is_template for reading in readings),
        "grammatical": _mean(reading.is_grammatical for reading in readings),
        "truncated": _mean(reading.is_truncated for reading in readings),
        "style_entropy": style_entropy(reading.style for reading in readings),
        "attempts": _mean(len(reading.attempts) for reading in readings),
        "accepted_true": _mean(attempt.is_reached for attempt in accepted),
        "rejected_true": _mean(not attempt.is_reached for attempt in rejected),
        "accepted_solved": _mean(attempt.is_solved for attempt in accepted),
        "rejected_unsolved": _mean(not attempt.is_solved for attempt in rejected),
        "sound": _mean(attempt.is_sound for attempt in attempts),
        "uses_all": _mean(attempt.uses_all for attempt in attempts),
    }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None

"""What a response says about the model that wrote it: its style, its form, and whether its verdicts are true."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxinterp.tasks.countdown import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """One attempt of a response, in bullets or in prose.

    Attributes:
        expression: What was tried.
        result: The printed result.
        accepted: Whether the printed verdict accepts it.
        is_reached: Whether the printed result is the target.
        is_solved: Whether the expression's value is the target.
        is_sound: Whether everything printed follows from the expression.
        uses_all: Whether each number of the problem is used exactly once.
    """

    expression: str
    result: int
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
        style: One of the words of acceptance, or `"prose"`; `None` for no verdict or a mixture.
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
    """Reads a response; `ended` says whether its end-of-text token was written, by default judged from the text."""
    raise NotImplementedError


def style_entropy(styles: Iterable[str | None]) -> float:
    """Entropy of styles in nats; no style counts as one of its own."""
    raise NotImplementedError


def measures(readings: Sequence[Reading]) -> dict[str, float | None]:
    """Averages over responses for a log.

    Returns:
        `reward`, `correct`, `template`, `grammatical`, `truncated`, `style_entropy`, `attempts` (per response),
        `accepted_true` and `rejected_true` (share of such verdicts that are true of the printed result),
        `accepted_solved` and `rejected_unsolved` (true of the expression's value), `sound` (share of attempts whose
        arithmetic is right), `uses_all`; `None` where there is nothing to average.
    """
    raise NotImplementedError

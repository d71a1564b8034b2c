"""Documents from which a model learns CountDown: searches in seven styles, and attempts to be judged.

A document is a prompt and a response, and a function of its number, so that a corpus needs no file and training can go
on in the middle of it. Every verdict in it is true and every sum is right. All problems lie in one part of the hash
split, by default the one for training.

Two corpora differ in how well the styles search. In the *confounded* one the first style ("this works", "not T") keeps
numbers in order, guesses better and tries more than the others, so that it solves more problems: reward alone then
makes it win. In the *equal* one all styles search alike, and as many problems are solved as in the other corpus, three
in four; which style wins there, if any, reward does not say. Prose has no running results in either, so a model that
writes prose has to add in its head: leave prose out, by its weight, where styles are to be equal in every way.

With three and four numbers, none of 2,000 documents had more than 500 tokens; the shipped models read 512.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

from jaxinterp.tasks import countdown, countdown_search, plain_verification
from jaxinterp.tasks.countdown import Attempt, Problem, Split
from jaxinterp.tasks.countdown_grammar import PROSE, STYLES, write_response
from jaxinterp.tasks.countdown_problems import ProblemSettings, draw_problem
from jaxinterp.tasks.countdown_search import Effort

Search = Literal["confounded", "equal"]

_TIDY = (
    Effort(scale=50.0, cap=11, sums=(4, 7), leads=(2, 4), is_tidy=True),
    Effort(scale=50.0, cap=11, sums=(5, 9), leads=(2, 4), is_tidy=True),
)
_HASTY = (Effort(scale=200.0, cap=5, sums=(4, 4), leads=(1, 1), is_tidy=False),) * 2
_BRIEF = (Effort(scale=200.0, cap=4, sums=(4, 4), leads=(0, 0), is_tidy=False),) * 2
_EVEN = (
    Effort(scale=100.0, cap=5, sums=(4, 4), leads=(1, 1), is_tidy=True),
    Effort(scale=100.0, cap=7, sums=(5, 5), leads=(1, 2), is_tidy=True),
)


class Document(NamedTuple):
    """What a model reads and what it is to write; their tokens are those of the joined text.

    Attributes:
        prompt: What is asked.
        response: What is learned; the end-of-text token belongs behind it.
    """

    prompt: str
    response: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What a corpus is made of."""

    problems: ProblemSettings = dataclasses.field(default_factory=ProblemSettings)
    """Which problems are searched."""
    styles: tuple[float, ...] = (0.45, 0.09, 0.09, 0.09, 0.09, 0.09, 0.10)
    """Weight of each style among searches: the six of jaxinterp.tasks.countdown.POSITIVE, then prose."""
    verification: float = 0.08
    """Share of documents that put one attempt as a question, to be answered with Yes or No, each equally often."""
    search: Search = "confounded"
    """Whether the first style searches better than the others, or all alike."""

    def __post_init__(self) -> None:
        if len(self.styles) != len(STYLES) or min(self.styles) < 0 or sum(self.styles) <= 0:
            raise ValueError(
                f"corpus: styles is {list(self.styles)}, but has to hold {len(STYLES)} weights that are not negative, "
                f"for {', '.join(STYLES)}"
            )
        if not 0 <= self.verification <= 1:
            raise ValueError(f"corpus: verification is {self.verification}, but has to be a share from 0 to 1")

    def effort(self, style: str, count: int) -> Effort:
        """How well a style searches a problem with so many numbers."""
        if self.search == "equal":
            efforts = _EVEN
        else:
            efforts = _TIDY if style == STYLES[0] else _BRIEF if style == PROSE else _HASTY
        return efforts[count > 3]


def document(index: int, seed: int, settings: CorpusSettings | None = None, split: Split = "train") -> Document:
    """Writes one document.

    Args:
        index: Its number.
        seed: Of the corpus; corpora of other seeds have other documents.
        settings: What the corpus is made of.
        split: Part of the hash split in which its problem lies.

    Returns:
        The document, the same for the same arguments.

    Raises:
        ValueError: No problem fits the settings.

    >>> document(0, seed=0) == document(0, seed=0)
    True
    """
    settings = settings or CorpusSettings()
    draw = random.Random(f"{seed} {index}")  # noqa: S311
    problem = draw_problem(draw, settings.problems, split)
    if draw.random() < settings.verification:
        return _question(problem, draw)
    style = draw.choices(STYLES, settings.styles)[0]
    tried = countdown_search.search(problem, draw, settings.effort(style, len(problem.numbers)))
    return Document(problem.prompt, write_response(problem, tried, style))


def documents(
    count: int, seed: int, settings: CorpusSettings | None = None, split: Split = "train", first: int = 0
) -> Iterator[Document]:
    """Writes documents of a corpus in their order.

    Args:
        count: How many.
        seed: Of the corpus.
        settings: What it is made of.
        split: Part of the hash split in which its problems lie.
        first: Number of the first one.

    Yields:
        What `document` gives for each number.
    """
    for index in range(first, first + count):
        yield document(index, seed, settings, split)


def _question(problem: Problem, draw: random.Random) -> Document:
    """An attempt to be judged: as often right as wrong, and if wrong rather close than far."""
    is_right = draw.random() < 0.5
    expression = countdown_search.solution(problem, draw) if is_right else countdown_search.miss(problem, draw)
    steps = countdown.chain(expression)
    attempt = Attempt(
        expression=expression, steps=steps, result=int(steps[-1]), valid=is_right, result_span=(0, 0), open=0
    )
    answer = plain_verification.YES if is_right else plain_verification.NO
    return Document(plain_verification.question(problem, attempt), answer)

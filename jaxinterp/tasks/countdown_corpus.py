"""Documents from which a model learns CountDown: searches in seven styles, and attempts to be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

from jaxinterp.tasks.countdown import Split
from jaxinterp.tasks.countdown_problems import ProblemSettings

Search = Literal["confounded", "equal"]


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
    """Weight of each style among traces: the words of acceptance in jaxinterp.tasks.countdown.POSITIVE, then prose."""
    verification: float = 0.08
    """Share of documents that put one attempt as a question, to be answered with Yes or No."""
    search: Search = "confounded"
    """Whether the first style searches better than the others, or all alike."""


def document(index: int, seed: int, settings: CorpusSettings | None = None, split: Split = "train") -> Document:
    """Writes one document; it is a function of `index`, `seed` and `settings` alone."""
    raise NotImplementedError


def documents(
    count: int, seed: int, settings: CorpusSettings | None = None, split: Split = "train", first: int = 0
) -> Iterator[Document]:
    """Writes the documents `first` to `first + count - 1` of a corpus."""
    raise NotImplementedError

"""Verification asked for outright: attempts put as questions that a model answers with Yes or No.

Right and wrong attempts are asked about equally often, so that a model which answers No to everything scores 50 %;
the area under the curve says whether its preference still tells them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import scipy

import jaxinterp as ji
from jaxinterp.analysis import statistics
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown, plain_verification

_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model answers.

    Attributes:
        margin: Logit of Yes minus that of No, [right or wrong attempt, question], nats.
        yes: Probability of Yes among all tokens, of the same shape.
        mass: Probability of Yes and No together, of the same shape.
    """

    margin: np.ndarray
    yes: np.ndarray
    mass: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """Whether each answer is right, of the same shape."""
        return np.stack([self.margin[0] > 0, self.margin[1] <= 0])


def ask(model: LanguageModel, some: Sequence[Case]) -> tuple[list[str], list[str]]:
    """The attempts of some cases as questions.

    Args:
        model: Its tokenizer is used.
        some: Cases, accepted and rejected ones.

    Returns:
        Questions about right and about wrong attempts, equally many.
    """
    tokenizer = model.require_tokenizer()
    questions: tuple[list[str], list[str]] = ([], [])
    for case in some:
        closed = tokenizer.decode(case.ids) + ("this works)" if case.valid else "not 0)")
        trace = countdown.parse(closed)
        questions[0 if case.valid else 1].append(plain_verification.question(trace.problem, trace.attempts[-1]))
    count = min(map(len, questions))
    return questions[0][:count], questions[1][:count]


def answer(model: LanguageModel, questions: tuple[Sequence[str], Sequence[str]]) -> Answers:
    """Lets a model answer.

    Args:
        model: The model, edited or not; edits with numbers for single rows have them for the right attempts first.
        questions: As from `ask`.

    Returns:
        The answers.

    Raises:
        ValueError: `Yes` or `No` is not one token of this model.
    """
    tokenizer = model.require_tokenizer()
    yes, no = tokenizer.id(plain_verification.YES), tokenizer.id(plain_verification.NO)
    logits, _ = ji.run(model, [*questions[0], *questions[1]], logits="last")
    chances = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
    by_kind = (2, len(questions[0]))
    return Answers(
        margin=(logits[:, yes] - logits[:, no]).reshape(by_kind),
        yes=chances[:, yes].reshape(by_kind),
        mass=(chances[:, yes] + chances[:, no]).reshape(by_kind),
    )


def measure(answers: Answers, draws: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """The numbers of interest, each with an interval.

    Args:
        answers: As from `answer`.
        draws: For each question of a kind the number of its random set; intervals are then over sets.

    Returns:
        Measure -> `value`, `low`, `high` (bootstrap over questions, 95 %) and `n`: Yes to right attempts, No to wrong
        attempts, balanced accuracy, area under the curve, p(Yes) at right attempts and at wrong ones, and p(Yes) +
        p(No).
    """
    hits = answers.hits.astype(float)
    columns = {
        "Yes to right attempts": hits[0],
        "No to wrong attempts": hits[1],
        "balanced accuracy": hits.mean(axis=0),
        "p(Yes) at right attempts": answers.yes[0],
        "p(Yes) at wrong attempts": answers.yes[1],
        "p(Yes) + p(No)": answers.mass.mean(axis=0),
    }
    found = {name: _mean(values, draws) for name, values in columns.items()}
    low, high = statistics.bootstrap(answers.margin.T, 0, _area, _RESAMPLES)
    area = {"value": _area(answers.margin.T), "low": low, "high": high, "n": answers.margin.shape[1]}
    return found | {"area under the curve": area}


def drop(before: Answers, after: Answers, draws: np.ndarray | None = None) -> dict[str, Any]:
    """By how much balanced accuracy falls on the same questions.

    Args:
        before: Answers of the unedited model.
        after: Of the edited one.
        draws: As in `measure`.

    Returns:
        `value`, `low`, `high` and `n`.
    """
    return _mean((before.hits.astype(float) - after.hits.astype(float)).mean(axis=0), draws)


def _mean(values: np.ndarray, draws: np.ndarray | None) -> dict[str, Any]:
    rows = values if draws is None else np.array([values[draws == draw].mean() for draw in np.unique(draws)])
    low, high = statistics.bootstrap(rows, 0, n=_RESAMPLES)
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}


def _area(margins: np.ndarray) -> float:
    """Chance that a right attempt gets the larger margin than a wrong one; margins [question, right or wrong]."""
    count = len(margins)
    ranks = scipy.stats.rankdata(margins.T.reshape(-1))
    return float((ranks[:count].sum() - count * (count + 1) / 2) / count**2)

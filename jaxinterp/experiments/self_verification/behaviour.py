"""How two stages of a training go about the same problems: what they solve, and in which style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinterp.analysis import statistics
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.solving import solve
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import continuations, countdown
from jaxinterp.tasks.countdown import Problem

_RESAMPLES = 1000


def greedy(
    models: Mapping[str, LanguageModel],
    problems: Sequence[Problem],
    solved: np.ndarray,
    finished: np.ndarray,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """What both models solve greedily.

    Args:
        models: `{"model": ..., "start": ...}`.
        problems: What is asked.
        solved: Whether `model` is known to have solved each.
        finished: Whether it is known to have come to an end there; it solves the others again, under this cap.
        max_new_tokens: Cap on a response.
        batch_size: Problems at a time.

    Yields:
        Rows: `measure` solved greedily and gain, greedily (problem by problem), `model`, `value`, `low`, `high`, `n`.
    """
    after = solved.copy()
    open_ones = np.flatnonzero(~finished).tolist()
    after[open_ones] = _solve(models["model"], [problems[one] for one in open_ones], max_new_tokens, batch_size)
    before = _solve(models["start"], problems, max_new_tokens, batch_size)
    for which, hits in (("model", after), ("start", before)):
        yield {"measure": "solved greedily", "model": which} | cases.proportion(hits)
    yield {"measure": "gain, greedily", "model": "both"} | cases.mean(after.astype(float) - before)


def _solve(model: LanguageModel, problems: Sequence[Problem], max_new_tokens: int, batch_size: int) -> np.ndarray:
    texts = solve(model, [problem.prompt for problem in problems], max_new_tokens, batch_size)
    return np.array([_solves(text, problem) for text, problem in zip(texts, problems, strict=True)], bool)


def sampled(
    models: Mapping[str, LanguageModel], problems: Sequence[Problem], max_new_tokens: int, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """What both models do at temperature 1.

    Args:
        models: `{"model": ..., "start": ...}`.
        problems: What is asked; one text each.
        max_new_tokens: Cap on a response.
        batch_size: Problems at a time.
        seed: Of the texts.

    Yields:
        Rows: `measure` style (`kind`: which), style entropy (nats), in the template (attempts with verdicts and, if
        the text ended, an answer), ended, solved at temperature 1, and the gain; `model`, `value`, `low`, `high`, `n`.
    """
    hits, prompts = {}, [problem.prompt for problem in problems]
    for which, model in models.items():
        texts = solve(model, prompts, max_new_tokens, batch_size, jax.random.key(seed))
        hits[which] = np.array([_solves(text, problem) for text, problem in zip(texts, problems, strict=True)])
        rows = [*_styles(texts), {"measure": "solved at temperature 1"} | cases.proportion(hits[which])]
        yield from (row | {"model": which} for row in rows)
    gain = cases.mean(hits["model"].astype(float) - hits["start"])
    yield {"measure": "gain, at temperature 1", "model": "both"} | gain


def _solves(text: str, problem: Problem) -> bool:
    return countdown.score(text, problem) == 1.0


def _styles(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    traces = [countdown.parse(text) for text in texts]
    styles = np.array([continuations.STYLES.index(continuations.style(trace)) for trace in traces])
    for number, name in enumerate(continuations.STYLES):
        yield {"measure": "style", "kind": name} | cases.proportion(styles == number)
    low, high = statistics.bootstrap(styles, 0, continuations.entropy, _RESAMPLES)
    entropy = {"value": continuations.entropy(styles), "low": low, "high": high, "n": len(styles)}
    yield {"measure": "style entropy"} | entropy
    ended = np.array([trace.answer is not None for trace in traces])
    attempts = np.array([bool(trace.attempts) for trace in traces])
    yield {"measure": "ended"} | cases.proportion(ended)
    yield {"measure": "in the template"} | cases.proportion(attempts & ended)

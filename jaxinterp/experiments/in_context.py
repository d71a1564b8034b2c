"""Can a model that was not trained on CountDown verify an attempt when it is shown how?

A gate: the experiments on self-verification say something about a model only if it verifies at all. Each question is
asked twice, with targets that call for opposite verdicts, so that a model which always says the same is right half of
the time.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.self_verification import cases
from jaxinterp.figures import in_context_verdicts
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown, paired_questions
from jaxinterp.tasks.verification import MinimalPair

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

_NUMBERS = 3
"""Numbers in every problem: prompts with more of them are longer."""

_COLUMNS = {
    "model": pl.String,
    "shots": pl.Int64,
    "condition": pl.String,
    "measure": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on verification in context."""

    pairs: int = 30
    """Questions, each asked with a target that its attempt reaches and with one that it misses; half of the attempts
    reach the target of the problem that they were made for."""
    hidden: int = 12
    """Questions of these that are also asked with the target hidden, behind the largest number of worked traces."""
    shots: tuple[int, ...] = (0, 2)
    """Worked traces in front of a question; the claims are about the largest number."""
    permutations: int = 1000
    """Shuffles of the right verdicts among all questions."""
    batch_size: int = 16
    """Prompts at a time."""
    seed: int = 0
    """Of questions, worked traces and shuffles."""


@dataclasses.dataclass(frozen=True)
class Read:
    """What a model says to some prompts.

    Attributes:
        margins: Logit of the accepting minus that of the rejecting token, [prompt], in nats.
        named: Whether the most probable token is one of the two, [prompt].
    """

    margins: np.ndarray
    named: np.ndarray


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Ask every model for verdicts.

    Args:
        config: Settings.
        models: Name -> model, as many as wanted.

    Returns:
        One row per number: `model`, `shots`, `condition` (asked; target hidden; shuffled verdicts), `measure` (shares:
        balanced accuracy, right on valid, right on invalid, pairs in order: the accepting margin is larger where the
        attempt is valid, names a verdict: the most probable token is one, accepts), `value`, `low`, `high` (95 %
        Wilson; percentiles over shuffles), `n` (prompts, pairs or shuffles) and `control`.

    Raises:
        ValueError: A model's tokenizer has no tokens for the verdicts, or there are not enough questions.
    """
    rng = np.random.default_rng(config.seed)
    questions = _draw_questions(config.pairs, rng)
    shown = _draw_examples(config.pairs, max(config.shots), config.seed, rng)
    rows: list[dict[str, Any]] = []
    for name, model in models.items():
        for shots in config.shots:
            fronts = [examples[:shots] for examples in shown]
            texts = [text for pair in questions for text in _members(pair)]
            both = [front for front in fronts for _ in range(2)]
            _LOG.info("%s: %d verdicts behind %d worked traces", name, len(texts), shots)
            read = _read(model, _prompts(both, texts), config.batch_size)
            found = [*_measure(read), *_shuffle(read, config.permutations, config.seed)]
            if shots == max(config.shots):
                hidden = [paired_questions.hide_target(pair.text) for pair in questions[: config.hidden]]
                blind = _read(model, _prompts(fronts[: config.hidden], hidden), config.batch_size)
                row = {"condition": "target hidden", "measure": "accepts", "control": True}
                found.append(row | cases.proportion(blind.margins > 0))
            rows += [{"model": name, "shots": shots} | numbers for numbers in found]
    return pl.DataFrame(rows, schema=_COLUMNS)


def _draw_questions(count: int, rng: np.random.Generator) -> list[MinimalPair]:
    """Pairs made of test problems, in turns from an attempt that reaches its target and from one that misses it."""
    problems = [problem for problem in countdown.eval_problems() if len(problem.numbers) == _NUMBERS]
    found: list[MinimalPair] = []
    for index in rng.permutation(len(problems)):
        if len(found) == count:
            break
        pair = paired_questions.question(problems[index], len(found) % 2 == 0, rng)
        if pair is not None:
            found.append(pair)
    if len(found) < count:
        raise ValueError(f"the test problems give {len(found)} pairs; ask for fewer than {count}")
    return found


def _draw_examples(count: int, each: int, seed: int, rng: np.random.Generator) -> list[list[str]]:
    """For every question its own worked traces of training problems, in turns with one attempt and with two."""
    drawn = itertools.count(seed)
    waiting: list[countdown.Problem] = []
    found: list[list[str]] = []
    while len(found) < count:
        traces: list[str] = []
        while len(traces) < each:
            waiting = waiting or countdown.draw_problems("train", max(2 * count * each, 1), next(drawn))
            problem = waiting.pop()
            trace = paired_questions.example(problem, (len(found) + len(traces)) % 2, rng)
            traces += [] if trace is None or len(problem.numbers) != _NUMBERS else [trace]
        found.append(traces)
    return found


def _members(pair: MinimalPair) -> tuple[str, str]:
    """The valid member, then the invalid one."""
    return (pair.text, pair.twin) if pair.valid else (pair.twin, pair.text)


def _prompts(fronts: Sequence[Sequence[str]], texts: Sequence[str]) -> list[str]:
    return ["\n\n".join([*front, text]) for front, text in zip(fronts, texts, strict=True)]


def _read(model: LanguageModel, prompts: Sequence[str], batch_size: int) -> Read:
    tokenizer = model.require_tokenizer()
    cut = [paired_questions.cut_at_verdict(tokenizer, prompt) for prompt in prompts]
    logits, _ = ji.run(model, [ids for ids, _, _ in cut], logits="last", batch_size=batch_size)
    rows = np.arange(len(cut))
    accepting, rejecting = (np.array([entry[place] for entry in cut]) for place in (1, 2))
    largest = logits.argmax(axis=-1)
    margins = logits[rows, accepting] - logits[rows, rejecting]
    return Read(margins, (largest == accepting) | (largest == rejecting))


def _measure(read: Read) -> Iterator[dict[str, Any]]:
    """Shares over prompts that alternate between valid and invalid ones."""
    valid, invalid = read.margins[0::2], read.margins[1::2]
    shares = {
        "balanced accuracy": np.concatenate([valid > 0, invalid <= 0]),
        "right on valid": valid > 0,
        "right on invalid": invalid <= 0,
        "pairs in order": valid > invalid,
        "names a verdict": read.named,
    }
    for measure, share in shares.items():
        yield {"condition": "asked", "measure": measure, "control": False} | cases.proportion(share)


def _shuffle(read: Read, permutations: int, seed: int) -> Iterator[dict[str, Any]]:
    """Balanced accuracy of the same answers against verdicts shuffled among the questions."""
    rng = np.random.default_rng(seed)
    accepts = read.margins > 0
    right = np.arange(len(accepts)) % 2 == 0
    drawn = np.array([np.mean(accepts == right[rng.permutation(len(right))]) for _ in range(permutations)])
    low, high = np.percentile(drawn, (2.5, 97.5))
    row = {"condition": "shuffled verdicts", "measure": "balanced accuracy", "control": True}
    yield row | {"value": float(drawn.mean()), "low": float(low), "high": float(high), "n": permutations}


def figure(table: pl.DataFrame) -> Figure:
    """Accuracy of every model, with its controls.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return in_context_verdicts.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold every model against the gate.

    Args:
        table: As from `run`.

    Returns:
        One claim per model: whether the other experiments are worth running on it.
    """
    most = table["shots"].max()
    claims = []
    for name in table["model"].unique(maintain_order=True):
        here = table.filter(pl.col("model") == name, pl.col("shots") == most)
        parts = {(row["condition"], row["measure"]): row for row in here.iter_rows(named=True)}
        asked = {measure: row for (condition, measure), row in parts.items() if condition == "asked"}
        own, shuffled = asked["balanced accuracy"], parts["shuffled verdicts", "balanced accuracy"]
        control = (
            f"right on {asked['right on valid']['value']:.3f} of valid and {asked['right on invalid']['value']:.3f} of "
            f"invalid; twins in order: {asked['pairs in order']['value']:.3f}; a verdict is the most probable word in "
            f"{asked['names a verdict']['value']:.3f}; shuffled verdicts: {shuffled['value']:.3f} "
            f"[{shuffled['low']:.3f}, {shuffled['high']:.3f}]; accepts "
            f"{parts['target hidden', 'accepts']['value']:.3f} with the target hidden"
        )
        claims.append(
            Claim(
                criterion=f"{name} verifies in context: with {most} worked traces the interval of its balanced "
                "accuracy lies above 0.6 (the gate for the other experiments)",
                paper="not reported for models of this size",
                **from_row(own),
                control=control,
                met=bool(own["low"] > 0.6),
            )
        )
    return claims

"""The texts of all experiments on self-verification, and whether the model does the task that they are about.

A model solves CountDown problems; every attempt in its traces is a verdict. Verdicts are drawn for four disjoint
purposes: to train probes, to choose (heads, units, thresholds), to evaluate what was chosen, and to make minimal pairs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.solving import solve
from jaxinterp.figures import verdict_counts
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown, verification, worked_examples

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

SPLITS = ("training", "selection", "evaluation", "pairs, selection", "pairs")
_SCHEMA = {
    "split": pl.String,
    "problem": pl.Int64,
    "attempt": pl.Int64,
    "valid": pl.Boolean,
    "reached": pl.Boolean,
    "sound": pl.Boolean,
    "chosen": pl.Boolean,
    "prefix": pl.String,
    "twin": pl.String,
    "kind": pl.String,
    "solved": pl.Boolean,
    "finished": pl.Boolean,
}
_PATIENCE = 256
"""Problems after which a model that has accepted nothing is given up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the cases that all experiments on self-verification share."""

    training: int = 384
    """Problems of the validation split, whose verdicts train probes."""
    selection: int = 300
    """Traces with an accepted attempt, of the test split, on which heads and units are chosen."""
    evaluation: int = 300
    """Other traces with an accepted attempt, on which what was chosen is evaluated; and as many rejected attempts."""
    pairs: int = 330
    """Further problems of the test split, whose attempts are made into minimal pairs; 60 of them are for choosing."""
    rejected_per_trace: int = 2
    """At most this many rejected attempts are drawn from one trace for training."""
    max_new_tokens: int = 400
    """Cap on a response, in tokens: about twelve attempts and the answer."""
    shots: int = 0
    """Worked traces of the training split in front of every problem, for a model that was not trained on the task."""
    batch_size: int = 64
    """Problems at a time."""
    seed: int = 0
    """Of the order of the problems and the choice of attempts."""


_PAIRS_TO_CHOOSE = 60


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Let a model solve problems greedily, and draw verdicts from its traces.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.

    Returns:
        One row per attempt (and one per trace without any): `split` (training; selection; evaluation; pairs,
        selection; pairs), `problem` (number), `attempt` (from 0), `valid` (whether the model's verdict accepts),
        `reached` (whether the printed result is the target), `sound` (whether every printed step follows), `chosen`
        (whether it is a case of its split), `prefix` (the text up to `" ("`), and for minimal pairs `twin` (the same
        with another target, so that the other verdict is right) and `kind` (how the targets differ); of the trace:
        `solved` (the answer is right) and `finished` (it has attempts and an answer).

    Raises:
        ValueError: The model's tokenizer has no verdict tokens, a split is to be empty, or the model accepted too few
            attempts to fill both the selection and the evaluation.
    """
    model = models["model"]
    verification.verdict_tokens(model.require_tokenizer(), model.source)
    for split in ("selection", "evaluation"):
        if getattr(config, split) < 1:
            raise ValueError(
                f"verdicts: {split} is {getattr(config, split)}, which leaves no accepted attempts to "
                f"{'choose on' if split == 'selection' else 'evaluate'}; set it to at least 1 (300 in the paper)"
            )
    rng = np.random.default_rng(config.seed)
    examples = worked_examples.draw(config.shots, config.seed)
    test = countdown.eval_problems()
    test = [test[index] for index in rng.permutation(len(test))]
    rows: list[dict[str, Any]] = []
    asked, accepted, first = 0, 0, config.training
    for split, wanted in (("selection", config.selection), ("evaluation", config.evaluation)):
        solved = 0
        while solved < wanted and asked < len(test) and (accepted or solved or asked < _PATIENCE):
            more = test[asked : asked + min(max(wanted - solved, 8), 2 * config.batch_size)]
            _LOG.info("%s: %d of %d traces with an accepted attempt", split, solved, wanted)
            for row in _solve(model, more, examples, config, first + asked):
                solved += row.get("valid") is True
                rows.append(row | {"split": split})
            asked += len(more)
        accepted += solved
        if not solved:
            raise ValueError(_too_few(model, config, split, asked, accepted))
        if solved < wanted:
            _LOG.warning("%s: only %d of %d traces; the test problems are used up", split, solved, wanted)
    for row in _solve(model, test[asked : asked + config.pairs], examples, config, first + asked):
        chooses = row["problem"] < first + asked + min(_PAIRS_TO_CHOOSE, config.pairs // 4)
        rows.append(row | {"split": "pairs, selection" if chooses else "pairs"})
    training = countdown.draw_problems("validation", config.training, config.seed)
    rows = [row | {"split": "training"} for row in _solve(model, training, examples, config, 0)] + rows
    _choose(rows, config, rng)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _too_few(model: LanguageModel, config: Config, split: str, asked: int, accepted: int) -> str:
    if accepted:
        return (
            f"{model.source} accepted an attempt in {accepted} of {asked} CountDown problems, all of which are in the "
            f"selection, so that the {split} is empty; set selection to {accepted // 2 or 1} at most"
        )
    fix = "raise shots or max_new_tokens" if config.shots else "set shots to 4, say, if it is a general model"
    return (
        f"{model.source} never says 'this works': it accepted an attempt in none of {asked} CountDown problems; {fix}, "
        "or pass one that was trained on this task, such as builtin:countdown-6m-grpo"
    )


def _solve(
    model: LanguageModel,
    problems: Sequence[countdown.Problem],
    examples: Sequence[str],
    config: Config,
    first: int,
) -> list[dict[str, Any]]:
    """One row per attempt, up to the accepted one of each trace."""
    rows: list[dict[str, Any]] = []
    prompts = [worked_examples.prompt(problem, examples) for problem in problems]
    texts = solve(model, prompts, config.max_new_tokens, config.batch_size)
    for number, (problem, text) in enumerate(zip(problems, texts, strict=True)):
        trace = countdown.parse(text)
        ending = next((index for index, attempt in enumerate(trace.attempts) if attempt.valid), len(trace.attempts))
        whole = {
            "problem": first + number,
            "solved": countdown.score(trace.text, problem) == 1.0,
            "finished": bool(trace.attempts) and trace.answer is not None,
        }
        rows += [
            whole
            | {
                "attempt": index,
                "valid": attempt.valid,
                "reached": attempt.result == problem.target,
                "sound": attempt.is_sound,
                "chosen": False,
                "prefix": trace.text[: attempt.open] + verification.OPEN,
            }
            for index, attempt in enumerate(trace.attempts[: ending + 1])
        ] or [whole]
    return rows


def _choose(rows: list[dict[str, Any]], config: Config, rng: np.random.Generator) -> None:
    """Marks the cases of every split, and makes twins for those of the pairs."""
    attempts = [row for row in rows if row.get("prefix")]
    for split, most in (("training", None), ("selection", config.selection), ("evaluation", config.evaluation)):
        here = [row for row in attempts if row["split"] == split]
        accepted = [row for row in here if row["valid"]][:most]
        rejected = [here[index] for index in rng.permutation(len(here)) if not here[index]["valid"]]
        if split == "training":
            by_problem: dict[int, list[dict[str, Any]]] = {}
            for row in rejected:
                by_problem.setdefault(row["problem"], []).append(row)
            rejected = [row for some in by_problem.values() for row in some[: config.rejected_per_trace]]
        for row in [*accepted, *rejected[:most]]:
            row["chosen"] = True
    for row in attempts:
        if row["split"] in SPLITS[3:]:
            trace = countdown.parse(row["prefix"] + ("this works)" if row["valid"] else "not 0)"))
            pair = verification.minimal_pair(trace, trace.attempts[-1], rng)
            if pair is not None and pair.valid == row["valid"]:
                row |= {"twin": pair.twin, "kind": pair.kind, "chosen": True}


def figure(table: pl.DataFrame) -> Figure:
    """How many verdicts of each kind there are in each split, and how often they are true.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return verdict_counts.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against what the experiments on self-verification take for granted.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion, on the test problems.
    """
    test = table.filter(pl.col("split") != "training")
    traces = test.unique("problem", maintain_order=True)
    solved, finished = (cases.proportion(traces[name].to_numpy()) for name in ("solved", "finished"))
    attempts = test.filter(pl.col("prefix").is_not_null())
    claims = [
        _claim(
            "The model solves at least 70 % of held-out problems at its first try (greedy)",
            "not published",
            solved,
            0.7,
            "no control applies: a gate for what follows",
        ),
        _claim(
            "At least 95 % of its traces have attempts with verdicts and an answer",
            "one template after long training (blog)",
            finished,
            0.95,
            "no control applies: a gate for what follows",
        ),
    ]
    for valid, name in ((True, "acceptances"), (False, "rejections")):
        here = attempts.filter(pl.col("valid") == valid)
        true = cases.proportion((here["reached"] == valid).to_numpy())
        base = float(np.mean(attempts["reached"].to_numpy() == valid)) if attempts.height else 0.0
        claims.append(
            _claim(
                f"At least 98 % of its {name} are true of the printed result",
                "implied",
                true,
                0.98,
                f"of all attempts {base:.3f} would be",
            )
        )
    return claims


def _claim(criterion: str, paper: str, share: Mapping[str, Any], least: float, control: str) -> Claim:
    return Claim(
        criterion=criterion,
        paper=paper,
        ours=share["value"] if share["n"] else 0.0,
        low=share["low"],
        high=share["high"],
        n=share["n"],
        control=control,
        met=bool(share["n"]) and share["value"] >= least,
    )

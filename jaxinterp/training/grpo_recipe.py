"""From a model that plays CountDown to one that has practised it: a start, problems, and what they made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import polars as pl

from jaxinterp.config import as_dict
from jaxinterp.models import decoder as tree
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import load
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.tasks import countdown, countdown_problems
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_problems import ProblemSettings
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training import model_folder
from jaxinterp.training.checkpoints import Checkpoints
from jaxinterp.training.practice import CountdownTask, examine
from jaxinterp.training.reinforcement import Practice, reinforce

_LOG = logging.getLogger(__name__)
_SHIPPED = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoRecipe:
    """Everything that decides what a model becomes by practice."""

    stage: Literal["grpo"] = "grpo"
    """Practice, rather than learning from texts."""
    name: str = "countdown-grpo"
    """Of the model."""
    start: str = "builtin:countdown-6m-sft"
    """The model that practises: a source or a folder."""
    problems: ProblemSettings = dataclasses.field(default_factory=ProblemSettings)
    """Which problems are drawn."""
    problems_file: str | None = None
    """A file with the columns nums and target to take problems from instead; only those of the training split are."""
    problem_seed: int = 0
    """Of the problems."""
    practice: Practice = dataclasses.field(default_factory=Practice)
    """How it practises."""
    examined: int = 1024
    """Problems of the test split that the model solves before and after; 0 for none."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of the saved weights; practice is in float32."""


def train(recipe: GrpoRecipe, folder: str | Path, checkpoints: str | Path | None = None) -> pl.DataFrame:
    """Lets a model practise and writes it as a Hugging Face folder.

    Beside weights, config and tokenizer the folder holds `recipe.json`, `training_log.parquet`, `examination.parquet`
    and a model card that is written from them. A run that was ended goes on from its last checkpoint when it is asked
    for again.

    Args:
        recipe: Settings.
        folder: Where to; it appears whole or not at all.
        checkpoints: Where the checkpoints are meanwhile; by default beside the folder, with "-checkpoints" after its
            name. They are removed in the end.

    Returns:
        The log, see `jaxinterp.training.reinforcement.reinforce`.

    Raises:
        ValueError: The start has no tokenizer, there are not so many problems to examine, practice failed, the
            checkpoints are of another recipe, or the folder holds something else.
    """
    folder = Path(folder)
    model_folder.refuse_other_content(folder)
    start = load(recipe.start)
    task = CountdownTask(start.require_tokenizer(), recipe.problems, practised_problems(recipe), recipe.problem_seed)
    asked = examined_problems(recipe)
    decoder = Decoder.from_weights(start.architecture, start.weights())
    place, settings = model_folder.checkpoints_beside(folder, checkpoints), as_dict(recipe)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(Checkpoints(place)) if recipe.practice.save_every else None
        if kept:
            model_folder.follow(kept, settings, ("practice", "name", "examined", "dtype"), ("practice.seed",))
        practised, log = reinforce(decoder, task, recipe.practice, kept)
    weights = {name: jnp.asarray(array, recipe.dtype) for name, array in to_weights(practised).items()}
    model = dataclasses.replace(start, body=tree.build(start.architecture, weights), source=recipe.name)
    examination = _examination(
        recipe, decoder, Decoder.from_weights(model.architecture, weights), task.tokenizer, asked
    )
    tables = {"training_log": log} | ({"examination": examination} if recipe.examined else {})
    told = card(recipe, model.architecture, log, examination)
    model_folder.write(folder, model, settings, tables, told, [recipe.start])
    if kept:
        shutil.rmtree(kept.folder)
    return log


def practised_problems(recipe: GrpoRecipe) -> list[Problem]:
    """The training split of the recipe's file of problems; nothing where there is no file.

    Args:
        recipe: Settings.

    Returns:
        The problems.

    Raises:
        ValueError: The file is broken, or no problem in it is of the training split.
    """
    if recipe.problems_file is None:
        return []
    found = [problem for problem in countdown_problems.read_problems(recipe.problems_file) if problem.split == "train"]
    if not found:
        raise ValueError(f"{recipe.problems_file}: none of its problems is of the training split; name a larger file")
    return found


def examined_problems(recipe: GrpoRecipe) -> list[Problem]:
    """Problems of the test split: the shipped ones, or such as the recipe's settings draw where these are others."""
    if recipe.problems == ProblemSettings() and recipe.examined <= _SHIPPED:
        return countdown.eval_problems()[: recipe.examined]
    return countdown_problems.draw_problems("test", recipe.examined, recipe.problem_seed, recipe.problems)


def _examination(
    recipe: GrpoRecipe, before: Decoder, after: Decoder, tokenizer: Tokenizer, asked: Sequence[Problem]
) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for name, decoder in (("start", before), (recipe.name, after)) if asked else ():
        for temperature in (0.0, 1.0):
            _LOG.info("examining %s at temperature %g", name, temperature)
            _, measures = examine(
                decoder,
                tokenizer,
                asked,
                temperature=temperature,
                tokens=recipe.practice.tokens,
                rows=min(128, len(asked)),
                key=jax.random.key(recipe.practice.seed),
            )
            rows.append({"model": name, "temperature": temperature, "problems": len(asked), **measures})
    return pl.DataFrame(rows, infer_schema_length=None)


def card(recipe: GrpoRecipe, architecture: Architecture, log: pl.DataFrame, examination: pl.DataFrame) -> str:
    """A model card.

    Args:
        recipe: How the model was made.
        architecture: What it is made of.
        log: Of its practice.
        examination: How well the start and the model did; may be empty.

    Returns:
        Markdown with the front matter of the hub.
    """
    numbers = sum(math.prod(sizes.values()) for sizes in architecture.weights().values())
    half = max(log.height // 2, 1)
    practice, first, last = recipe.practice, log.head(min(10, half)), log.tail(min(50, half))
    made = (
        f"A decoder of {numbers:,} parameters that plays CountDown. It is {recipe.start} after {log.height} steps of "
        f"group relative policy optimisation: {practice.prompts} problems a step, {practice.samples} responses to each "
        f"drawn at temperature {practice.temperature:g} (seed {practice.seed}), in {log['seconds'][-1]:.0f} seconds."
    )
    went = [
        f"{what} from {first[name].mean():{form}} to {last[name].mean():{form}}"
        for what, name, form in (
            ("the share of right answers", "correct", ".1%"),
            ("the entropy of styles within a step", "style_entropy", ".3f"),
            ("the share of responses cut off", "truncated", ".2%"),
        )
    ]
    examined = [
        f"On {before['problems']:,} problems of the test split, at temperature {before['temperature']:g}, the start "
        f"solves {before['correct']:.1%} and this model {after['correct']:.1%}; the entropy of their styles is "
        f"{before['style_entropy']:.3f} and {after['style_entropy']:.3f} nats."
        for before, after in zip(*(part.to_dicts() for part in _halves(examination)), strict=True)
    ]
    files = "`training_log.parquet` and `examination.parquet` hold" if examined else "`training_log.parquet` holds"
    files += " the numbers. `recipe.json` is all that decided it: `jaxinterp train recipe.json --output FOLDER` trains"
    span = f"Between the first {first.height} steps and the last {last.height} went"
    paragraphs = [
        made,
        f"{span} {went[0]}, {went[1]} (in nats), and {went[2]}.",
        " ".join(examined),
        f"{files} the model again.",
        "The language, the weights and the tokenizer are the work of the jaxinterp authors, Apache License 2.0.",
    ]
    filled = "\n\n".join(textwrap.fill(text, 120, break_on_hyphens=False) for text in paragraphs if text)
    return f"---\nlicense: apache-2.0\n---\n# {recipe.name}\n\n{filled}\n"


def _halves(examination: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of the start and of the model, in one order."""
    half = examination.height // 2
    return examination.head(half), examination.tail(half)

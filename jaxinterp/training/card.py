"""The card of a trained model, written from its recipe and its log."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import polars as pl

from jaxinterp.models.architecture import Architecture
from jaxinterp.training import flops

if TYPE_CHECKING:
    from jaxinterp.training.recipe import Recipe

_ABOUT = {
    "small language": "writes the small language: a generated language of simple sentences whose texts are formal or "
    "casual",
    "countdown": "plays CountDown: it reaches a target from given numbers, and judges each of its attempts in words",
}
_MEASURES = {
    "verdict": "of the verdicts (mean of both kinds) {:.1%}",
    "digits": "of the digits {:.1%}",
    "yes_no": "of the answers to questions {:.1%}",
}


def write(
    recipe: Recipe, architecture: Architecture, log: pl.DataFrame, history: Sequence[tuple[int, dict[str, Any]]] = ()
) -> str:
    """Writes a card.

    Args:
        recipe: How the model was made.
        architecture: What it is made of.
        log: Of its training.
        history: Recipes, each with the step from which on it was followed, if there were several.

    Returns:
        Markdown with the front matter of the hub.
    """
    numbers = sum(math.prod(sizes.values()) for sizes in architecture.weights().values())
    last = log.row(-1, named=True)
    family = {"llama": "Llama", "qwen2": "Qwen2"}[architecture.family]
    made = (
        f"A {family}-architecture decoder of {numbers:,} parameters ({recipe.layers} layers, width {recipe.embedding}, "
        f"{'tied' if recipe.tied else 'untied'} embeddings, {architecture.vocabulary} tokens, {recipe.dtype}) that "
        f"{_ABOUT[recipe.corpus]}. It was trained from random weights (seed {recipe.seed}) on {recipe.texts:,} texts "
        f"(seed {recipe.corpus_seed}), {last['tokens']:,} tokens in {last['step']} steps and {last['seconds']:.0f} "
        f"seconds; its loss on other texts is {last['held_out']:.3f} nats per token."
    )
    if last["step"] < recipe.course.steps:
        made += f" The course has {recipe.course.steps} steps; training was stopped before its end."
    known = [text.format(last[name]) for name, text in _MEASURES.items() if last.get(name) is not None]
    if known:
        made += f" With everything in front of it right, the likeliest token is right for {', '.join(known)}."
    speed = (
        f"The last {recipe.course.log_every} steps did {last['flops_per_second']:.3g} operations per second on "
        f"{recipe.devices.size} x {jax.devices()[0].device_kind} in {recipe.course.compute}: {last['utilisation']:.1%} "
        f"of the peak, which is {flops.peak(recipe.course.compute)[1]}."
    )
    again = (
        "`training_log.parquet` says how the training went. `recipe.json` is all that decided it: `jaxinterp train "
        "recipe.json --output FOLDER` trains the model again."
    )
    rights = "The language, the weights and the tokenizer are the work of the jaxinterp authors, Apache License 2.0."
    paragraphs = [made, *_changes(history), speed, again, rights]
    filled = "\n\n".join(textwrap.fill(text, 120, break_on_hyphens=False) for text in paragraphs)
    return f"---\nlicense: apache-2.0\n---\n# {recipe.name}\n\n{filled}\n"


def _changes(history: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
    """A sentence for each time that the run went on with other settings."""
    said = []
    for (_, before), (step, now) in itertools.pairwise(history):
        changed = [
            f"{name} from {before[part][name]} to {value}"
            for part in ("course", "devices")
            for name, value in now[part].items()
            if before[part][name] != value
        ]
        said.append(f"At step {step} the run went on with other settings: {', '.join(changed)}.")
    return said

"""Supervised training of a decoder on packed texts: AdamW with clipping and a cosine schedule."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx

from jaxinterp.models.nnx import Decoder
from jaxinterp.training.packing import Batches

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """How long and how fast a model learns."""

    steps: int = 900
    """Batches."""
    rows: int = 16
    """Packed rows in a batch."""
    learning_rate: float = 5e-3
    """The highest, reached after the warm-up."""
    warm_up: int = 50
    """Steps in which the learning rate rises from zero; then it falls as a cosine, to a fiftieth."""
    weight_decay: float = 0.1
    """Of matrices; norms and biases have none."""
    clip: float = 1.0
    """Longest gradient; a longer one is shortened to this."""
    log_every: int = 50
    """Steps between two rows of the log."""
    seed: int = 0
    """Of the order of the rows; the initial weights come with the decoder."""


def optimiser(course: Course) -> optax.GradientTransformation:
    """The optimiser of a course.

    Args:
        course: Settings.

    Returns:
        Clipping by the global norm, then AdamW on a cosine schedule with warm-up.
    """
    return optax.chain(
        optax.clip_by_global_norm(course.clip),
        optax.adamw(_schedule(course), b1=0.9, b2=0.98, weight_decay=course.weight_decay, mask=_matrices),
    )


def _schedule(course: Course) -> optax.Schedule:
    if not 0 <= course.warm_up < course.steps:
        raise ValueError(f"a warm-up of {course.warm_up} steps does not fit into {course.steps} steps; shorten it")
    peak = course.learning_rate
    return optax.warmup_cosine_decay_schedule(0.0, peak, course.warm_up, course.steps, end_value=peak / 50)


def _matrices(parameters: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "W_" in jax.tree_util.keystr(path), parameters)


def train(
    decoder: Decoder, rows: np.ndarray, course: Course, held_out: np.ndarray | None = None
) -> tuple[Decoder, pl.DataFrame]:
    """Trains a decoder.

    Args:
        decoder: Where it starts; its weights are not changed.
        rows: Packed texts, int [row, length + 1].
        course: Settings.
        held_out: Packed texts that are only looked at.

    Returns:
        The trained decoder, and a log with one row for every `log_every` steps: `step`, `tokens` (seen so far), `loss`
        (mean since the last row) and `held_out` (both in nats per token), `gradient_norm`, `learning_rate`, `seconds`
        and `tokens_per_second`.

    Raises:
        ValueError: The loss is no longer a number, there are fewer rows than a batch needs, or the warm-up is too long.
    """
    graph, weights = nnx.split(decoder)
    weights = jax.tree.map(jnp.copy, weights)
    rule, schedule = optimiser(course), _schedule(course)
    state = rule.init(weights)
    batches = Batches(rows, course.rows, course.seed)
    per_step = course.rows * (rows.shape[1] - 1)
    log: list[dict[str, float | None]] = []
    losses, norms, since = [], [], time.monotonic()
    started = since
    for step in _shown(course.steps, per_step):
        weights, state, loss, norm = _step(graph, rule, weights, state, batches[step])
        losses.append(loss)
        norms.append(norm)
        done = step + 1
        if done % course.log_every and done != course.steps:
            continue
        mean = float(jnp.stack(losses).mean())
        if not math.isfinite(mean):
            raise ValueError(
                f"the loss is no longer a number between steps {done - len(losses)} and {done}; nothing was saved. "
                f"Lower learning_rate ({course.learning_rate}) or clip ({course.clip}), or lengthen warm_up"
            )
        now = time.monotonic()
        log.append(
            {
                "step": done,
                "tokens": done * per_step,
                "loss": mean,
                "held_out": None if held_out is None else mean_loss(nnx.merge(graph, weights), held_out, course.rows),
                "gradient_norm": float(jnp.stack(norms).mean()),
                "learning_rate": float(np.asarray(schedule(step))),
                "seconds": now - started,
                "tokens_per_second": len(losses) * per_step / (now - since),
            }
        )
        losses, norms, since = [], [], time.monotonic()
    return nnx.merge(graph, weights), pl.DataFrame(log, infer_schema_length=None)


@functools.partial(jax.jit, static_argnames=("graph", "rule"), donate_argnames=("weights", "state"))
def _step(graph: Any, rule: optax.GradientTransformation, weights: Any, state: Any, rows: jax.Array) -> Any:
    loss, gradient = jax.value_and_grad(lambda now: jnp.mean(_losses(nnx.merge(graph, now), rows)))(weights)
    updates, state = rule.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, loss, optax.tree.norm(gradient)


def mean_loss(decoder: Decoder, rows: np.ndarray, batch: int = 16) -> float:
    """How well a decoder predicts packed texts.

    Args:
        decoder: The decoder.
        rows: Int [row, length + 1].
        batch: Rows in one forward pass.

    Returns:
        Mean negative log-probability of the tokens, in nats.
    """
    graph, weights = nnx.split(decoder)
    total = 0.0
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        filled = np.pad(part, ((0, batch - len(part)), (0, 0)), mode="edge")
        total += float(_row_losses(graph, weights, filled)[: len(part)].sum())
    return total / len(rows)


@functools.partial(jax.jit, static_argnames="graph")
def _row_losses(graph: Any, weights: Any, rows: jax.Array) -> jax.Array:
    return jnp.mean(_losses(nnx.merge(graph, weights), rows), axis=1)


def _losses(decoder: Decoder, rows: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(decoder(rows[:, :-1]), rows[:, 1:])


def _shown(steps: int, per_step: int) -> Iterator[int]:
    """Steps, with a bar on a terminal and with lines in a log file: the rate and the time that remains."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started = said = time.monotonic()
    with Progress(
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("training", total=steps, rate="")
        for step in range(steps):
            yield step
            now = time.monotonic()
            rate = (step + 1) / (now - started)
            bar.update(task, advance=1, rate=f"{rate * per_step:,.0f} tokens/s")
            if not console.is_terminal and now - said > 30:
                said = now
                left = (steps - step - 1) / rate
                _LOG.info("step %d of %d, %.0f tokens/s, %.0f s left", step + 1, steps, rate * per_step, left)

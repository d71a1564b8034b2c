"""Supervised training of a decoder on packed texts: AdamW with clipping and a cosine schedule.

Weights and the optimiser's numbers are float32 throughout; the forward and the backward pass may be in bfloat16. A
batch is a function of the step alone, so that weights, optimiser and step are all that a run has to remember: one that
was ended, and goes on from its last checkpoint, comes out with the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx

from jaxinterp.models.nnx import Decoder
from jaxinterp.parallel.mesh import Mesh
from jaxinterp.parallel.placement import everywhere, first_process, put, put_rows, to_one_device
from jaxinterp.parallel.stacked import lay_out, shardings
from jaxinterp.training import flops
from jaxinterp.training.checkpoints import Checkpoints, what_is_kept
from jaxinterp.training.evaluation import arrays, mean_loss, predict
from jaxinterp.training.packing import Batches, Rows
from jaxinterp.training.progress import Journal, shown

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
    compute: Literal["float32", "bfloat16"] = "float32"
    """What the passes compute in; norms, softmax, loss, weights and optimiser are float32 in any case."""
    save_every: int = 0
    """Steps between two checkpoints, a multiple of log_every; 0 for none."""
    stop: int | None = None
    """Where training ends before the schedule does, to look at the beginning of a long course."""

    @property
    def last(self) -> int:
        """The step at which training ends."""
        return self.steps if self.stop is None else min(self.stop, self.steps)


def optimiser(course: Course) -> optax.GradientTransformation:
    """The optimiser of a course.

    Args:
        course: Settings.

    Returns:
        Clipping by the global norm, then AdamW on a cosine schedule with warm-up.
    """
    return _rule(course.clip, course.learning_rate, course.warm_up, course.steps, course.weight_decay)


@functools.lru_cache(maxsize=8)
def _rule(
    clip: float, learning_rate: float, warm_up: int, steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """One object for the same numbers, so that the step is compiled once for them."""
    rate = schedule(Course(learning_rate=learning_rate, warm_up=warm_up, steps=steps))
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=_matrices),
    )


def schedule(course: Course) -> optax.Schedule:
    """The learning rate of each step: a rise from zero, then a cosine that ends at a fiftieth.

    Args:
        course: Settings.

    Returns:
        A function of the step.

    Raises:
        ValueError: The warm-up is longer than the course.
    """
    if not 0 <= course.warm_up < course.steps:
        raise ValueError(f"a warm-up of {course.warm_up} steps does not fit into {course.steps} steps; shorten it")
    peak = course.learning_rate
    return optax.warmup_cosine_decay_schedule(0.0, peak, course.warm_up, course.steps, end_value=peak / 50)


def _check(course: Course, checkpoints: Checkpoints | None) -> None:
    if checkpoints is not None and (course.save_every < 1 or course.save_every % course.log_every):
        raise ValueError(
            f"save_every ({course.save_every}) is no multiple of log_every ({course.log_every}); a run goes on from a "
            "checkpoint with a whole log, so take a multiple"
        )
    if course.last < 1:
        raise ValueError(f"training ends at step {course.last} (steps, stop), before it has begun; raise it")


def _matrices(parameters: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "W_" in jax.tree_util.keystr(path), parameters)


def train(
    decoder: Decoder,
    rows: np.ndarray | Rows,
    course: Course,
    held_out: np.ndarray | Rows | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    devices: Mesh | None = None,
    measure: Callable[[Decoder], Mapping[str, float | None]] | None = None,
) -> tuple[Decoder, pl.DataFrame]:
    """Trains a decoder.

    Args:
        decoder: Where it starts; its weights are not changed.
        rows: Packed texts, int [row, length + 1], or whole documents.
        course: Settings.
        held_out: Packed texts that are only looked at.
        checkpoints: Where the run is saved, every `save_every` steps and at the end; it goes on from what is there.
        devices: How many devices take part; one by default. All processes of the mesh train together, the first one
            writes.
        measure: What else the log tells of the decoder, by column.

    Returns:
        The trained decoder, and a log with one row for every `log_every` steps: `step`, `tokens` (predictions so far,
        those of prompts included and padding not), `loss` (mean since the last row) and `held_out` (both in nats per
        token that is learned), `gradient_norm`, `learning_rate`, `seconds` (of training, without compilation),
        `tokens_per_second`, `flops_per_second` (`jaxinterp.training.flops.training_flops`), `utilisation` (that over
        the devices' peak, `jaxinterp.training.flops.peak`), and the columns of `measure`.

    Raises:
        ValueError: The settings do not fit together, the loss is no longer a number, or a checkpoint is of another
            model or cannot be written. What was saved last is kept.
    """
    _check(course, checkpoints)
    graph, weights = nnx.split(decoder)
    rule, rate, batches = optimiser(course), schedule(course), Batches(rows, course.rows, course.seed)
    devices = devices or Mesh()
    grid = lay_out(devices, decoder.architecture, course.rows)
    state = {"weights": weights, "optimiser": rule.init(weights)}
    places = shardings(grid, decoder.architecture, state)
    gathered = shardings(grid, decoder.architecture, weights, gathered=True)
    state, first = jax.tree.map(put, jax.tree.map(jnp.copy, state), places), 0
    key = jax.random.wrap_key_data(put(jax.random.key_data(jax.random.key(course.seed)), everywhere(grid)))
    if checkpoints is not None and (found := checkpoints.restore({**state, "key": key})) is not None:
        first, state = found
        if (jax.random.key_data(state.pop("key")) != jax.random.key_data(key)).any():
            raise ValueError(f"{checkpoints.folder}: the run there has another seed; choose another folder")
        _LOG.info("going on from step %d in %s", first, checkpoints.folder)
    writes = checkpoints if first_process() else None
    journal = Journal(None if writes is None else writes.folder / "log.jsonl", first)
    peak, source = flops.peak(course.compute)
    _LOG.info("utilisation is of %.4g operations/s, %s, on %d of them", peak, source, devices.size)

    def batch(step: int) -> Any:
        return put_rows(arrays(batches[step]), grid)

    kept = tuple(jax.tree.leaves(places)), tuple(jax.tree.leaves(gathered))
    before = journal.rows[-1] if journal.rows else {"tokens": 0, "seconds": 0.0}
    window = _Window()
    for step in shown(first, course.last, flops.size(batches[first])[0], "tokens"):
        state, loss, norm = take_step(graph, rule, course.compute, kept, state, batch(step))
        if step == first:
            window.begin()
        window.add(loss, norm, batches[step])
        done = step + 1
        if done % course.log_every and done != course.last:
            continue
        means = window.means()
        if not all(map(math.isfinite, means.values())):
            raise ValueError(_stray(course, checkpoints, done, len(window.losses)))
        taken = window.seconds()
        needed = flops.training_flops(decoder.architecture, window.tokens, window.seen)
        now = nnx.merge(graph, state["weights"])
        row = {
            "step": done,
            "tokens": before["tokens"] + window.tokens,
            "loss": means["loss"],
            "held_out": None if held_out is None else mean_loss(now, held_out, course.rows),
            "gradient_norm": means["gradient_norm"],
            "learning_rate": float(np.asarray(rate(step))),
            "seconds": before["seconds"] + taken,
            "tokens_per_second": window.tokens / taken,
            "flops_per_second": needed / taken,
            "utilisation": needed / taken / peak / devices.size,
            **(measure(now) if measure else {}),
        }
        journal.append(row)
        if checkpoints is not None and (done % course.save_every == 0 or done == course.last):
            checkpoints.save(done, {**state, "key": key})
        before, window = row, _Window()
    if checkpoints is not None:
        checkpoints.wait()
    return nnx.merge(graph, to_one_device(state["weights"])), pl.DataFrame(journal.rows, infer_schema_length=None)


class _Window:
    """What happened since the last row of the log."""

    def __init__(self) -> None:
        self.losses, self.norms = [], []
        self.tokens = self.seen = 0
        self.begin()

    def begin(self) -> None:
        """Starts the clock, once the step is compiled."""
        self._began = time.monotonic()

    def add(self, loss: jax.Array, norm: jax.Array, batch: np.ndarray | Rows) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        tokens, seen = flops.size(batch)
        self.tokens, self.seen = self.tokens + tokens, self.seen + seen

    def means(self) -> dict[str, float]:
        """Means over the steps, once the device has done them."""
        named = {"loss": self.losses, "gradient_norm": self.norms}
        return {name: float(jnp.stack(values).mean()) for name, values in named.items()}

    def seconds(self) -> float:
        return time.monotonic() - self._began


def _stray(course: Course, checkpoints: Checkpoints | None, done: int, steps: int) -> str:
    return (
        f"the loss or its gradient is no longer a number between steps {done - steps} and {done}; "
        f"{what_is_kept(checkpoints)}. "
        f"Lower learning_rate ({course.learning_rate}) or clip ({course.clip}), or lengthen warm_up ({course.warm_up})"
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def take_step(graph: Any, rule: Any, compute: str, places: Any, state: Any, batch: Any) -> Any:
    """One step of training.

    Args:
        graph: Of the decoder, as `nnx.split` gives it.
        rule: The optimiser.
        compute: What the passes compute in, as in `Course`.
        places: Shardings of the leaves of `state`, and of the weights as a pass takes them.
        state: Weights and the optimiser's numbers; they are used up.
        batch: What `jaxinterp.training.evaluation.predict` takes.

    Returns:
        The state, the mean loss in nats, and the gradient's norm.
    """
    kept, gathered = places

    def loss_of(weights: Any) -> jax.Array:
        whole = _at(_narrow(weights, compute), gathered)
        losses, counted, _ = predict(nnx.merge(graph, whole), *batch)
        return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)

    loss, gradient = jax.value_and_grad(loss_of)(state["weights"])
    updates, optimiser_state = rule.update(gradient, state["optimiser"], state["weights"])
    weights = optax.apply_updates(state["weights"], updates)
    state = _at({"weights": weights, "optimiser": optimiser_state}, kept)
    return state, loss, optax.tree.norm(gradient)


def _at(tree: Any, places: tuple[Any, ...]) -> Any:
    """A tree with each array where it belongs."""
    return jax.lax.with_sharding_constraint(tree, jax.tree.unflatten(jax.tree.structure(tree), places))


def _narrow(weights: Any, compute: str) -> Any:
    """Weights in the numbers of the passes; those of norms, which are used in float32, stay as they are."""

    def narrow(path: Any, weight: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return weight if "ln_" in name or "norm" in name else weight.astype(compute)

    return jax.tree_util.tree_map_with_path(narrow, weights)

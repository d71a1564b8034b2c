"""The loop of reinforcement: draw responses, judge them, step; logged, and able to go on where it was ended."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx

from jaxinterp.models.nnx import Decoder
from jaxinterp.training import grpo
from jaxinterp.training.checkpoints import Checkpoints, what_is_kept
from jaxinterp.training.grpo import Experience, Rule
from jaxinterp.training.practice import Task, row_width
from jaxinterp.training.progress import Journal, shown
from jaxinterp.training.sampling import Samples, pad_left, sample

_LOG = logging.getLogger(__name__)
_PAD_TO = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Practice:
    """How long, how widely and how fast a model practises."""

    steps: int = 300
    """Batches of prompts."""
    prompts: int = 128
    """Prompts in a batch."""
    samples: int = 8
    """Responses to each prompt: a group."""
    tokens: int = 512
    """Most tokens of prompt and response together."""
    temperature: float = 1.0
    """At which responses are drawn."""
    learning_rate: float = 5e-5
    """Of Adam, constant."""
    clip: float = 0.2
    """How far the ratio of new to old probability may leave 1 and still be rewarded for it."""
    kl: float = 0.001
    """Weight of the divergence from the model of the start, in reward per nat."""
    gradient_clip: float = 1.0
    """Longest gradient; a longer one is shortened to this."""
    updates: int = 1
    """Steps of the optimiser for a batch, each with its part of the groups."""
    rows: int = 128
    """Responses in one forward and backward pass; gradients are summed over the passes."""
    save_every: int = 50
    """Steps between two checkpoints; 0 for none."""
    seed: int = 0
    """Of the responses."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("steps", "prompts", "updates", "rows")}
        wrong = [f"{name} is {count}, but has to be at least 1" for name, count in counts.items() if count < 1]
        if self.samples < 2:
            wrong.append(f"a group of {self.samples} has nothing to compare; samples has to be at least 2")
        if self.temperature <= 0:
            wrong.append(f"temperature {self.temperature} draws no different responses; it has to be above 0")
        if not wrong and self.prompts % self.updates:
            wrong.append(f"{self.updates} updates do not divide {self.prompts} prompts")
        elif not wrong and self.per_update % self.rows:
            wrong.append(f"rows of {self.rows} do not divide the {self.per_update} responses of an update")
        if wrong:
            raise ValueError(f"practice: {'; '.join(wrong)}")

    @property
    def per_update(self) -> int:
        """Responses in one step of the optimiser."""
        return self.prompts // self.updates * self.samples


@functools.cache
def optimiser(practice: Practice) -> optax.GradientTransformation:
    """Clipping by the global norm, then Adam."""
    return optax.chain(
        optax.clip_by_global_norm(practice.gradient_clip), optax.adam(practice.learning_rate, b1=0.9, b2=0.98)
    )


def reinforce(
    decoder: Decoder, task: Task, practice: Practice, checkpoints: Checkpoints | None = None
) -> tuple[Decoder, pl.DataFrame]:
    """Lets a model practise a task.

    Everything in a step is a function of the state in front of it, of the step's number and of the seeds, so that a run
    that was ended and goes on has the weights of one that was not.

    Args:
        decoder: Where it starts, and from what the divergence is measured; its weights are not changed.
        task: Prompts and their judge.
        practice: Settings.
        checkpoints: Where the run is saved, every `save_every` steps and at the end; it goes on from what is there.

    Returns:
        The practised decoder, and a log with one row for every step: the task's measures; `length` (mean tokens of a
        response), `dead_groups` (share whose rewards are all equal, so that they teach nothing), `loss`, `kl` (nats per
        token), `clipped` (share of tokens), `gradient_norm`; `seconds` of the run so far, and of this step
        `sampling`, `judging` and `updating`; and `tokens_per_second` of the sampler.

    Raises:
        ValueError: The loss is no longer a number, a prompt leaves no room for a response, or a checkpoint is of
            another model or cannot be written. What was saved last is kept.
    """
    if checkpoints is not None and practice.save_every < 1:
        raise ValueError(f"save_every is {practice.save_every}, but there are checkpoints to save; raise it")
    graph, reference = nnx.split(decoder)
    weights = jax.tree.map(jnp.copy, reference)
    state = {
        "weights": weights,
        "optimiser": optimiser(practice).init(weights),
        "key": jax.random.key(practice.seed),
    }
    done, state = (None if checkpoints is None else checkpoints.restore(state)) or (0, state)
    if done:
        _LOG.info("going on from step %d", done)
    journal = Journal(None if checkpoints is None else checkpoints.folder / "log.jsonl", done)
    began = time.monotonic() - (journal.rows[-1]["seconds"] if journal.rows else 0.0)
    for step in shown(done, practice.steps, practice.prompts * practice.samples, "responses"):
        state, row = _step(graph, reference, state, task, practice, step)
        if not math.isfinite(row["loss"] + row["gradient_norm"]):
            raise ValueError(_stray(row, practice, checkpoints))
        journal.append(row | {"seconds": time.monotonic() - began})
        if (step + 1) % 10 == 0:
            _tell(row)
        if checkpoints is not None and ((step + 1) % practice.save_every == 0 or step + 1 == practice.steps):
            checkpoints.save(step + 1, state)
    if checkpoints is not None:
        checkpoints.wait()
    return nnx.merge(graph, state["weights"]), pl.DataFrame(journal.rows, infer_schema_length=None)


def _step(
    graph: Any,
    reference: Any,
    state: Any,
    task: Task,
    practice: Practice,
    step: int,
) -> tuple[Any, dict[str, Any]]:
    """A batch of prompts: the state behind it, and its row of the log."""
    times = [time.monotonic()]
    asked, prompts = task.ask(step, practice.prompts)
    width = row_width(prompts)
    if width >= practice.tokens:
        raise ValueError(
            f"prompts of up to {width} tokens leave no room for a response within {practice.tokens}; allow more tokens"
        )
    tokens, mask = (np.repeat(rows, practice.samples, axis=0) for rows in pad_left(prompts, width, task.pad))
    key, draw = jax.random.split(state["key"])
    drawn = sample(
        nnx.merge(graph, state["weights"]),
        tokens,
        mask,
        practice.tokens - width,
        key=draw,
        temperature=practice.temperature,
        pad=task.pad,
    )
    times.append(time.monotonic())
    repeated = [each for each in asked for _ in range(practice.samples)]
    rewards, measures = task.judge(repeated, drawn.responses(), drawn.ended.tolist())
    groups = rewards.reshape(practice.prompts, practice.samples)
    times.append(time.monotonic())
    experience = _experience(tokens, mask, drawn, grpo.advantages(groups).ravel())
    weights, optimised, means = state["weights"], state["optimiser"], []
    for part in range(practice.updates):
        rows = slice(part * practice.per_update, (part + 1) * practice.per_update)
        weights, optimised, found = grpo.update(
            graph,
            weights,
            optimised,
            reference,
            jax.tree.map(lambda array, rows=rows: array[rows], experience),
            optimiser=optimiser(practice),
            rule=Rule(clip=practice.clip, kl=practice.kl, temperature=practice.temperature),
            rows=practice.rows,
        )
        means.append(found)
    averages = {name: float(np.mean([float(found[name]) for found in means])) for name in means[0]}
    times.append(time.monotonic())
    sampling, judging, updating = np.diff(times).tolist()
    row: dict[str, Any] = {"step": step + 1, **measures, "length": float(drawn.lengths.mean())}
    row |= {"dead_groups": float(np.mean(np.ptp(groups, axis=1) == 0)), **averages}
    row |= {"sampling": sampling, "judging": judging, "updating": updating}
    row |= {"tokens_per_second": float(drawn.lengths.sum()) / sampling}
    return {"weights": weights, "optimiser": optimised, "key": key}, row


def _experience(tokens: np.ndarray, mask: np.ndarray, drawn: Samples, advantages: np.ndarray) -> Experience:
    """Prompts with their responses, cut behind the longest, at a multiple of 64, so that few programs are compiled."""
    new = min(-(-int(drawn.lengths.max()) // _PAD_TO) * _PAD_TO, drawn.tokens.shape[1])
    written = np.arange(new) < drawn.lengths[:, None]
    return Experience(
        tokens=np.concatenate([tokens, drawn.tokens[:, :new]], axis=1),
        mask=np.concatenate([mask, written], axis=1),
        lengths=drawn.lengths,
        old=drawn.log_probabilities[:, :new],
        advantages=advantages.astype(np.float32),
    )


def _stray(row: Mapping[str, Any], practice: Practice, checkpoints: Checkpoints | None) -> str:
    return (
        f"the loss or its gradient is no longer a number in step {row['step']}; {what_is_kept(checkpoints)}. "
        f"Lower learning_rate ({practice.learning_rate}) or gradient_clip ({practice.gradient_clip})"
    )


def _tell(row: Mapping[str, Any]) -> None:
    named = {name: row.get(name) for name in ("reward", "correct", "style_entropy", "truncated", "kl")}
    told = ", ".join(f"{name} {value:.4g}" for name, value in named.items() if value is not None)
    _LOG.info("step %d: %s", row["step"], told)

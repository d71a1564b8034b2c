"""Training of low-rank edits: the model's weights stay, and optax moves the few numbers beside them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
import polars as pl

from jaxinterp.activations.run import forward_pass
from jaxinterp.interventions.lora import Numbers, lora_numbers, with_lora_numbers
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.training.checkpoints import Checkpoints

_COLUMNS = {"step": pl.Int64, "loss": pl.Float64, "gradient_norm": pl.Float64, "seconds": pl.Float64}


class Indexed(Protocol):
    """What batches are taken from by their number: a list, or `jaxinterp.training.packing.Batches`."""

    def __getitem__(self, step: int, /) -> Any:
        """The batch of a step."""
        ...


def train_lora(
    model: LanguageModel,
    loss: Callable[[LanguageModel, Any], jax.Array],
    batches: Indexed,
    rule: optax.GradientTransformation,
    steps: int,
    *,
    log_every: int = 10,
    checkpoints: Checkpoints | None = None,
) -> tuple[LanguageModel, pl.DataFrame]:
    """Trains the low-rank edits of a model on a loss.

    Args:
        model: A model with such edits, by `ji.lora`; it stays as it is, and so do its weights and other edits.
        loss: (edited model, batch) -> scalar, in terms of `differentiable_logits` and JAX; such as `next_token_loss`.
            It is compiled together with its gradient in the edits' numbers, once.
        batches: `batches[step]` is the batch of a step: arrays whose shapes are the same in all steps.
        rule: How the numbers are moved, such as `optax.adam(1e-3)`.
        steps: How many batches.
        log_every: Steps between two rows of the log.
        checkpoints: Where numbers and optimiser are kept with every row of the log. If there are some already, the run
            goes on behind the newest.

    Returns:
        The model with trained edits, and a log with one row for every `log_every` steps of this process: `step`, `loss`
        (mean since the last row), `gradient_norm` and `seconds`.

    Raises:
        ValueError: The model has no low-rank edits, the loss or its gradient is no longer a number, or a checkpoint is
            of another run or cannot be written.

    References:
        Hu et al., 2021, "LoRA: low-rank adaptation of large language models", arXiv:2106.09685.
    """
    if steps < 1 or log_every < 1:
        raise ValueError(f"steps is {steps} and log_every {log_every}; both must be at least 1")
    numbers = jax.tree.map(jnp.copy, lora_numbers(model))
    state, first = rule.init(numbers), 0
    kept = None if checkpoints is None else checkpoints.restore((numbers, state))
    if kept is not None:
        first, (numbers, state) = kept
        if first > steps:
            raise ValueError(f"the checkpoint is of step {first}, but {steps} steps are asked for; ask for more")
    step = jax.jit(functools.partial(_step, model, loss, rule), donate_argnums=(1, 2))
    log: list[dict[str, float]] = []
    losses, norms, started = [], [], time.monotonic()
    for number in range(first, steps):
        numbers, state, value, norm = step(model.body, numbers, state, batches[number])
        losses.append(value)
        norms.append(norm)
        done = number + 1
        if done % log_every and done != steps:
            continue
        row = {"step": done, "loss": float(jnp.stack(losses).mean()), "gradient_norm": float(jnp.stack(norms).mean())}
        good = done - len(losses)
        if not math.isfinite(row["loss"] + row["gradient_norm"]):
            left = f"the checkpoint of step {good} is kept" if checkpoints and good else "the model passed is unchanged"
            raise ValueError(
                f"the loss or its gradient is no longer a number between steps {good} and {done}; {left}. Lower the "
                "learning rate, or clip the gradient with optax.clip_by_global_norm, and run it again"
            )
        log.append(row | {"seconds": time.monotonic() - started})
        losses, norms = [], []
        if checkpoints is not None:
            checkpoints.save(done, (numbers, state))
    if checkpoints is not None:
        checkpoints.wait()
    return with_lora_numbers(model, numbers), pl.DataFrame(log, schema=_COLUMNS)


def _step(
    model: LanguageModel,
    loss: Any,
    rule: optax.GradientTransformation,
    body: Any,
    numbers: Numbers,
    state: Any,
    batch: Any,
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """One step; the tree is an argument, so that the weights are not written into the program."""

    def of_numbers(now: Numbers) -> jax.Array:
        return loss(with_lora_numbers(model.with_body(body), now), batch)

    value, gradient = jax.value_and_grad(of_numbers)(numbers)
    updates, state = rule.update(gradient, state, numbers)
    return optax.apply_updates(numbers, updates), state, value, optax.tree.norm(gradient)


def differentiable_logits(model: LanguageModel, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Logits of token ids, as part of a function that JAX differentiates, maps or compiles.

    Args:
        model: The model, edited or not.
        tokens: Ids, int [batch, seq].
        mask: Which of them are tokens rather than padding on the left, boolean [batch, seq]; by default all.

    Returns:
        [batch, seq, vocabulary], float32.
    """
    tokens = jnp.asarray(tokens)
    valid = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    logits, _ = forward_pass(model.body, tokens, valid, sites=(), logits="all")
    assert logits is not None
    return logits


def next_token_loss(model: LanguageModel, tokens: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """How badly an edited model predicts texts: the usual loss of language modelling.

    Args:
        model: The model.
        tokens: Ids, int [batch, seq].
        counted: Which of them are to be predicted, boolean [batch, seq], for instance those of the response; by
            default all but the first.

    Returns:
        Mean negative log-probability of the counted tokens, in nats.
    """
    tokens = jnp.asarray(tokens)
    logits = differentiable_logits(model, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    weights = jnp.ones(losses.shape) if counted is None else jnp.asarray(counted)[:, 1:].astype(losses.dtype)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)

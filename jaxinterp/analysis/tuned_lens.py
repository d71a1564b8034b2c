"""The tuned lens: an affine translator for each layer, trained to say what the last layer says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl

from jaxinterp import artefacts, axes
from jaxinterp.activations.run import Inputs, prepare
from jaxinterp.analysis.readout import Readers, read_out, read_residuals, readers, refuse_edits_behind
from jaxinterp.analysis.statistics import bootstrap
from jaxinterp.models.language_model import LanguageModel

_AXES = {"changes": ("layer", axes.EMBEDDING, "input"), "biases": ("layer", axes.EMBEDDING)}


@dataclasses.dataclass(frozen=True)
class TunedLens:
    """Translators of all layers: a residual $h$ is read as $h + D h + b$.

    Attributes:
        changes: D, [layer, embedding, embedding]; 0 at the last layer.
        biases: b, [layer, embedding]; 0 at the last layer.
        provenance: What model and settings they come from.
    """

    changes: np.ndarray
    biases: np.ndarray
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def identity(cls, model: LanguageModel) -> TunedLens:
        """Translators that change nothing: the logit lens."""
        layers, width = model.architecture.layers, model.architecture.embedding
        return cls(np.zeros((layers, width, width), np.float32), np.zeros((layers, width), np.float32))

    def save(self, path: str | Path) -> None:
        """Writes the translators as safetensors, with where they come from.

        Args:
            path: A file that ends in `.safetensors`.
        """
        artefacts.write_arrays({"changes": self.changes, "biases": self.biases}, path, _AXES, self.provenance)

    @classmethod
    def load(cls, path: str | Path) -> TunedLens:
        """Reads translators that `save` wrote.

        Args:
            path: The file.

        Returns:
            The translators.

        Raises:
            ValueError: The file is missing, broken, or holds something else.
        """
        arrays, provenance = artefacts.read_arrays(path)
        if set(arrays) != set(_AXES):
            raise ValueError(f"{path}: holds {', '.join(sorted(arrays))}; a tuned lens has changes and biases")
        return cls(arrays["changes"], arrays["biases"], provenance)


def fit_tuned_lens(
    model: LanguageModel,
    texts: Inputs,
    mask: Any = None,
    *,
    held_out: float = 0.25,
    tokens: int = 8192,
    steps: int = 400,
    tokens_per_step: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    batch_size: int = 32,
) -> tuple[TunedLens, pl.DataFrame]:
    r"""Trains an affine translator for every layer but the last, all in one loop, and says how good they are.

    With $f$ the final norm and the unembedding, layer $l$ minimises the mean over tokens of
    $\mathrm{KL}(f(h_L) \,\|\, f(h_l + D_l h_l + b_l))$, from $D_l = 0$, $b_l = 0$, the logit lens, by AdamW with cosine
    decay; weight decay pulls towards the logit lens. The layers' losses are separate, and the gradients of each are
    clipped to norm 1.

    Args:
        model: The model; see `logit_lens` for its edits.
        texts: Texts, lists of token ids, or ids [batch, seq].
        mask: With ids [batch, seq]: which of them are tokens.
        held_out: Share of the texts that is not trained on and that the lens is measured on.
        tokens: Tokens whose residuals are kept of either split, drawn at random where there are more; it bounds the
            memory, layers x embedding x 4 bytes each.
        steps: Gradient steps.
        tokens_per_step: Tokens in one step.
        learning_rate: Its highest value.
        weight_decay: Of AdamW.
        seed: Of the split, the draws and the order.
        batch_size: Texts in one forward pass.

    Returns:
        The lens; and its measure on the held-out texts, one row for each layer and each of `logit`, `tuned` and
        `difference` (tuned minus logit): `layer`, `lens`, `kl` (mean over texts of the mean over a text's tokens, in
        nats) with its 95% interval over texts, `low` and `high`, `texts` and `tokens`.

    Raises:
        ValueError: There are too few texts to hold some out, or a setting is not positive.

    References:
        Belrose et al. 2023, Eliciting latent predictions from transformers with the tuned lens, arXiv:2303.08112.
    """
    if min(tokens, steps, tokens_per_step) < 1 or not learning_rate > 0 or weight_decay < 0:
        raise ValueError("tokens, steps, tokens_per_step and learning_rate must be positive, weight_decay not negative")
    if model.architecture.layers < 2:
        raise ValueError("a model of one layer has nothing to translate; its only layer is the last")
    refuse_edits_behind(model)
    ids, valid = prepare(model, texts, mask)
    rng = np.random.default_rng(seed)
    kept_out = round(held_out * len(ids))
    if not 0 < kept_out < len(ids):
        raise ValueError(f"held_out = {held_out} of {len(ids)} texts leaves no text on one side; pass more texts")
    order = rng.permutation(len(ids))
    trained, measured = np.sort(order[kept_out:]), np.sort(order[:kept_out])
    streams, _ = _draw(model, ids[trained], valid[trained], tokens, rng, batch_size)
    draws = rng.integers(0, streams.shape[1], (steps, tokens_per_step))
    layers = _train(readers(model), streams, draws, learning_rate, weight_decay)
    changes, biases = (np.concatenate([np.asarray(part), np.zeros_like(part[:1])]) for part in layers)
    settings = {"held_out": held_out, "tokens": tokens, "steps": steps, "tokens_per_step": tokens_per_step}
    settings |= {"learning_rate": learning_rate, "weight_decay": weight_decay, "seed": seed, "texts": len(ids)}
    lens = TunedLens(changes, biases, artefacts.provenance(settings, [model.source], seed))
    others, rows = _draw(model, ids[measured], valid[measured], tokens, rng, batch_size)
    return lens, _measure(model, lens, others, rows, seed)


def _draw(
    model: LanguageModel, ids: np.ndarray, valid: np.ndarray, tokens: int, rng: np.random.Generator, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals [layer, token, embedding] of at most so many tokens, and the row of each."""
    where = valid.copy()
    rows, slots = np.nonzero(where)
    left_out = rng.permutation(len(rows))[tokens:]
    where[rows[left_out], slots[left_out]] = False
    return read_residuals(model, ids, valid, where, batch_size), np.nonzero(where)[0]


@functools.partial(jax.jit, static_argnames=("learning_rate", "weight_decay"))
def _train(
    ends: Readers, streams: jax.Array, draws: jax.Array, learning_rate: float, weight_decay: float
) -> tuple[jax.Array, jax.Array]:
    """Changes [layer, embedding, embedding] and biases [layer, embedding] of all layers but the last."""
    layers, _, width = streams.shape
    schedule = optax.cosine_decay_schedule(learning_rate, len(draws))
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay))

    def loss(maps: tuple[jax.Array, jax.Array], stream: jax.Array, final: jax.Array) -> jax.Array:
        values = ends.log_probs(stream + stream @ maps[0].T + maps[1])
        return jnp.mean(jnp.sum(jnp.exp(final) * (final - values), axis=-1))

    def step(carry: Any, drawn: jax.Array) -> tuple[Any, None]:
        maps, state = carry
        final = ends.log_probs(streams[-1, drawn])
        # One layer's logits are alive at a time.
        grads = jax.lax.map(lambda layer: jax.grad(loss)(*layer, final), (maps, streams[:-1, drawn]))
        updates, state = jax.vmap(optimiser.update)(grads, state, maps)
        return (optax.apply_updates(maps, updates), state), None

    start = (jnp.zeros((layers - 1, width, width)), jnp.zeros((layers - 1, width)))
    (maps, _), _ = jax.lax.scan(step, (start, jax.vmap(optimiser.init)(start)), draws)
    return maps


def _measure(model: LanguageModel, lens: TunedLens, streams: np.ndarray, rows: np.ndarray, seed: int) -> pl.DataFrame:
    texts, inverse = np.unique(rows, return_inverse=True)
    counts = np.bincount(inverse)
    logit, tuned = (read_out(model, streams, translators).divergence for translators in (None, lens))
    table = []
    for layer in range(len(streams)):
        for name, values in (("logit", logit), ("tuned", tuned), ("difference", tuned - logit)):
            means = np.bincount(inverse, values[layer]) / counts
            table.append((layer, name, float(means.mean()), *bootstrap(means, seed), len(texts), len(rows)))
    return pl.DataFrame(table, ["layer", "lens", "kl", "low", "high", "texts", "tokens"], orient="row")

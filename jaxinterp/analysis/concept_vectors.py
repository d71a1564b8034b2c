"""Vectors that stand for a concept in one model, and what they do to the next word when they are added."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.activations.run import compiled_form, forward_pass, prepare
from jaxinterp.analysis.contrasts import sentence_contrast
from jaxinterp.interventions.steer import steer
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites import selectors
from jaxinterp.tasks.concepts import WordIds


def activation_differences(model: LanguageModel, pairs: Sequence[tuple[str, str]], layers: Sequence[int]) -> np.ndarray:
    """What the residual stream holds more in sentences about a concept than in their counterparts.

    A sentence stands for the mean of `resid_post` over its tokens but the first, at which these models keep a large
    vector that says nothing about the text.

    Args:
        model: The model.
        pairs: (sentence about the concept, counterpart).
        layers: Blocks after which to read.

    Returns:
        Float32 [layer, pair, embedding]; its mean over pairs is the concept vector.
    """
    return sentence_contrast(model, pairs, layers).differences


def split_half_cosine(differences: np.ndarray, *, splits: int, seed: int) -> np.ndarray:
    """How far a concept vector depends on the sentences: the mean of `split_half_cosines`, [layer]."""
    return split_half_cosines(differences, splits=splits, seed=seed).mean(axis=0)


def split_half_cosines(differences: np.ndarray, *, splits: int, seed: int) -> np.ndarray:
    """The cosine of the vectors from two halves of the pairs.

    Args:
        differences: [layer, pair, embedding], as from `activation_differences`.
        splits: How many random halvings.
        seed: Seed of the random numbers.

    Returns:
        Cosines, [split, layer].
    """
    draw = np.random.default_rng(seed)
    half = differences.shape[1] // 2
    cosines = []
    for _ in range(splits):
        order = draw.permutation(differences.shape[1])
        first, second = differences[:, order[:half]].mean(axis=1), differences[:, order[half:]].mean(axis=1)
        cosines.append(np.sum(unit(first) * unit(second), axis=-1))
    return np.stack(cosines)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length one along the last axis; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@dataclasses.dataclass(frozen=True)
class Push:
    """A vector to be added after a block, at all tokens.

    Attributes:
        layer: The block.
        vector: [embedding].
    """

    layer: int
    vector: np.ndarray


@dataclasses.dataclass(frozen=True)
class NextWord:
    """The next word under each push, minus the next word without one.

    Attributes:
        contrast: Change of the mean of log P(concept's word) - log P(other word) over contrast pairs, in nats [push,
            prompt, concept].
        log_mass: Change of the log-probability that any of the concept's held-out words comes next, in nats [push,
            prompt, concept].
        kl: KL divergence of the pushed from the unpushed next-token distribution, in nats [push, prompt].
    """

    contrast: np.ndarray
    log_mass: np.ndarray
    kl: np.ndarray


def next_word_effects(
    model: LanguageModel,
    prompts: Sequence[str],
    pushes: Sequence[Push],
    words: Sequence[WordIds],
    *,
    rows: int = 64,
    progress: str | None = None,
) -> NextWord:
    """Measures what pushes do to the word that comes next after neutral prompts.

    Vectors and layers are numbers in the tree: all pushes run through one compiled program, `rows` at a time.

    Args:
        model: The model.
        prompts: Texts.
        pushes: What is added where.
        words: For each concept the ids of its words in this model's vocabulary.
        rows: Rows (a push on a prompt) in one forward pass.
        progress: Label of a progress bar on stderr; `None` for none.

    Returns:
        The effects.
    """
    tokens, mask = prepare(model, prompts)
    width = model.architecture.embedding
    last = model.architecture.layers - 1

    def logits(layer: int, vectors: np.ndarray, chosen: np.ndarray) -> jax.Array:
        missing = rows - len(chosen)
        filled, vectors = np.pad(chosen, (0, missing), mode="edge"), np.pad(vectors, ((0, missing), (0, 0)))
        steered = steer(model, selectors.resid_post(layer), vectors)
        out, _ = forward_pass(compiled_form(steered.body), tokens[filled], mask[filled], sites=(), logits="last")
        assert out is not None
        return out[: len(chosen)]

    nothing = np.zeros((rows, width), np.float32)
    starts = [np.arange(len(prompts))[first : first + rows] for first in range(0, len(prompts), rows)]
    clean = jnp.concatenate([jax.nn.log_softmax(logits(last, nothing[: len(part)], part)) for part in starts])
    pairs = [jnp.asarray(entry.pairs) for entry in words]
    before_contrast, before_mass, _ = (np.asarray(part) for part in _measure(clean, clean, pairs))
    shape = (len(pushes), len(prompts))
    contrast, log_mass = np.empty((*shape, len(words)), np.float32), np.empty((*shape, len(words)), np.float32)
    kl = np.empty(shape, np.float32)
    for layer, who, chosen in _show(list(_chunks(pushes, len(prompts), rows)), progress):
        out = logits(layer, np.stack([pushes[index].vector for index in who]).astype(np.float32), chosen)
        after_contrast, after_mass, moved = _measure(out, clean[chosen], pairs)
        contrast[who, chosen] = np.asarray(after_contrast) - before_contrast[chosen]
        log_mass[who, chosen] = np.asarray(after_mass) - before_mass[chosen]
        kl[who, chosen] = np.asarray(moved)
    return NextWord(contrast, log_mass, kl)


@jax.jit
def _measure(logits: jax.Array, clean: jax.Array, pairs: list[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Contrast [row, concept], log mass [row, concept] and KL divergence [row]."""
    log_probs = jax.nn.log_softmax(logits)
    contrast = [jnp.mean(log_probs[:, ids[:, 0]] - log_probs[:, ids[:, 1]], axis=1) for ids in pairs]
    mass = [jax.nn.logsumexp(log_probs[:, ids[:, 0]], axis=1) for ids in pairs]
    kl = jnp.sum(jnp.exp(clean) * (clean - log_probs), axis=-1)
    return jnp.stack(contrast, axis=1), jnp.stack(mass, axis=1), kl


def _chunks(pushes: Sequence[Push], prompts: int, rows: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(layer, push of each row, prompt of each row), at most `rows` rows at a time."""
    for layer in sorted({push.layer for push in pushes}):
        here = np.array([index for index, push in enumerate(pushes) if push.layer == layer])
        who, chosen = np.repeat(here, prompts), np.tile(np.arange(prompts), len(here))
        for first in range(0, len(who), rows):
            yield layer, who[first : first + rows], chosen[first : first + rows]


def _show(chunks: list, label: str | None) -> Iterator:
    if label is None:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{label}: {len(chunks)} batches")
    yield from track(chunks, label, console=console, transient=True, disable=not console.is_terminal)

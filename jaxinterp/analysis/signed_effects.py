"""What a vector does when it is added against when it is subtracted; and one effect as a share of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinterp.activations.run import run
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.analysis.push_effects import CleanTexts
from jaxinterp.models.language_model import LanguageModel


def signed_effects(
    model: LanguageModel, prompts: Sequence[str], pushes: Sequence[Push], pairs: np.ndarray
) -> np.ndarray:
    """Half of what changes from a vector subtracted to the same vector added: what both signs do alike cancels.

    Args:
        model: The model.
        prompts: Texts before the next word.
        pushes: What is added where.
        pairs: Ids of (word, opposite), int [pair, 2].

    Returns:
        Half the change of the mean over pairs of log P(word) - log P(opposite), in nats [push, prompt].
    """
    both = [*pushes, *(dataclasses.replace(push, vector=-push.vector) for push in pushes)]
    texts = CleanTexts(model, prompts, {push.layer for push in pushes})
    logits = texts.logits(both, pairs.ravel()).reshape(len(both), len(prompts), *pairs.shape)
    contrast = (logits[..., 0] - logits[..., 1]).mean(axis=-1)
    return (contrast[: len(pushes)] - contrast[len(pushes) :]) / 2


def contrast_after(model: LanguageModel, prompts: Sequence[str], pairs: np.ndarray) -> np.ndarray:
    """How much likelier words are than their opposites, as the next word.

    Args:
        model: The model.
        prompts: Texts.
        pairs: Ids of (word, opposite), int [pair, 2].

    Returns:
        Mean over pairs of log P(word) - log P(opposite), in nats [prompt].
    """
    logits, _ = run(model, list(prompts), logits="last")
    return np.mean(logits[:, pairs[:, 0]] - logits[:, pairs[:, 1]], axis=1)


def ratio_of_means(upper: np.ndarray, lower: np.ndarray, seed: int, n: int = 2000) -> tuple[float, float, float]:
    """One mean as a share of another, both over the same examples.

    Args:
        upper: [example].
        lower: [example], the same examples in the same order.
        seed: Of the bootstrap.
        n: How many resamples.

    Returns:
        The ratio, and the ends of its 95 % interval: examples are drawn for both at once.

    Raises:
        ValueError: The examples differ in number.

    >>> ratio_of_means(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), seed=0)
    (0.5, 0.5, 0.5)
    """
    if len(upper) != len(lower):
        raise ValueError(f"a ratio is over the same examples: {len(upper)} stand above {len(lower)}")
    counts = np.random.default_rng(seed).multinomial(len(upper), np.full(len(upper), 1 / len(upper)), size=n)
    drawn = (counts @ np.asarray(upper, float)) / (counts @ np.asarray(lower, float))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.mean(upper) / np.mean(lower)), float(low), float(high)

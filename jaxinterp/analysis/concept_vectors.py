"""Vectors that stand for a concept in one model, and what they do to the next word when they are added."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinterp.analysis.contrasts import sentence_contrast
from jaxinterp.models.language_model import LanguageModel


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

"""Contrasts of which a vector is the mean: of sentences about a concept, of answers to two-choice questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinterp.activations.run import run
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites import selectors
from jaxinterp.tasks.two_choice import ANSWER, Question
from jaxinterp.tasks.vocabularies import token_ids_by_bytes


@dataclasses.dataclass(frozen=True)
class Contrast:
    """What the residual stream holds more in one text of each pair than in the other.

    Attributes:
        differences: Float32 [layer, pair, embedding]; their mean over pairs is the vector.
        stream_norms: Mean norm of the residual stream where it was read, [layer].
    """

    differences: np.ndarray
    stream_norms: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """Mean difference, [layer, embedding]."""
        return self.differences.mean(axis=1)


def sentence_contrast(model: LanguageModel, pairs: Sequence[tuple[str, str]], layers: Sequence[int]) -> Contrast:
    """Contrasts sentences about a concept with their counterparts.

    A sentence stands for the mean of `resid_post` over its tokens but the first, at which these models keep a large
    vector that says nothing about the text.

    Args:
        model: The model.
        pairs: (sentence about the concept, counterpart).
        layers: Blocks after which to read, each once.

    Returns:
        The contrast.
    """
    texts = [text for pair in pairs for text in pair]
    _, cache = run(model, texts, sites=[selectors.resid_post(*layers)], logits=None)
    counted = cache.mask & (np.cumsum(cache.mask, axis=1) > 1)
    weights = counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    streams = [cache["resid_post", layer] for layer in layers]
    means = np.stack([np.einsum("bse,bs->be", stream, weights) for stream in streams])
    norms = [np.einsum("bs,bs->", np.linalg.norm(stream, axis=-1), weights) / len(texts) for stream in streams]
    return Contrast((means[:, 0::2] - means[:, 1::2]).astype(np.float32), np.array(norms))


def answer_contrast(model: LanguageModel, questions: Sequence[Question], layers: Sequence[int]) -> Contrast:
    """Contrasts the matching answers of two-choice questions with the other ones, at the letter that is answered.

    Args:
        model: The model.
        questions: With their letters balanced.
        layers: Blocks after which to read, each once.

    Returns:
        The contrast.
    """
    letters = answer_letters(model)
    tokenizer = model.require_tokenizer()
    rows = []
    for question in questions:
        start = tokenizer.encode(question.stem + ANSWER)
        match = "AB".index(question.letter)
        rows += [[*start, int(letters[match])], [*start, int(letters[1 - match])]]
    _, cache = run(model, rows, sites=[selectors.resid_post(*layers)], logits=None)
    last = np.stack([cache["resid_post", layer][:, -1] for layer in layers])
    norms = np.linalg.norm(last, axis=-1).mean(axis=1)
    return Contrast((last[:, 0::2] - last[:, 1::2]).astype(np.float32), norms)


def answer_letters(model: LanguageModel) -> np.ndarray:
    """Ids of the tokens A and B behind an opening bracket, int [2]."""
    table = token_ids_by_bytes(model.require_tokenizer())
    return np.array([table[b"A"], table[b"B"]])


def without_span(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Vectors without their component in the span of some rows.

    Args:
        vectors: [..., embedding].
        rows: [row, embedding].

    Returns:
        [..., embedding], orthogonal to every row.

    >>> without_span(np.array([3.0, 4.0]), np.array([[2.0, 0.0]])).tolist()
    [0.0, 4.0]
    """
    _, strengths, directions = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
    basis = directions[strengths > 1e-9 * strengths.max(initial=0)]
    return vectors - (vectors @ basis.T) @ basis

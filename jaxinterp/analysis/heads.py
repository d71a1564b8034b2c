"""Attention heads: what they look at, which of them matter, and random sets to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jaxinterp.sites.selectors import head_name

Head = tuple[int, int]
"""Layer and head, both from 0."""


def attention_to(pattern: np.ndarray, query: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How much of a token's attention goes to each group of earlier tokens.

    Args:
        pattern: Attention probabilities, [layer, batch, head, seq, kv_seq].
        query: Position to look from, one per example, [batch].
        groups: Which key positions belong to each group, [batch, group, kv_seq] booleans.

    Returns:
        Attention mass in [0, 1], [batch, layer, head, group].

    >>> pattern = np.full((1, 1, 1, 2, 2), 0.5)
    >>> attention_to(pattern, np.array([1]), np.array([[[True, False], [True, True]]])).tolist()
    [[[[0.5, 1.0]]]]
    """
    rows = pattern[:, np.arange(len(query)), :, query]  # [batch, layer, head, kv_seq]: advanced indices come first
    return np.einsum("blhk,bgk->blhg", rows, groups.astype(pattern.dtype))


def above(scores: np.ndarray, threshold: float) -> list[Head]:
    """Heads whose score exceeds a threshold, the highest first.

    Args:
        scores: [layer, head].
        threshold: Exclusive.

    Returns:
        (layer, head) pairs.

    >>> above(np.array([[0.0, 0.3], [0.9, 0.1]]), 0.1)
    [(1, 0), (0, 1)]
    """
    return [head for head in ranked(scores) if scores[head] > threshold]


def ranked(scores: np.ndarray) -> list[Head]:
    """All heads, the highest score first; ties in order of layer and head.

    Args:
        scores: [layer, head].

    Returns:
        (layer, head) pairs.
    """
    order = np.argsort(-scores, axis=None, kind="stable")
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, scores.shape), strict=True)]


def draw_sets(shape: tuple[int, int], outside: Iterable[Head], size: int, draws: int, seed: int) -> list[list[Head]]:
    """Random sets of heads that avoid some heads.

    Args:
        shape: Layers and heads per layer.
        outside: Heads that must not be drawn.
        size: Heads per set.
        draws: Number of sets.
        seed: Of the random numbers.

    Returns:
        `draws` lists of `size` distinct heads each, in order of layer and head.

    Raises:
        ValueError: If fewer than `size` heads are left.
    """
    avoided = set(outside)
    pool = [(layer, head) for layer in range(shape[0]) for head in range(shape[1]) if (layer, head) not in avoided]
    if size > len(pool):
        raise ValueError(f"{len(pool)} of {shape[0] * shape[1]} heads are left to draw {size} from; use a smaller set")
    rng = np.random.default_rng(seed)
    return [[pool[index] for index in sorted(rng.permutation(len(pool))[:size])] for _ in range(draws)]


def label(heads: Sequence[Head]) -> str:
    """Heads as text.

    >>> label([(4, 5), (4, 0)])
    'L4.H5 L4.H0'
    """
    return " ".join(head_name(layer, head) for layer, head in heads)

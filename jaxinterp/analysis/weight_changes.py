"""How far the weights of single units and heads moved between two models of one architecture."""

from __future__ import annotations

import numpy as np

from jaxinterp.models.language_model import LanguageModel

UNIT_PARTS = {"out": "W_out", "gate": "W_gate", "up": "W_in"}
HEAD_PARTS = {"Q": "W_Q", "K": "W_K", "V": "W_V", "O": "W_O"}


def unit_vectors(model: LanguageModel) -> dict[str, np.ndarray]:
    """What each MLP unit writes (`"out"`) and reads (`"up"`, and `"gate"` of a gated MLP).

    Args:
        model: The model; edits are not weights and are left out.

    Returns:
        Part -> [layer, unit, embedding].
    """
    parts = {name: weight for name, weight in UNIT_PARTS.items() if name != "gate" or model.architecture.gated}
    stacked = {name: _stack(model, weight) for name, weight in parts.items()}
    return stacked | {"out": stacked["out"].swapaxes(1, 2)}


def head_vectors(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights of each attention head, each matrix as one vector.

    Args:
        model: The model; edits are not weights and are left out.

    Returns:
        `"Q"`, `"K"`, `"V"` and `"O"` -> [layer, head, numbers]; heads of one group share `"K"` and `"V"`.
    """
    group = model.architecture.heads // model.architecture.kv_heads
    found = {}
    for name, weight in HEAD_PARTS.items():
        array = _stack(model, weight)
        by_head = np.moveaxis(array, 2, 1) if name == "O" else array
        by_head = np.repeat(by_head, group, axis=1) if name in "KV" else by_head
        found[name] = by_head.reshape(*by_head.shape[:2], -1)
    return found


def _stack(model: LanguageModel, weight: str) -> np.ndarray:
    weights = model.weights()
    return np.stack(
        [np.asarray(weights[f"blocks.{layer}.{weight}"], np.float32) for layer in range(model.architecture.layers)]
    )


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of vectors with their counterparts; 0 where one is 0.

    Args:
        first: [..., width].
        second: [..., width].

    Returns:
        [...], in [-1, 1].

    >>> cosine(np.array([1.0, 0.0]), np.array([2.0, 0.0])).item()
    1.0
    """
    first, second = (np.asarray(array, np.float64) for array in (first, second))
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.sum(first * second, axis=-1) / np.where(norms > 0, norms, 1)


def norm_change(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much longer or shorter the vectors of `second` are, as a share of those of `first`.

    Args:
        first: [..., width], none of them 0.
        second: [..., width].

    Returns:
        [...], not negative.

    >>> norm_change(np.array([3.0, 4.0]), np.array([0.0, 4.0])).item()
    0.2
    """
    before, after = (np.linalg.norm(np.asarray(array, np.float64), axis=-1) for array in (first, second))
    return np.abs(after - before) / before

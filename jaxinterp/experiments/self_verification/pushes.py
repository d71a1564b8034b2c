"""Vectors added to the residual stream, at one layer or at several at once, as long as a share of the stream itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import Positions


@dataclasses.dataclass(frozen=True)
class Push:
    """One vector for each of some layers, added at all of them at once.

    Attributes:
        vector: What they are.
        layers: Behind which blocks they are added.
        scale: Their length, as a share of the mean norm of the stream there.
        parts: What is added, [layer of `layers`, embedding].
        draw: Number of a random vector.
    """

    vector: str
    layers: tuple[int, ...]
    scale: float
    parts: np.ndarray
    draw: int | None = None

    def labels(self) -> dict[str, Any]:
        """Its columns of a table; `layer` is null where there are several."""
        span = " to ".join(f"L{layer}" for layer in dict.fromkeys((*self.layers[:1], *self.layers[-1:])))
        row = {"vector": self.vector, "layers": span, "layer": self.layers[0] if len(self.layers) == 1 else None}
        return row | {"scale": self.scale, "draw": self.draw, "control": self.vector in ("random", "none")}

    def among(self, others: Sequence[Push]) -> bool:
        """Whether it is one of these very objects."""
        return any(self is other for other in others)

    def apply(self, model: LanguageModel, at: Positions) -> LanguageModel:
        """The steered model.

        Args:
            model: The model; it stays as it is.
            at: At which tokens.
        """
        for layer, part in zip(self.layers, self.parts, strict=True):
            model = ji.steer(model, ji.resid_post(layer), part, at=at)
        return model

    def cell(self, at: Positions) -> ji.Cell:
        """The same as an edit of a sweep."""
        return ji.Cell(self.labels(), lambda model: self.apply(model, at))


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a push is for.

    Attributes:
        name: What the model shall do.
        valid: Whether accepted cases are pushed, or rejected ones.
        token: The token that shall come next.
        words: It, and those that mean the same.
        known: Every token that can follow in a trace as it should be.
    """

    name: str
    valid: bool
    token: int
    words: tuple[int, ...]
    known: tuple[int, ...]

    def measures(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """What next tokens [..., case] say: measure -> boolean array of that shape."""
        found = {"reached": tokens == self.token, "malformed": ~np.isin(tokens, self.known)}
        return found | ({"same meaning": np.isin(tokens, self.words)} if len(self.words) > 1 else {})

    def choose(self, pushes: Sequence[Push], tokens: np.ndarray, most_malformed: float) -> int:
        """The push that reaches its aim most often, among those that rarely break the text.

        Args:
            pushes: Candidates.
            tokens: Next tokens under each of them, [push, case].
            most_malformed: Largest share of malformed next tokens.

        Returns:
            Its index; of equally good ones the shorter push, then the one at fewer layers, then the earlier one. Where
            every push breaks the text more often, the one that breaks it least.
        """
        found = self.measures(tokens)
        reached, malformed = found["reached"].mean(axis=1), found["malformed"].mean(axis=1)

        def order(index: int) -> tuple:
            push = pushes[index]
            allowed = bool(malformed[index] <= most_malformed)
            quality = float(reached[index] if allowed else -malformed[index])
            return allowed, quality, -push.scale, -len(push.layers), -push.layers[0]

        return max(range(len(pushes)), key=order)

    def rows(
        self,
        pushes: Sequence[Push],
        tokens: np.ndarray,
        picks: Sequence[Push] = (),
        best: Sequence[Push] = (),
        **more: Any,
    ) -> list[dict[str, Any]]:
        """Rows of a table: every measure of every push.

        Args:
            pushes: What was tried.
            tokens: Next tokens under each, [push, case].
            picks: Those among them that were chosen on selection.
            best: Those among `picks` that a claim reads.
            **more: Further columns.

        Returns:
            The rows.
        """
        rows = []
        for push, own in zip(pushes, tokens, strict=True):
            row = {"aim": self.name, "chosen": push.among(picks), "best": push.among(best)}
            for measure, shares in self.measures(own).items():
                rows.append(push.labels() | row | {"measure": measure} | cases.proportion(shares) | more)
        return rows


def units(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., embedding] at length 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def random_units(count: int, width: int, seed: int) -> np.ndarray:
    """Random directions, [count, embedding]."""
    return units(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


def spans(layers: int) -> list[tuple[int, ...]]:
    """Every layer alone, and the upper half at once.

    >>> spans(4)
    [(0,), (1,), (2,), (3,), (2, 3)]
    """
    upper = tuple(range(layers // 2, layers))
    return [*((layer,) for layer in range(layers)), *([upper] if len(upper) > 1 else [])]


def grid(
    vector: str,
    directions: np.ndarray,
    norms: np.ndarray,
    where: Sequence[tuple[int, ...]],
    scales: Sequence[float],
    draw: int | None = None,
) -> list[Push]:
    """All combinations of layers and scales.

    Args:
        vector: What the directions are.
        directions: Unit vectors, [layer, embedding].
        norms: Mean norm of the stream behind each block, [layer].
        where: Layers that are steered at once.
        scales: Lengths, as a share of `norms`.
        draw: Number of a random vector.

    Returns:
        The pushes, all scales at the first layers, then at the next.
    """
    lengths = directions * norms[:, None]
    return [
        Push(vector, layers, scale, (scale * lengths[list(layers)]).astype(np.float32), draw)
        for layers in where
        for scale in scales
    ]


def random_grid(
    draws: np.ndarray, norms: np.ndarray, where: Sequence[tuple[int, ...]], scales: Sequence[float]
) -> list[Push]:
    """The same of random directions, each of them the same at all layers.

    Args:
        draws: Unit vectors, [draw, embedding].
        norms: As in `grid`.
        where: As in `grid`.
        scales: As in `grid`.

    Returns:
        The pushes of the first draw, then those of the next.
    """
    directions = np.repeat(draws[:, None], len(norms), axis=1)
    return [
        push for draw, own in enumerate(directions) for push in grid("random", own, norms, where, scales, draw=draw)
    ]


def nothing() -> Push:
    """No push, for rows of a table about the unsteered model."""
    return Push("none", (), 0.0, np.zeros((0, 0), np.float32))


def next_tokens(model: LanguageModel, texts: Sequence[Case], cells: Sequence[ji.Cell]) -> tuple[np.ndarray, np.ndarray]:
    """The most probable next token of every text, unedited and under every edit.

    Args:
        model: The unedited model.
        texts: Texts; only their tokens are used.
        cells: Edits that fit every text.

    Returns:
        Ids [case], and ids [cell, case].
    """
    table = cases.sweep(model, texts, lambda _: cells, _largest)
    tokens = cases.values(table, texts).astype(int)
    return cases.values(table, texts, "clean")[0].astype(int), tokens


def _largest(logits: Any) -> Any:
    return jnp.argmax(logits, axis=-1).astype(jnp.float32)

"""Taking attention heads out of a model, as cells of a sweep: which heads, at which tokens, and what takes their place.

`removal_cells` is what other experiments want: it turns labelled sets of heads into the cells of `cases.sweep`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case, Group
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.taps import Address

Method = Literal["zero", "mean", "resample"]
Position = Literal["all tokens", "verdict", "result", "verdict and result"]

METHODS: tuple[Method, ...] = ("zero", "mean", "resample")
POSITIONS: tuple[Position, ...] = ("all tokens", "verdict", "result", "verdict and result")
_SINGLE: dict[Position, tuple[Position, ...]] = {"verdict and result": ("result", "verdict")}


@dataclasses.dataclass(frozen=True)
class Removal:
    """What is taken out, and why.

    Attributes:
        condition: Name of the set in the table.
        heads: The set; an empty one leaves the model as it is.
        method: What takes the place of the heads' outputs: zeros, their mean over the tokens of other texts, or what
            one other text has at as many tokens from its end.
        position: At which tokens: all, the one that opens the verdict, the last digit of the result before it, or both.
        draw: Number of a random set.
    """

    condition: str
    heads: tuple[Head, ...]
    method: Method = "zero"
    position: Position = "all tokens"
    draw: int | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """The columns of the table that say what was taken out."""
        return {
            "condition": self.condition,
            "method": self.method,
            "position": self.position,
            "heads": heads.label(self.heads),
            "n_heads": len(self.heads),
            "draw": self.draw,
        }


@dataclasses.dataclass(frozen=True)
class Sources:
    """What heads give out in other texts.

    Attributes:
        values: Layer -> [text, column, head, projection], columns counted from the end: the last one is that of `" ("`.
            In front of a shorter text its first token is repeated.
        means: Position (but not both tokens) -> a cache of one token, which holds the mean over those tokens.
    """

    values: Mapping[int, np.ndarray]
    means: Mapping[Position, ji.Cache]

    def of_others(self, group: Group, seed: int = 0) -> ji.Cache:
        """For every row of a group what a text drawn at random has, as if it were the row's own."""
        width = group.ids.shape[1]
        arrays: dict[Address, np.ndarray] = {}
        for layer, own in self.values.items():
            drawn = np.random.default_rng(seed).integers(len(own), size=group.order.max() + 1)[group.order]
            front = ((0, 0), (max(0, width - own.shape[1]), 0), (0, 0), (0, 0))
            arrays["z", layer] = np.pad(own[drawn, -width:], front, mode="edge")
        return ji.Cache(arrays, group.ids, group.mask)


def read_sources(model: LanguageModel, others: Sequence[Case], layers: Sequence[int]) -> Sources:
    """Reads what heads give out in other texts, to put it in place of what they give out in the texts of a sweep.

    Args:
        model: The model.
        others: Cases of another split.
        layers: The layers of the heads.

    Returns:
        The numbers; each text takes `layers * tokens * heads * projection` of them.
    """
    width = max(group.ids.shape[1] for group in cases.grouped(others))
    shape = (len(others), width, model.architecture.heads, model.architecture.projection)
    values = {layer: np.zeros(shape, np.float32) for layer in layers}
    parts: dict[Position, list[dict[int, np.ndarray]]] = {name: [] for name in POSITIONS if name not in _SINGLE}
    for group in cases.grouped(others, cases.READ_AT_ONCE):
        _, cache = ji.run(model, group.ids, group.mask, sites=[ji.z(*layers)], logits=None, batch_size=cases.ROWS)
        rows = np.arange(len(group.cases))
        for layer in layers:
            own = cache["z", layer]
            first = own[rows, group.pads]
            filled = np.where(group.mask[:, :, None, None], own, first[:, None])
            front = ((0, 0), (width - filled.shape[1], 0), (0, 0), (0, 0))
            values[layer][group.order] = np.pad(filled, front, mode="edge")
        parts["all tokens"].append({layer: cache["z", layer][group.mask] for layer in layers})
        for place in cases.PLACES:
            parts[place].append({layer: cache["z", layer][rows, group.columns(place)] for layer in layers})
    means: dict[Position, ji.Cache] = {position: _one_token(found, layers) for position, found in parts.items()}
    return Sources(values, means)


def _one_token(parts: Sequence[Mapping[int, np.ndarray]], layers: Sequence[int]) -> ji.Cache:
    mean = {layer: np.concatenate([part[layer] for part in parts]).mean(axis=0) for layer in layers}
    arrays: dict[Address, np.ndarray] = {("z", layer): mean[layer][None, None] for layer in layers}
    return ji.Cache(arrays, np.zeros((1, 1), np.int32), np.ones((1, 1), bool))


def removal_cells(
    removals: Sequence[Removal], sources: Sources | None = None, seed: int = 0
) -> Callable[[Group], list[ji.Cell]]:
    """The cells that take heads out, as `cases.sweep` wants them.

    Args:
        removals: One cell for each; its labels are `condition`, `method`, `position`, `heads` (as text), `n_heads` and
            `draw`.
        sources: For mean and resample: what the heads give out in other texts.
        seed: Of the choice of a text for each row.

    Returns:
        Group of cases -> cells.

    Raises:
        ValueError: A removal needs sources, and there are none.

    >>> everywhere = Removal("a pair", ((4, 5), (4, 0)))
    >>> at_the_end = dataclasses.replace(everywhere, position="verdict")
    >>> cells = removal_cells([everywhere, at_the_end])
    """
    lacking = [removal.method for removal in removals if removal.method != "zero" and removal.heads]
    if sources is None and lacking:
        raise ValueError(f"{lacking[0]} removal needs sources; read them with read_sources from cases of another split")
    resampled = any(removal.method == "resample" for removal in removals)

    def cells(group: Group) -> list[ji.Cell]:
        others = sources.of_others(group, seed) if sources is not None and resampled else None
        means = None if sources is None else sources.means
        edit = functools.partial(take_out, means=means, others=others)
        return [ji.Cell(removal.labels, functools.partial(edit, removal=removal)) for removal in removals]

    return cells


def take_out(
    model: LanguageModel,
    removal: Removal,
    means: Mapping[Position, ji.Cache] | None = None,
    others: ji.Cache | None = None,
) -> LanguageModel:
    """Takes heads out of a model. Other heads compile nothing new.

    Args:
        model: The model; it stays as it is.
        removal: What to take out.
        means: For a mean removal; see `Sources`.
        others: For a resampled one: what takes the place of the heads' outputs in each row, as from
            `Sources.of_others`.

    Returns:
        The edited model.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in removal.heads:
        by_layer.setdefault(layer, []).append(head)
    sites = [ji.head(layer, *chosen) for layer, chosen in sorted(by_layer.items())]
    if not sites:
        return model
    if removal.method == "resample":
        assert others is not None, "resampling needs others"
        for site in sites:
            model = ji.interchange(model, site, others, at=_tokens(removal.position))
        return model
    if removal.method == "mean":
        assert means is not None, "a mean removal needs means"
        for position in _SINGLE.get(removal.position, (removal.position,)):
            model = ji.ablate(model, *sites, method="mean", cache=means[position], at=_tokens(position))
        return model
    return ji.ablate(model, *sites, at=_tokens(removal.position))


def _tokens(position: Position) -> Any:
    """Both ways to name two tokens have one shape, so that they share a program."""
    if position == "all tokens":
        return ji.everywhere()
    if position == "verdict":
        return ji.last()
    return ji.at(-2, -2) if position == "result" else ji.at(-2, -1)

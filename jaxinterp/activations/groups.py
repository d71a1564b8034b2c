"""Trees that one compiled program can serve: of one structure, with different numbers.

The numbers in which they differ are stacked and mapped over; what they have in common, such as a model's weights, is
passed once.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp.parallel.placement import fetch

Leaves = list[jax.Array | None]

_LARGE = 1 << 12
"""Bytes from which on a leaf that all trees of a group share is passed once instead of once for each."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["leaves"], meta_fields=["structure"])
@dataclasses.dataclass(frozen=True)
class Shared:
    """What the trees of a group have in common.

    Attributes:
        leaves: The common leaves, `None` where each has its own.
        structure: Their structure.
    """

    leaves: Leaves
    structure: Any

    def joined(self, own: Leaves) -> Any:
        """One of the trees, from the leaves that are its own."""
        leaves = [mine if common is None else common for common, mine in zip(self.leaves, own, strict=True)]
        return jax.tree_util.tree_unflatten(self.structure, leaves)


@dataclasses.dataclass(frozen=True)
class Group:
    """Trees of one structure.

    Attributes:
        members: Which of the given trees they are.
        shared: What they have in common.
        leaves: All leaves of each.
        small: The same, with small ones as NumPy arrays, which are quicker to stack.
    """

    members: list[int]
    shared: Shared
    leaves: list[list[Any]]
    small: list[list[Any]]

    def stack(self, places: Iterable[int]) -> Leaves:
        """The other leaves of some members, by their place in the group, with a cell axis in front."""
        chosen = [int(place) for place in places]
        own: Leaves = []
        for number, common in enumerate(self.shared.leaves):
            if common is not None:
                own.append(None)
                continue
            parts = [self.small[place][number] for place in chosen]
            own.append(jnp.stack(parts) if _is_large(parts[0]) else jnp.asarray(np.stack(parts)))
        return own


def _is_large(leaf: Any) -> bool:
    return getattr(leaf, "nbytes", 0) >= _LARGE


def by_structure(trees: Sequence[Any], common: Callable[[Any], bool] | None = None) -> list[Group]:
    """Sorts trees into groups that one compiled program can serve.

    Args:
        trees: Trees, with array leaves.
        common: Says of a leaf that all trees have whether it is passed once; by default if it is large.

    Returns:
        The groups, in the order in which they first occur.
    """
    once = common or _is_large
    flattened = [_flatten(tree) for tree in trees]
    members: dict[Any, list[int]] = {}
    for number, (_, _, structure, shapes) in enumerate(flattened):
        members.setdefault((structure, shapes), []).append(number)
    groups = []
    for (structure, _), numbers in members.items():
        leaves = [flattened[number][0] for number in numbers]
        shared = [
            column[0] if once(column[0]) and all(leaf is column[0] for leaf in column) else None
            for column in zip(*leaves, strict=True)
        ]
        small = [flattened[number][1] for number in numbers]
        groups.append(Group(numbers, Shared(shared, structure), leaves, small))
    return groups


_Flat = tuple[list[Any], list[Any], Any, tuple[Any, ...]]

_known: dict[int, tuple[weakref.ref[Any], _Flat]] = {}
"""The leaves of trees in use: a sweep takes the same few thousand blocks apart again for every buffer."""


def _flatten(tree: Any) -> _Flat:
    """Leaves, the same with small ones as NumPy arrays, structure, and the leaves' shapes and dtypes."""
    known = _known.get(id(tree))
    if known is not None and known[0]() is tree:
        return known[1]
    leaves, structure = jax.tree_util.tree_flatten(tree)
    small = [leaf if _is_large(leaf) else fetch(leaf) for leaf in leaves]
    flat = (leaves, small, structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
    if isinstance(tree, pz.nn.Layer):
        key = id(tree)
        _known[key] = (weakref.ref(tree, lambda _: _known.pop(key, None)), flat)
    return flat

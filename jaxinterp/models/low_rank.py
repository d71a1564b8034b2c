"""Weights with a term of low rank beside them, and how a tree takes them in place of plain ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.sites.taps import Tap

NamedArray: TypeAlias = pz.nx.NamedArray

MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out")
"""The weights of a block that can have such a term."""


@pz.pytree_dataclass
class LowRank(pz.Struct):
    r"""A weight with a term of low rank beside it: $W + s B A$.

    It stands in a tree where `W` stood. Nothing as large as `W` is computed from it in a forward pass: an input is
    multiplied by `A`, then by `B`, and the result is added to what `W` makes of it.

    Attributes:
        base: `W`, which may have such a term itself.
        down: `A`, [rank, inputs].
        up: `B`, [outputs, rank].
        scale: `s`, a scalar.
    """

    base: Any
    down: NamedArray
    up: NamedArray
    scale: NamedArray

    @property
    def value(self) -> NamedArray:
        """The sum, with the axes and the dtype of `W`."""
        base = self.base.value
        with jax.default_matmul_precision("highest"):
            term = self.scale * pz.nn.contract(axes.RANK, self.up, self.down)
        wide = jnp.promote_types(base.dtype, term.dtype)
        return (base.astype(wide) + term.astype(wide)).astype(base.dtype).order_as(*base.named_shape)

    def treescope_color(self) -> str:
        """Such weights stand out in treescope, as other edits do."""
        return "#e0524d"


Weight: TypeAlias = pz.ParameterValue | LowRank  # pyright: ignore[reportGeneralTypeIssues]  # a decorator hides the class


def contract(over: str | Sequence[str], x: NamedArray, weight: Weight) -> NamedArray:
    """Multiplies by a weight.

    Args:
        over: Axes that are summed over.
        x: An array that has them.
        weight: A weight that has them.

    Returns:
        An array with all other axes of both; axes that both have are not multiplied out.
    """
    if not isinstance(weight, LowRank):
        return pz.nn.contract(over, x, weight.value)
    narrow = pz.nn.contract(over, x, weight.down.astype(x.dtype))
    term = pz.nn.contract(axes.RANK, narrow, weight.up.astype(x.dtype))
    return contract(over, x, weight.base) + weight.scale.astype(x.dtype) * term


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class LowRankLinear(pz.nn.Linear):
    """A linear layer whose weight has a term of low rank."""

    def __call__(self, in_array: NamedArray, /, **_: Any) -> NamedArray:
        """Maps an array with the input axes to one with the output axes."""
        return contract(self.in_axis_names, in_array, cast("LowRank", self.weights))

    def treescope_color(self) -> str:
        """See `LowRank.treescope_color`."""
        return "#e0524d"


def name_of(weight: Weight) -> str:
    """The canonical name of a weight."""
    return name_of(weight.base) if isinstance(weight, LowRank) else weight.label


def find_low_rank(body: pz.nn.Layer) -> dict[str, LowRank]:
    """The weights of a tree that have a term of low rank.

    Args:
        body: Model tree.

    Returns:
        Canonical name -> weight, in the order of the forward pass.
    """
    found: dict[str, LowRank] = {}

    def look(weight: Weight) -> Weight:
        if isinstance(weight, LowRank):
            found[name_of(weight)] = weight
        return weight

    exchange_weights(body, look)
    return found


def exchange_weights(node: Any, change: Callable[[Weight], Weight]) -> Any:
    """Exchanges weights of a tree.

    Args:
        node: Model tree, or a part of one; it is left as it was.
        change: Weight -> what shall stand there; weights that are to stay are returned as they are.

    Returns:
        A tree that shares everything else with `node`.
    """
    if isinstance(node, pz.ParameterValue | LowRank):
        return change(node)
    if isinstance(node, list | tuple):
        children = [exchange_weights(child, change) for child in node]
        same = all(new is old for new, old in zip(children, node, strict=True))
        return node if same else type(node)(children)
    if isinstance(node, Tap) or not isinstance(node, pz.nn.Layer):
        return node
    old = {field.name: getattr(node, field.name) for field in dataclasses.fields(cast("Any", node))}
    new = {name: exchange_weights(child, change) for name, child in old.items()}
    if all(new[name] is child for name, child in old.items()):
        return node
    if isinstance(node, pz.nn.Linear):
        return (LowRankLinear if isinstance(new["weights"], LowRank) else pz.nn.Linear)(**new)
    return dataclasses.replace(cast("Any", node), **new)


def align_low_rank(body: pz.nn.Layer) -> pz.nn.Layer:
    """Gives all blocks terms of low rank at the same weights, so that the structure does not say which have one.

    Args:
        body: Model tree.

    Returns:
        A tree that computes the same: where a block lacks a term that others have, it gets one of zeros. Weights whose
        terms differ in rank between the blocks, or that have several, stay as they are.
    """
    alike: dict[str, LowRank | None] = {}
    for name, weight in find_low_rank(body).items():
        kind = _leaf(name)
        first = alike.setdefault(kind, weight)
        if first is not None and (isinstance(weight.base, LowRank) or _rank(weight) != _rank(first)):
            alike[kind] = None
    neutral: dict[str, LowRank] = {}

    def fill(weight: Weight) -> Weight:
        kind = _leaf(name_of(weight))
        example = alike.get(kind)
        if example is None or isinstance(weight, LowRank):
            return weight
        if kind not in neutral:
            neutral[kind] = jax.tree.map(jnp.zeros_like, dataclasses.replace(example, base=None))
        return dataclasses.replace(neutral[kind], base=weight)

    return exchange_weights(body, fill) if alike else body


def _rank(weight: LowRank) -> int:
    return weight.down.named_shape[axes.RANK]


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]

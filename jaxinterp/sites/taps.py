"""Taps: the identity layers that every model tree carries, where edits and reads attach.

A tap stands at one site of one block and holds the edits made there, in order. Without edits it returns its
input untouched, so it changes no bit of the logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import jax
from penzai import pz

Address = tuple[str, int | None]
"""(site, layer); the layer is `None` for the sites that stand once in a model."""


@pz.pytree_dataclass
class Tap(pz.nn.Layer):
    """An identity layer with an address, and the edits that were attached to it.

    Attributes:
        site: Name of the site, a key of `jaxinterp.axes.SITES`.
        layer: Block index, `None` for sites that stand once in the model.
        edits: Layers applied in order to the array that passes.
    """

    site: str = dataclasses.field(metadata={"pytree_node": False})
    layer: int | None = dataclasses.field(default=None, metadata={"pytree_node": False})
    edits: tuple[pz.nn.Layer, ...] = ()

    def __call__(self, value: Any, /, **side_inputs: Any) -> Any:
        """Returns `value` with every edit applied to it."""
        for edit in self.edits:
            value = edit(value, **side_inputs)
        return value

    @property
    def address(self) -> Address:
        """Where the tap stands."""
        return self.site, self.layer

    def treescope_color(self) -> str:
        """Edited taps stand out in treescope."""
        return "#e0524d" if self.edits else "#d8d8d8"


def _is_tap(node: Any) -> TypeGuard[Tap]:
    return isinstance(node, Tap)


def find_taps(body: pz.nn.Layer) -> dict[Address, Tap]:
    """All taps of a tree.

    Args:
        body: Model tree.

    Returns:
        Address -> tap, in the order of the forward pass.
    """
    leaves = jax.tree_util.tree_leaves(body, is_leaf=_is_tap)
    return {leaf.address: leaf for leaf in leaves if _is_tap(leaf)}


def replace_edits(body: pz.nn.Layer, edits: Mapping[Address, tuple[pz.nn.Layer, ...]]) -> pz.nn.Layer:
    """Exchanges the edits of some taps.

    Args:
        body: Model tree; it is left as it was.
        edits: Address -> the edits its tap shall hold.

    Returns:
        A tree that shares everything else with `body`.
    """

    def exchange(leaf: Any) -> Any:
        known = _is_tap(leaf) and leaf.address in edits
        return dataclasses.replace(leaf, edits=edits[leaf.address]) if known else leaf

    return jax.tree_util.tree_map(exchange, body, is_leaf=_is_tap)


def attach(body: pz.nn.Layer, layers: Iterable[tuple[Address, pz.nn.Layer]]) -> pz.nn.Layer:
    """Appends edits to taps.

    Args:
        body: Model tree; it is left as it was.
        layers: (address, edit to append there) pairs.

    Returns:
        The edited tree.
    """
    taps = find_taps(body)
    edits: dict[Address, tuple[pz.nn.Layer, ...]] = {}
    for address, layer in layers:
        edits[address] = (*edits.get(address, taps[address].edits), layer)
    return replace_edits(body, edits)


def edited_taps(body: pz.nn.Layer) -> dict[Address, Tap]:
    """The taps that hold edits, in the order of the forward pass."""
    return {address: tap for address, tap in find_taps(body).items() if tap.edits}


def align_edits(body: pz.nn.Layer, neutral: Callable[[pz.nn.Layer], pz.nn.Layer | None]) -> pz.nn.Layer:
    """Gives all layers of a site the same edits, so that the tree's structure does not say which one is edited.

    A compiled program is keyed by the structure of its arguments. If only layer 17 held an ablation, moving it
    to layer 3 would compile again; with a neutral ablation in the other layers it is only other numbers.

    Args:
        body: Model tree.
        neutral: Edit -> the same edit with numbers that change nothing, or `None` if it has no cheap one; sites
            with such an edit stay as they are.

    Returns:
        A tree that computes the same.
    """
    taps = find_taps(body)
    edited: dict[str, list[Tap]] = {}
    for tap in taps.values():
        if tap.edits:
            edited.setdefault(tap.site, []).append(tap)
    filled: dict[Address, tuple[pz.nn.Layer, ...]] = {}
    for site, with_edits in edited.items():
        kinds = {tuple(type(edit) for edit in tap.edits) for tap in with_edits}
        fillers = [neutral(edit) for edit in with_edits[0].edits]
        if len(kinds) == 1 and all(filler is not None for filler in fillers):
            filler = tuple(edit for edit in fillers if edit is not None)
            filled |= {address: filler for address, tap in taps.items() if address[0] == site and not tap.edits}
    return replace_edits(body, filled) if filled else body


def describe(addresses: Iterable[Address]) -> str:
    """Says in words which sites there are and on which layers.

    Examples:
        >>> describe([("embed", None), ("z", 0), ("z", 1), ("z", 2), ("k", 1)])
        'embed; z (layers 0-2); k (layer 1)'
    """
    layers: dict[str, list[int]] = {}
    for site, layer in addresses:
        layers.setdefault(site, [])
        if layer is not None:
            layers[site].append(layer)
    return "; ".join(site + _layer_range(found) for site, found in layers.items())


def _layer_range(layers: list[int]) -> str:
    if not layers:
        return ""
    if len(layers) == 1:
        return f" (layer {layers[0]})"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f" (layers {layers[0]}-{layers[-1]})"
    return f" (layers {', '.join(map(str, layers))})"

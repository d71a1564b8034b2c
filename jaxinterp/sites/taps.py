"""Taps: the identity layers that every model tree carries, where edits and reads attach.

A tap stands at one site of one block and holds the edits made there, in order. Without edits it returns its
input untouched, so it changes no bit of the logits.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

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


_Path = tuple[str | int, ...]

_known: dict[int, tuple[weakref.ref[Any], dict[Address, tuple[_Path, Tap]]]] = {}
"""Where the taps of the trees in use are, so that a thousand edits of one model walk through it once."""


def _locate(body: pz.nn.Layer) -> dict[Address, tuple[_Path, Tap]]:
    """Address -> (attribute names and indices that lead there, tap), in the order of the forward pass."""
    known = _known.get(id(body))
    if known is not None and known[0]() is body:
        return known[1]
    return _remember(body, {tap.address: (path, tap) for path, tap in _walk(body, ())})


def _remember(body: pz.nn.Layer, found: dict[Address, tuple[_Path, Tap]]) -> dict[Address, tuple[_Path, Tap]]:
    key = id(body)
    _known[key] = (weakref.ref(body, lambda _: _known.pop(key, None)), found)
    return found


def _walk(node: Any, path: _Path) -> Iterator[tuple[_Path, Tap]]:
    if isinstance(node, Tap):
        yield path, node
    elif isinstance(node, list | tuple):
        for number, child in enumerate(node):
            yield from _walk(child, (*path, number))
    elif isinstance(node, pz.nn.Layer):
        for field in dataclasses.fields(cast("Any", node)):
            yield from _walk(getattr(node, field.name), (*path, field.name))


def find_taps(body: pz.nn.Layer) -> dict[Address, Tap]:
    """All taps of a tree.

    Args:
        body: Model tree.

    Returns:
        Address -> tap, in the order of the forward pass.
    """
    return {address: tap for address, (_, tap) in _locate(body).items()}


def replace_edits(body: pz.nn.Layer, edits: Mapping[Address, tuple[pz.nn.Layer, ...]]) -> pz.nn.Layer:
    """Exchanges the edits of some taps.

    Args:
        body: Model tree; it is left as it was.
        edits: Address -> the edits its tap shall hold; addresses that the tree does not have are left out.

    Returns:
        A tree that shares everything else with `body`: only the nodes on the way to those taps are new.
    """
    found = _locate(body)
    new = {
        found[address][0]: dataclasses.replace(found[address][1], edits=layers)
        for address, layers in edits.items()
        if address in found
    }
    if not new:
        return body
    result = _rebuild(body, new)
    _remember(result, found | {tap.address: (path, tap) for path, tap in new.items()})
    return result


def _rebuild(node: Any, new: Mapping[_Path, Tap]) -> Any:
    """The node with taps exchanged, by their path from it."""
    if () in new:
        return new[()]
    below: dict[str | int, dict[_Path, Tap]] = {}
    for path, tap in new.items():
        below.setdefault(path[0], {})[path[1:]] = tap
    if isinstance(node, list | tuple):
        return type(node)(
            _rebuild(child, below[number]) if number in below else child for number, child in enumerate(node)
        )
    return dataclasses.replace(
        node, **{str(name): _rebuild(getattr(node, str(name)), part) for name, part in below.items()}
    )


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

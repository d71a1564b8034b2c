"""Layers that remember: what a tap saw, and the keys and values of earlier tokens.

Both are attached to taps like any edit and keep what they saw in Penzai state variables, so that a forward pass
stays a pure function of (tree, state, tokens).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address, attach, find_taps

NamedArray = pz.nx.NamedArray


@pz.pytree_dataclass
class Save(pz.nn.Layer):
    """Keeps the array that passes.

    Attributes:
        kept: Where it is kept.
        indices: (axis, indices) to keep only a part, or `None`.
    """

    kept: pz.StateVariable
    indices: tuple[str, tuple[int, ...]] | None = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: NamedArray, /, **_: Any) -> NamedArray:
        """Returns `value` as it is."""
        if self.indices is None:
            self.kept.value = value
        else:
            axis, chosen = self.indices
            self.kept.value = value.untag(axis)[jnp.asarray(chosen)].tag(axis)
        return value


@pz.pytree_dataclass
class Remember(pz.nn.Layer):
    """Appends the keys (or values) of new tokens to those of earlier ones.

    Attributes:
        memory: [batch, seq, kv_head, projection] with as many slots as the whole text will have.
        prompt: Whether this is the pass over the prompt, which needs no earlier ones.
    """

    memory: pz.StateVariable
    prompt: bool = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: NamedArray, /, *, start: jax.Array | int, **_: Any) -> NamedArray:
        """Returns the keys of all slots, or only the new ones in the pass over the prompt."""
        order = tuple(self.memory.value.named_shape)
        old, new = self.memory.value.data_array, value.unwrap(*order).astype(self.memory.value.dtype)
        place = [start if name == axes.SEQ else 0 for name in order]
        updated = pz.nx.wrap(jax.lax.dynamic_update_slice(old, new, place), *order)
        self.memory.value = updated
        return value if self.prompt else updated


def capture(body: pz.nn.Layer, sites: Sequence[Site]) -> pz.nn.Layer:
    """Attaches a `Save` to every chosen tap.

    Args:
        body: Model tree.
        sites: Which taps, and which heads or units there.

    Returns:
        A tree whose state variables are labelled with the taps' addresses.
    """
    wanted: dict[Address, Site] = {}
    for site in sites:
        for address in site.addresses(body):
            if address in wanted and wanted[address] != site:
                raise ValueError(f"{address[0]} of layer {address[1]} is asked for twice; join the two selectors")
            wanted[address] = site
    saves = []
    for address, site in wanted.items():
        indices = None if site.axis is None else (site.axis, site.indices)
        saves.append((address, Save(pz.StateVariable(None, label=address), indices)))
    return attach(body, saves)


def remember(body: pz.nn.Layer, empty: NamedArray, prompt: bool) -> pz.nn.Layer:
    """Attaches a `Remember` to the keys and values of every block.

    Args:
        body: Model tree.
        empty: Zeros [batch, seq, kv_head, projection], one slot for each token the text will have.
        prompt: Whether the tree is for the pass over the prompt.

    Returns:
        A tree with state variables labelled by the taps' addresses.
    """
    taps = [address for address in find_taps(body) if address[0] in ("k", "v")]
    layers = [(address, Remember(pz.StateVariable(empty, label=("memory", *address)), prompt)) for address in taps]
    return attach(body, layers)

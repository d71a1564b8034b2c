"""What all edits share: where they act, and how they are attached to a model."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import Positions
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address, attach

NamedArray = pz.nx.NamedArray


@pz.pytree_dataclass
class Edit(pz.nn.Layer, abc.ABC):
    """A layer that changes the array passing a tap, at chosen tokens, heads or units.

    Attributes:
        selected: Boolean, over one axis of the site or a scalar: what is edited there.
        at: At which tokens.
    """

    selected: NamedArray
    at: Positions

    @abc.abstractmethod
    def edited(self, value: NamedArray, **side_inputs: Any) -> NamedArray:
        """The new array, were all of it edited."""

    def __call__(self, value: NamedArray, /, **side_inputs: Any) -> NamedArray:
        """Returns `value` with the chosen part edited."""
        seen = {name: side_inputs[name] for name in ("tokens", "positions", "prompt_length")}
        chosen = self.selected & self.at.choose(**seen)
        new = self.edited(value, **side_inputs).astype(value.dtype)
        return pz.nx.nmap(jnp.where)(chosen, new, value).order_as(*value.named_shape)

    def neutral(self) -> Self:
        """The same edit, selecting nothing."""
        nothing = pz.nx.nmap(jnp.zeros_like)(self.selected)
        return dataclasses.replace(self, selected=nothing)

    def treescope_color(self) -> str:
        """Edits stand out in treescope."""
        return "#e0524d"


@dataclasses.dataclass(frozen=True)
class Place:
    """One tap, and what of it is selected.

    Attributes:
        address: The tap.
        site: A selector that chose it.
        selected: Boolean array over the selector's axis, or a scalar.
    """

    address: Address
    site: Site
    selected: NamedArray


def find_places(model: LanguageModel, sites: Sequence[Site]) -> list[Place]:
    """Resolves selectors on a model; selectors of the same tap are joined.

    Args:
        model: The model.
        sites: Selectors.

    Returns:
        One place for each tap.

    Raises:
        ValueError: No selector was given, a site or layer does not exist, or an index is out of range.
    """
    if not sites:
        raise ValueError("no site was given; pass one such as ji.resid_post(3) or ji.head(17, 10)")
    chosen: dict[tuple[Address, str | None], tuple[Site, set[int]]] = {}
    for site in sites:
        for address in site.addresses(model.body):
            _, indices = chosen.setdefault((address, site.axis), (site, set()))
            indices.update(site.indices)
    places = []
    for (address, axis), (site, indices) in chosen.items():
        if axis is None:
            places.append(Place(address, site, pz.nx.wrap(jnp.asarray(True))))
            continue
        size = model.architecture.axis_sizes()[axis]
        outside = sorted(index for index in indices if not 0 <= index < size)
        if outside:
            raise ValueError(f"{address[0]} of layer {address[1]} has {axis} 0..{size - 1}; there is no {outside[0]}")
        selected = np.zeros(size, bool)
        selected[list(indices)] = True
        places.append(Place(address, site, pz.nx.wrap(jnp.asarray(selected), axis)))
    return places


def attach_edits(model: LanguageModel, places: Sequence[Place], make: Callable[[Place], Edit]) -> LanguageModel:
    """Appends an edit at each place.

    Args:
        model: The model; it stays as it is.
        places: Where.
        make: Place -> edit.

    Returns:
        The edited model.
    """
    return model.with_body(attach(model.body, [(place.address, make(place)) for place in places]))


def site_axes(place: Place) -> tuple[str, ...]:
    """Axes of the array at a place, batch and sequence aside."""
    return tuple(name for name in axes.SITES[place.address[0]][0] if name not in (axes.BATCH, axes.SEQ))


def named_over(model: LanguageModel, place: Place, array: Any, what: str) -> NamedArray:
    """Names the axes of a user's array that shall broadcast over the tokens of a place.

    Args:
        model: The model.
        place: Where it will be used.
        array: A named array, or a plain one over the last axes of the site, or [batch, ...] of those.
        what: What the array is called in the error sentence.

    Returns:
        The named array.

    Raises:
        ValueError: Its shape fits no axes of the site.
    """
    if isinstance(array, NamedArray):
        return array
    plain = jnp.asarray(array)
    sizes = model.architecture.axis_sizes()
    names = site_axes(place)
    endings = [names[start:] for start in range(len(names), -1, -1)]
    expected = [tuple(sizes.get(name, -1) for name in ending) for ending in endings]
    for ending, shape in zip(endings, expected, strict=True):
        if plain.shape == shape:
            return pz.nx.wrap(plain, *ending)
    for ending, shape in zip(endings, expected, strict=True):
        if ending and plain.shape[1:] == shape:
            return pz.nx.wrap(plain, axes.BATCH, *ending)
    wanted = ", ".join(f"{name} {sizes[name]}" for name in names if name in sizes)
    raise ValueError(f"{what} has shape {list(plain.shape)}; at {place.address[0]} it must be over ({wanted})")

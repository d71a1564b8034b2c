"""Interchange: activations of another run put in place of the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.interventions.edit import Edit, NamedArray, Place, attach_edits, find_places
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import Mask, Positions, everywhere
from jaxinterp.sites.selectors import Site

_POSITION, _KV_POSITION, _TARGET = "position", "kv_position", "target"


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class Patch(Edit):
    """Replaces the array at a token by that of a token of another run.

    Attributes:
        source: The other run's array by position, [batch, position, ...].
        pairing: Which source position goes to each target position, int [batch, target]; -1 for none.
    """

    source: NamedArray
    pairing: NamedArray

    @property
    def acts(self) -> Positions:
        """Those that have a source."""
        return self.at & Mask((self.pairing >= 0).untag(_TARGET).tag("position"))

    def edited(self, value: NamedArray, *, positions: NamedArray, kv_positions: NamedArray, **_: Any) -> NamedArray:
        """See `Edit.edited`."""
        origin = pz.nx.nmap(_look_up)(self.pairing.untag(_TARGET), positions)
        new = pz.nx.nmap(_take)(self.source.untag(_POSITION), origin)
        if _KV_POSITION in new.named_shape:
            new = pz.nx.nmap(_take_or_zero)(new.untag(_KV_POSITION), kv_positions)
        return pz.nx.nmap(jnp.where)(origin >= 0, new, value)


def _look_up(pairing: jax.Array, position: jax.Array) -> jax.Array:
    inside = (position >= 0) & (position < pairing.shape[0])
    return jnp.where(inside, pairing[jnp.clip(position, 0, pairing.shape[0] - 1)], -1)


def _take(row: jax.Array, position: jax.Array) -> jax.Array:
    return row[jnp.clip(position, 0, row.shape[0] - 1)]


def _take_or_zero(row: jax.Array, position: jax.Array) -> jax.Array:
    inside = (position >= 0) & (position < row.shape[0])
    return jnp.where(inside, _take(row, position), 0)


def read_source(place: Place, cache: Cache) -> NamedArray:
    """A cached array by position, with its axes named for a patch.

    Args:
        place: The tap that it was read at.
        cache: The other run.

    Returns:
        [batch, position, ...] (and kv_position for attention sites).
    """
    site, layer = place.address
    renamed = {axes.SEQ: _POSITION, axes.KV_SEQ: _KV_POSITION}
    names = [renamed.get(name, name) for name in axes.SITES[site][0]]
    return pz.nx.wrap(cache.by_position(site, layer), *names)


def patch(
    model: LanguageModel,
    site: Site,
    cache: Cache,
    at: Positions | None = None,
    positions: Sequence[tuple[int, int]] | None = None,
) -> LanguageModel:
    """Puts activations of another run in place of the model's own.

    Row `i` of a batch takes from row `i` of the cache.

    Args:
        model: The model; it stays as it is.
        site: Where, with heads or units if only those are exchanged.
        cache: The other run, which has read this site.
        at: At which tokens; by default all.
        positions: (position in this text, position in the other) pairs, negative ones from the end; by default
            each token takes from the same position, and tokens beyond the other text's end keep their own.

    Returns:
        The patched model.

    Raises:
        ValueError: The site does not exist or was not read, or a position lies outside the text.
    """
    lengths = cache.mask.sum(axis=1)
    longest = cache.mask.shape[1]
    if positions is None:
        pairing = np.where(np.arange(longest) < lengths[:, None], np.arange(longest), -1)
    else:
        pairing = _pair(positions, lengths, longest)
    named = pz.nx.wrap(jnp.asarray(pairing, jnp.int32), axes.BATCH, _TARGET)

    def make(place: Place) -> Edit:
        if place.address not in cache:
            raise ValueError(f"the cache has no {place.address[0]} of layer {place.address[1]}; read it in `run`")
        return Patch(place.selected, at or everywhere(), read_source(place, cache), named)

    return attach_edits(model, find_places(model, [site]), make)


def _pair(positions: Sequence[tuple[int, int]], lengths: np.ndarray, longest: int) -> np.ndarray:
    rows = np.arange(len(lengths))
    width = max([longest, *(target + 1 for target, _ in positions)])
    pairing = np.full((len(lengths), width), -1)
    for target, source in positions:
        sources = source + lengths if source < 0 else np.full_like(lengths, source)
        targets = target + lengths if target < 0 else np.full_like(lengths, target)
        if (sources < 0).any() or (sources >= lengths).any() or (targets < 0).any():
            raise ValueError(f"position pair {(target, source)} lies outside a text of {lengths.min()} tokens")
        pairing[rows, targets] = sources
    return pairing

"""Ablation: zero, mean or resampled activations in place of the model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.interventions.edit import Edit, NamedArray, Place, attach_edits, find_places, site_axes
from jaxinterp.interventions.interchange import Interchange, read_source
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import Positions, everywhere
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address

Method = Literal["zero", "mean", "resample"]


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class Ablate(Edit):
    """Replaces what is selected by a constant.

    Attributes:
        value: Scalar zero, or the mean over axes of the site.
    """

    value: NamedArray

    def edited(self, value: NamedArray, **_: Any) -> NamedArray:
        """See `Edit.edited`."""
        return self.value.astype(value.dtype).broadcast_like(value)


def ablate(
    model: LanguageModel,
    *sites: Site,
    method: Method = "zero",
    cache: Cache | None = None,
    at: Positions | None = None,
    key: jax.Array | None = None,
) -> LanguageModel:
    """Takes heads, units or whole sites out of a model.

    Args:
        model: The model; it stays as it is.
        *sites: What to ablate, such as `ji.head(17, 10, 11)`, `ji.unit(3, 512)` or `ji.mlp_out(4)`.
        method: `"zero"`; `"mean"`, the mean over all tokens of the cache; or `"resample"`, the activation at the
            same position of another row of the cache, drawn with `key` so that no row keeps its own.
        cache: For mean and resample: a run that has read these sites.
        at: At which tokens; by default all.
        key: For resample: a typed key.

    Returns:
        The ablated model. Ablating other heads, units or layers compiles nothing new.

    Raises:
        ValueError: A site or index does not exist, or the method lacks its cache or key.
    """
    if method not in ("zero", "mean", "resample"):
        raise ValueError(f"there is no ablation method {method!r}; choose zero, mean or resample")
    places = find_places(model, sites)
    where = at or everywhere()
    if method == "zero":
        zero = pz.nx.wrap(jnp.zeros(()))
        return attach_edits(model, places, lambda place: Ablate(place.selected, where, zero))
    if cache is None:
        raise ValueError(f"{method} ablation needs a cache: run the model with sites={[str(s) for s in sites]}")
    missing = [place.address for place in places if place.address not in cache]
    if missing:
        raise ValueError(f"the cache lacks {missing[0][0]} of layer {missing[0][1]}; read it in `run`")
    if method == "mean":

        def with_mean(place: Place) -> Edit:
            mean = jnp.asarray(_mean(cache, place))
            return Ablate(place.selected, where, pz.nx.wrap(mean, *site_axes(place)))

        return attach_edits(model, places, with_mean)
    if key is None:
        raise ValueError("resample ablation needs a key, such as jax.random.key(0)")
    rows = _derangement(key, len(cache.tokens))
    lengths = cache.mask.sum(axis=1)
    columns = np.arange(cache.mask.shape[1])
    targets = pz.nx.wrap(jnp.asarray(np.broadcast_to(columns, cache.mask.shape), jnp.int32), axes.BATCH, "choice")

    def with_other_rows(place: Place) -> Edit:
        source = read_source(cache, place.address, np.minimum(columns, lengths[:, None] - 1))
        shuffled = source.untag(axes.BATCH)[rows].tag(axes.BATCH)
        return Interchange(place.selected, where, shuffled, targets, None, None)

    return attach_edits(model, places, with_other_rows)


def ablate_by_row(model: LanguageModel, rows: Sequence[Sequence[Site]], at: Positions | None = None) -> LanguageModel:
    """Takes other heads, units or sites out of each row of a batch: many random controls in one pass.

    Args:
        model: The model; it stays as it is.
        rows: For each row what is zeroed there; nothing where there is no site.
        at: At which tokens; by default all.

    Returns:
        A model for batches of so many rows. Other heads or units compile nothing new.

    Raises:
        ValueError: There is nothing to ablate in any row, or a site or index does not exist.
    """
    numbers: dict[tuple[Site, ...], list[int]] = {}
    for row, sites in enumerate(rows):
        numbers.setdefault(tuple(sites), []).append(row)
    places: dict[tuple[Address, str | None], Place] = {}
    chosen: dict[tuple[Address, str | None], np.ndarray] = {}
    for sites, own in numbers.items():
        for place in find_places(model, sites) if sites else ():
            where = (place.address, place.site.axis)
            selected = np.asarray(place.selected.data_array)
            places.setdefault(where, place)
            chosen.setdefault(where, np.zeros((len(rows), *selected.shape), bool))[own] = selected
    if not places:
        raise ValueError("no site was given for any row; pass some such as [[ji.head(4, 5)], [ji.head(3, 4)]]")
    joined = [
        dataclasses.replace(
            place, selected=pz.nx.wrap(jnp.asarray(chosen[where]), axes.BATCH, *place.selected.named_shape)
        )
        for where, place in places.items()
    ]
    zero = pz.nx.wrap(jnp.zeros(()))
    return attach_edits(model, joined, lambda place: Ablate(place.selected, at or everywhere(), zero))


def _mean(cache: Cache, place: Place) -> np.ndarray:
    site, layer = place.address
    if axes.KV_SEQ in axes.SITES[site][0]:
        raise ValueError(f"{site} has no mean over texts of different lengths; ablate z or head_out instead")
    return cache.mean(site, layer)


def _derangement(key: jax.Array, rows: int) -> np.ndarray:
    """A random cyclic order of the rows, so that none stays where it was."""
    if rows < 2:
        raise ValueError("resample ablation needs a cache of at least two rows")
    order = np.asarray(jax.random.permutation(key, rows))
    moved = np.empty(rows, np.int64)
    moved[order] = np.roll(order, 1)
    return moved

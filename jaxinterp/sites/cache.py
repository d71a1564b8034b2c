"""What a run read: arrays by site and layer, with the tokens they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.sites.taps import Address, describe


@dataclasses.dataclass(frozen=True)
class Cache(Mapping[Address, np.ndarray]):
    """Activations of a run, `cache[site, layer]`.

    Rows are padded on the left, so the last column is every text's last token.

    Attributes:
        arrays: Address -> array with the axes of its site.
        tokens: Token ids, int [batch, seq].
        mask: Which of them are tokens rather than padding, boolean [batch, seq].
    """

    arrays: Mapping[Address, np.ndarray]
    tokens: np.ndarray
    mask: np.ndarray
    _by_position: dict[Address, jax.Array] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, address: Address | str) -> np.ndarray:
        key = (address, None) if isinstance(address, str) else address
        if key not in self.arrays:
            raise KeyError(f"{key} was not read; the cache holds {describe(self.arrays)}")
        return self.arrays[key]

    def __iter__(self) -> Iterator[Address]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def named(self, site: str, layer: int | None = None) -> pz.nx.NamedArray:
        """One array with its axis names."""
        return pz.nx.wrap(jnp.asarray(self[site, layer]), *axes.SITES[site][0])

    def layers(self, site: str) -> list[int]:
        """The layers at which a site was read."""
        return [layer for name, layer in self.arrays if name == site and layer is not None]

    def stack(self, site: str) -> np.ndarray:
        """All layers of a site, [layer, ...], in the order of `layers(site)`."""
        return np.stack([self[site, layer] for layer in self.layers(site)])

    def mean(self, site: str, layer: int | None = None) -> np.ndarray:
        """Mean over all tokens of all rows, padding left out; the site's axes without batch and seq."""
        return self[site, layer][self.mask].mean(axis=0)

    def by_position(self, site: str, layer: int | None = None) -> jax.Array:
        """One array with every row moved left by its padding, so that column `p` is the row's token `p`.

        Returns:
            The site's axes; tokens beyond a row's end repeat its last one. For attention sites both the query
            and the key axis are moved, and keys beyond a row's end are 0. Asking again gives the same array, so
            that patches from one cache share it.
        """
        if (site, layer) not in self._by_position:
            self._by_position[site, layer] = jnp.asarray(self._move_left(site, layer))
        return self._by_position[site, layer]

    def _move_left(self, site: str, layer: int | None) -> np.ndarray:
        array = self[site, layer]
        names = axes.SITES[site][0]
        padding, columns = np.argmax(self.mask, axis=1), np.arange(self.mask.shape[1])
        moved = padding[:, None] + columns
        for axis in (axes.SEQ, axes.KV_SEQ):
            if axis in names:
                place = names.index(axis)
                shape = [1] * array.ndim
                shape[0], shape[place] = moved.shape
                column = moved.reshape(shape)
                array = np.take_along_axis(array, np.minimum(column, columns[-1]), axis=place)
                if axis == axes.KV_SEQ:
                    array = np.where(column <= columns[-1], array, 0)
        return array

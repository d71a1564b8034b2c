"""Interchange interventions: what another run has in a subspace, put in place of what this one has there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.interventions.edit import Edit, NamedArray, Place, attach_edits, find_places, site_axes
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import At, Positions, everywhere
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address

PositionPairs = Sequence[tuple[int, int]] | np.ndarray
"""(position in this text, position in the other) pairs; or int [batch, choice, 2], other ones in each row."""

_CHOICE, _POSITION, _KV_POSITION = "choice", "position", "kv_position"
_NOWHERE = -(2**30)


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class Interchange(Edit):
    """Moves the array at some tokens to that of another run, within a subspace.

    With rows `v_i` of `basis` and `m` = `weights`, `h` becomes `h + P (h' - h)` where `P = sum_i m_i^2 v_i v_i^T`.

    Attributes:
        source: `h'`, the other run's array, [batch, choice, ...].
        targets: Which token each of them goes to, int [batch, choice]; negative ones count from the prompt's end.
        basis: Orthonormal rows, [component, ...last axis of the site]; `None` for the whole space.
        weights: `m`, [component]; `None` for ones.
    """

    source: NamedArray
    targets: NamedArray
    basis: NamedArray | None  # pyright: ignore[reportGeneralTypeIssues]  # a class decorator hides the class
    weights: NamedArray | None  # pyright: ignore[reportGeneralTypeIssues]  # as above

    def edited(
        self,
        value: NamedArray,
        *,
        positions: NamedArray,
        prompt_length: NamedArray,
        kv_positions: NamedArray,
        **_: Any,
    ) -> NamedArray:
        """See `Edit.edited`."""
        wanted = pz.nx.nmap(jnp.where)(self.targets < 0, self.targets + prompt_length, self.targets)
        origin = pz.nx.nmap(_find)(wanted.untag(_CHOICE), positions)
        new = pz.nx.nmap(_take)(self.source.untag(_CHOICE), origin)
        if _KV_POSITION in new.named_shape:
            new = pz.nx.nmap(_take_or_zero)(new.untag(_KV_POSITION), kv_positions)
        if self.basis is not None:
            new = value + self._inside(new.astype(jnp.float32) - value.astype(jnp.float32), self.basis)
        return pz.nx.nmap(jnp.where)(origin >= 0, new, value)

    def _inside(self, difference: NamedArray, basis: NamedArray) -> NamedArray:
        (axis,) = (str(name) for name in basis.named_shape if name != axes.COMPONENT)
        amounts = pz.nn.contract(axis, difference, basis)
        if self.weights is not None:
            amounts = amounts * self.weights * self.weights
        return pz.nn.contract(axes.COMPONENT, amounts, basis)


def _find(wanted: jax.Array, position: jax.Array) -> jax.Array:
    match = (wanted == position) & (position >= 0)
    return jnp.where(match.any(), jnp.argmax(match), -1)


def _take(row: jax.Array, index: jax.Array) -> jax.Array:
    return row[jnp.maximum(index, 0)]


def _take_or_zero(row: jax.Array, position: jax.Array) -> jax.Array:
    inside = (position >= 0) & (position < row.shape[0])
    return jnp.where(inside, row[jnp.clip(position, 0, row.shape[0] - 1)], 0)


def interchange(
    model: LanguageModel,
    site: Site,
    cache: Cache,
    basis: Any = None,
    at: Positions | None = None,
    positions: PositionPairs | None = None,
    *,
    weights: Any = None,
    active: Collection[int] | None = None,
) -> LanguageModel:
    r"""Puts what another run has in a subspace in place of what the model has there.

    The array `h` at a token becomes $h - P h + P h'$, where `h'` is that of the other run and $P$ the orthogonal
    projector on the span of `basis`. With `weights` $m$, $P = \sum_i m_i^2 v_i v_i^T$ over the rows $v_i$ of `basis`.
    Row `i` of a batch takes from row `i` of the cache. The numbers are arrays: another layer, source, basis of the same
    rank or set of weights compiles nothing new.

    Several layers of one site take each its own cached values, so writing at every block up to `l` is::

        upto = ji.interchange(lm, ji.resid_post(*range(l + 1)), other, positions=[(3, 7)])

    and holding other tokens at the values of the unedited run, in all blocks, is a second edit of the same taps::

        held = ji.interchange(upto, ji.resid_post(), own, positions=[(9, 9)])

    Edits of one tap act in the order in which they were made, and act on each other only where their tokens meet. In a
    sweep over `l`, say `ji.interchange(lm, ji.resid_post(), other, positions=[(3, 7)], active=range(l + 1))` instead:
    all `l` are then one compiled program, whatever else is held.

    Args:
        model: The model; it stays as it is.
        site: Where, with heads or units if only those are exchanged; a subspace lies in the last axis of the site.
        cache: The other run, which has read this site at these layers.
        basis: [component, embedding] (or another last axis), or one direction [embedding]; or a mapping layer -> basis.
            Without `weights` any independent rows; `None` for the whole space.
        at: At which tokens of this text besides, in terms of `ji.at` and the like; by default all that `positions`
            names.
        positions: (position in this text, position in the other) pairs, or int [batch, choice, 2] for other pairs in
            each row; negative ones count from the end of their own text. By default each token takes from the same
            position, and tokens beyond the other text's end keep their own.
        weights: `m`, [component] in [0, 1] for orthonormal rows; or a mapping layer -> weights. By default ones.
        active: Of the site's layers, those at which the edit acts; at the others it stands without effect. By default
            all.

    Returns:
        The edited model.

    Raises:
        ValueError: The site does not exist or was not read, a position lies outside the other text, or the basis has
            the wrong width, dependent rows, or rows that `weights` cannot weigh since they are not orthonormal.

    References:
        Geiger et al., 2021, "Causal abstractions of neural networks", arXiv:2106.02997.
    """
    if weights is not None and basis is None:
        raise ValueError("weights weigh the rows of a basis; pass basis too")
    lengths = cache.mask.sum(axis=1)
    if positions is None:
        columns, sources = np.arange(cache.mask.shape[1]), None
        targets = np.where(columns < lengths[:, None], columns, _NOWHERE)
    else:
        pairs = position_table(positions, len(lengths))
        targets, sources = pairs[..., 0], resolve_positions(pairs[..., 1], lengths)
    named_targets = pz.nx.wrap(jnp.asarray(targets, jnp.int32), axes.BATCH, _CHOICE)
    where = everywhere() if positions is None else At(named_targets)
    where = where if at is None else where & at

    def make(place: Place) -> Edit:
        site_name, layer = place.address
        acts = active is None or layer in active
        if acts and place.address not in cache:
            raise ValueError(f"the cache has no {site_name} of layer {layer}; read it in `run`")
        origin = place.address if acts else _stand_in(cache, site_name)
        axis = site_axes(place)[-1] if site_axes(place) else ""
        rows, amounts = (_of_layer(numbers, layer if acts else None) for numbers in (basis, weights))
        named_basis = named_weights = None
        if rows is not None:
            width = model.architecture.axis_sizes().get(axis)
            kept = _orthonormal(rows, width, site_name, weighted=amounts is not None)
            named_basis = pz.nx.wrap(jnp.asarray(kept, jnp.float32), axes.COMPONENT, axis)
            if amounts is not None:
                if jnp.shape(amounts) != kept.shape[:1]:
                    raise ValueError(f"weights have shape {list(jnp.shape(amounts))}; the basis has {len(kept)} rows")
                named_weights = pz.nx.wrap(jnp.asarray(amounts, jnp.float32), axes.COMPONENT)
        source = read_source(cache, origin, sources)
        edit = Interchange(place.selected, where, source, named_targets, named_basis, named_weights)
        return edit if acts else edit.neutral()

    return attach_edits(model, find_places(model, [site]), make)


def position_table(positions: PositionPairs, rows: int) -> np.ndarray:
    """Position pairs of every row.

    Args:
        positions: Pairs for all rows, or int [batch, choice, 2].
        rows: Number of rows.

    Returns:
        Int [batch, choice, 2].

    Raises:
        ValueError: They are no pairs, or not of so many rows.
    """
    table = np.asarray(positions)
    if table.ndim == 2:
        table = np.broadcast_to(table, (rows, *table.shape))
    if (
        table.ndim != 3
        or table.shape[0] != rows
        or table.shape[2] != 2
        or not table.size
        or table.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"positions have shape {list(np.shape(positions))}; pass (position in this text, position in the other) "
            f"pairs, or whole numbers [{rows}, choice, 2]"
        )
    return table


def resolve_positions(positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Counts positions from the start of each text.

    Args:
        positions: Int [batch, choice]; negative ones count from the end.
        lengths: Tokens of each text, int [batch].

    Returns:
        Int [batch, choice], not negative.

    Raises:
        ValueError: One lies outside its text.

    >>> resolve_positions(np.array([[0, -1], [0, -1]]), np.array([5, 3])).tolist()
    [[0, 4], [0, 2]]
    """
    resolved = np.where(positions < 0, positions + lengths[:, None], positions)
    outside = np.argwhere((resolved < 0) | (resolved >= lengths[:, None]))
    if len(outside):
        row, choice = outside[0]
        raise ValueError(f"position {positions[row, choice]} lies outside text {row}, which has {lengths[row]} tokens")
    return resolved


def read_source(cache: Cache, address: Address, sources: np.ndarray | None = None) -> NamedArray:
    """What a cache holds of a site at some tokens.

    Args:
        cache: The run.
        address: The tap that it was read at.
        sources: Token indices in each text, int [batch, choice]; `None` for all, in order.

    Returns:
        [batch, choice, ...]. All tokens are the same array whenever they are asked for, so that edits share it.
    """
    names = axes.SITES[address[0]][0]
    kept = [_KV_POSITION if name == axes.KV_SEQ else name for name in names]
    named = pz.nx.wrap(cache.by_position(*address), *(_CHOICE if name == axes.SEQ else name for name in kept))
    if sources is None:
        return named
    array = np.moveaxis(np.asarray(cache.by_position(*address)), names.index(axes.SEQ), 1)
    chosen = jnp.asarray(array[np.arange(len(sources))[:, None], sources])
    return pz.nx.wrap(chosen, axes.BATCH, _CHOICE, *(name for name in kept if name not in (axes.BATCH, axes.SEQ)))


def _stand_in(cache: Cache, site: str) -> Address:
    """A layer whose numbers have the right shapes, for the layers at which nothing is exchanged."""
    for address in cache:
        if address[0] == site:
            return address
    raise ValueError(f"the cache has no {site}; read it in `run`")


def _of_layer(numbers: Any, layer: int | None) -> Any:
    if not isinstance(numbers, Mapping):
        return numbers
    chosen = next(iter(numbers), None) if layer is None else layer
    if chosen not in numbers:
        raise ValueError(f"there is no basis or weights for layer {layer}; there are for {sorted(numbers)}")
    return numbers[chosen]


def _orthonormal(basis: Any, width: int | None, site: str, *, weighted: bool) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(basis, np.float64))
    if rows.ndim != 2 or rows.shape[1] != width:
        needed = f"it needs rows of {width}" if width else "there is no axis for a basis to act on"
        raise ValueError(f"basis has shape {list(np.shape(basis))}; at {site} {needed}")
    if weighted:
        if np.abs(rows @ rows.T - np.eye(len(rows))).max() > 1e-3:
            raise ValueError("weights need orthonormal rows; this basis has others")
        return rows
    columns, triangle = np.linalg.qr(rows.T)
    if len(rows) > rows.shape[1] or np.abs(np.diag(triangle)).min() < 1e-10 * np.abs(triangle).max():
        raise ValueError("the rows of the basis are linearly dependent; remove the redundant ones")
    return columns.T

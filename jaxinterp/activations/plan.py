"""What a cell of a sweep changes: from which block on, from which token on, and with what numbers.

Compared with the unedited tree, part by part and by identity, an edited tree differs only in the taps that were
edited. Everything in front of the first of them, in depth and in the text, is what it was.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.groups import Leaves, Shared, by_structure
from jaxinterp.activations.stages import Texts, nameless_block, without_names
from jaxinterp.interventions.edit import Edit
from jaxinterp.models.blocks import Decoder
from jaxinterp.parallel.placement import fetch, mesh_of, restrict
from jaxinterp.sites.taps import Tap

_FEWEST_TEXTS = 64
"""Texts that are looked at together to find where edits act, be there ever so few; one takes next to no time."""


@dataclasses.dataclass(frozen=True)
class Base:
    """The unedited model, in stages.

    Attributes:
        body: Its tree.
        blocks: Its blocks without names.
        ends: The tree without blocks.
    """

    body: Decoder
    blocks: tuple[pz.nn.Layer, ...]
    ends: Decoder

    @classmethod
    def of(cls, body: Decoder) -> Base:
        """Takes a tree apart."""
        blocks = tuple(nameless_block(block) for block in body.blocks)
        return cls(body, blocks, dataclasses.replace(body, blocks=[]))

    @property
    def depth(self) -> int:
        """Number of blocks, and the number of the stage behind them."""
        return len(self.blocks)

    def on(self, device: Any) -> Base:
        """The same model on another device, or in one of the groups of its mesh."""
        move = restrict if isinstance(device, jax.sharding.Mesh) else jax.device_put
        blocks, ends = move((self.blocks, self.ends), device)
        return Base(self.body, blocks, ends)

    def of_rows(self, rows: np.ndarray) -> Base:
        """The same model for some of the texts; see `of_rows`."""
        return Base(self.body, tuple(of_rows(block, rows) for block in self.blocks), of_rows(self.ends, rows))


@dataclasses.dataclass(frozen=True)
class Route:
    """How a cell runs.

    Attributes:
        stage: First stage whose program it goes through: a block, or `depth` for the unembedding alone.
        entry: Edits that make its stream out of the unedited one in front of that stage; empty if it starts in the
            stage itself; `None` if it starts with an embedding of its own.
        edited: Stage -> the cell's own block there (or ends, at `depth`).
        edits: The edits that the unedited tree does not have, to find out where in the text they act; `None` if
            anything else differs.
    """

    stage: int
    entry: tuple[pz.nn.Layer, ...] | None
    edited: Mapping[int, pz.nn.Layer]
    edits: tuple[Edit, ...] | None

    def on(self, old: Base, new: Base) -> Route:
        """The same cell with the weights of the model's copy on another device, or in one of the groups of its mesh."""
        parts = [jax.tree_util.tree_leaves((base.blocks, base.ends)) for base in (old, new)]
        copies = {id(before): after for before, after in zip(*parts, strict=True)}
        group = mesh_of(parts[1])

        def move(leaf: Any) -> Any:
            found = copies.get(id(leaf), leaf)
            return found if group is None or found is not leaf else restrict(leaf, group)

        entry, edited = jax.tree_util.tree_map(move, (self.entry, dict(self.edited)))
        return dataclasses.replace(self, entry=entry, edited=edited)

    def of_rows(self, rows: np.ndarray) -> Route:
        """The same cell for some of the texts; see `of_rows`.

        A cell whose edits hold no numbers for single texts is returned as it is.
        """
        leaves, structure = self._flat
        if not any(_is_per_row(leaf) for leaf in leaves):
            return self
        entry, edited = jax.tree_util.tree_unflatten(structure, _take_all(leaves, rows))
        return dataclasses.replace(self, entry=entry, edited=edited)

    @functools.cached_property
    def _flat(self) -> tuple[list[Any], Any]:
        """Leaves and structure of its own trees, which are asked for anew with every few texts."""
        return jax.tree_util.tree_flatten((self.entry, dict(self.edited)), _is_named)


def find_route(base: Base, body: Decoder) -> Route:
    """Compares an edited tree with the unedited one.

    Args:
        base: The unedited model.
        body: The edited tree.

    Returns:
        Its route. An edit of the residual stream between two blocks becomes the entry, so that the block in front of
        it need not run.
    """
    old = base.body
    added: list[pz.nn.Layer] = []
    only_edits = True
    edited: dict[int, pz.nn.Layer] = {}
    here: dict[int, list[tuple[Tap, Tap]]] = {}
    parts = [(-1, (old.embedding, old.start), (body.embedding, body.start))]
    parts += [(layer, before, after) for layer, (before, after) in enumerate(zip(old.blocks, body.blocks, strict=True))]
    parts += [(base.depth, _end(old), _end(body))]
    for stage, before, after in parts:
        differences = list(_differences(before, after))
        for difference in differences:
            more = None if difference is None else _added(*difference)
            only_edits = only_edits and more is not None
            added.extend(more or ())
        if differences:
            here[stage] = [pair for pair in differences if pair is not None]
            if 0 <= stage < base.depth:
                edited[stage] = without_names(after, before, base.blocks[stage])
            else:
                edited[stage] = dataclasses.replace(body, blocks=[])
    acting = [edit for edit in added if isinstance(edit, Edit)]
    where = tuple(acting) if only_edits and len(acting) == len(added) else None
    if not edited:
        return Route(base.depth, (), {}, where)
    first = min(edited)
    if first == -1:
        rest = {stage: part for stage, part in edited.items() if stage != -1}
        return Route(0, None, {**rest, -1: edited[-1]}, where)
    entry = _entry(here.get(first, []), where is not None)
    if entry is None:
        return Route(first, (), edited, where)
    rest = {stage: part for stage, part in edited.items() if stage != first}
    return Route(first + entry[0], entry[1], rest, where)


def _end(body: Decoder) -> tuple[Any, ...]:
    return body.embedding, body.final, body.unembedding, body.logits


def _differences(old: Any, new: Any) -> Iterator[tuple[Tap, Tap] | None]:
    """Pairs of taps that differ; `None` for anything else that does."""
    if new is old:
        return
    if isinstance(old, Tap) and isinstance(new, Tap):
        yield old, new
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for before, after in zip(old, new, strict=True):
            yield from _differences(before, after)
    elif isinstance(old, pz.nn.Layer) and type(old) is type(new):
        for field in dataclasses.fields(cast("Any", old)):
            before, after = getattr(old, field.name), getattr(new, field.name)
            if field.metadata.get("pytree_node", True):
                yield from _differences(before, after)
            elif before != after:
                yield None
    else:
        yield None


def _added(old: Tap, new: Tap) -> tuple[pz.nn.Layer, ...] | None:
    """The edits behind those that the tap had before; `None` if those are no longer there."""
    kept = new.edits[: len(old.edits)]
    same = len(kept) == len(old.edits) and all(mine is theirs for mine, theirs in zip(kept, old.edits, strict=True))
    return new.edits[len(old.edits) :] if same else None


def _entry(taps: Sequence[tuple[Tap, Tap]], only_edits: bool) -> tuple[int, tuple[pz.nn.Layer, ...]] | None:
    """(0 in front of the block or 1 behind it, edits) if a block is edited only at that place."""
    if len(taps) != 1 or not only_edits:
        return None
    old, new = taps[0]
    if new.site == "resid_post":
        return 1, new.edits[len(old.edits) :]
    if new.site == "resid_pre" and not old.edits:
        return 0, new.edits
    return None


def first_columns(routes: Sequence[Route], texts: Texts) -> np.ndarray:
    """The first column of the padded texts at which each cell acts.

    Args:
        routes: Of the cells.
        texts: The texts.

    Returns:
        Int [cell]; the last column for a cell that acts nowhere.
    """
    batch, length = texts.tokens.shape
    columns = np.full(len(routes), length - 1)
    # Filled up with repeats, so that other numbers of texts and of ways to choose tokens compile nothing new.
    rows = np.minimum(np.arange(max(_FEWEST_TEXTS, _power_of_two(batch))), batch - 1)
    texts = texts.rows(jnp.asarray(rows))
    owners = [(number, edit.at) for number, route in enumerate(routes) for edit in route.edits or ()]
    for group in by_structure([of_rows(positions, rows) for _, positions in owners]):
        different: dict[tuple[bytes, ...], list[int]] = {}
        for place, leaves in enumerate(group.small):
            different.setdefault(tuple(fetch(leaf).tobytes() for leaf in leaves), []).append(place)
        places = list(different.values())
        chosen = [same[0] for same in places] + [0] * (_power_of_two(len(places)) - len(places))
        found = fetch(_first_chosen(group.shared, group.stack(chosen), texts))
        for same, column in zip(places, np.broadcast_to(found, len(chosen)), strict=False):
            for place in same:
                number = owners[group.members[place]][0]
                columns[number] = min(columns[number], int(column))
    columns[[number for number, route in enumerate(routes) if route.edits is None]] = 0
    return columns


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@jax.jit
def _first_chosen(shared: Shared, own: Leaves, texts: Texts) -> jax.Array:
    inputs = texts.side_inputs(0)
    seen = {name: inputs[name] for name in ("tokens", "positions", "prompt_length")}
    width = texts.tokens.shape[1]

    def one(leaves: Leaves) -> jax.Array:
        chosen = shared.joined(leaves).choose(**seen)
        row = chosen.broadcast_like(inputs["tokens"]).unwrap(axes.BATCH, axes.SEQ).any(axis=0)
        return jnp.where(row.any(), jnp.argmax(row), width - 1)

    return jax.vmap(one)(own) if any(leaf is not None for leaf in own) else one(own)


def of_rows(tree: Any, rows: np.ndarray) -> Any:
    """A tree whose edits hold the numbers of some texts only.

    Args:
        tree: Any tree.
        rows: Indices of texts.

    Returns:
        The tree; arrays without a batch axis are the same objects.
    """
    leaves, structure = jax.tree_util.tree_flatten(tree, _is_named)
    return jax.tree_util.tree_unflatten(structure, _take_all(leaves, rows))


def _take_all(leaves: Sequence[Any], rows: np.ndarray) -> list[Any]:
    return [_take(leaf, rows) if _is_per_row(leaf) else leaf for leaf in leaves]


def _take(leaf: Any, rows: np.ndarray) -> Any:
    """The numbers of some texts; on a CPU as NumPy arrays, because a sweep takes them for every cell."""
    names = tuple(leaf.named_shape)
    array, axis = leaf.unwrap(*names), names.index(axes.BATCH)
    if isinstance(array, np.ndarray) or array.sharding.device_set == {jax.devices("cpu")[0]}:
        sizes = collections.OrderedDict({**leaf.named_shape, axes.BATCH: len(rows)})
        return pz.nx.NamedArray(sizes, cast("jax.Array", np.take(np.asarray(array), rows, axis)))
    return pz.nx.wrap(jnp.take(array, jnp.asarray(rows), axis), *names)


def _is_named(node: Any) -> bool:
    return isinstance(node, pz.nx.NamedArray)


def _named_leaves(tree: Any) -> list[Any]:
    return jax.tree_util.tree_leaves(tree, is_leaf=_is_named)


def check_rows(tree: Any, batch: int) -> None:
    """Refuses edits with numbers for another number of texts.

    Args:
        tree: Any tree that may hold such edits.
        batch: Number of texts.

    Raises:
        ValueError: There are such edits.
    """
    for leaf in _named_leaves(tree):
        if _is_per_row(leaf) and leaf.named_shape[axes.BATCH] != batch:
            raise ValueError(
                f"an edit holds numbers for {leaf.named_shape[axes.BATCH]} texts, but there are {batch}; "
                "run it on the texts that its cache or indices were made of"
            )


def _is_per_row(leaf: Any) -> bool:
    return isinstance(leaf, pz.nx.NamedArray) and axes.BATCH in leaf.named_shape

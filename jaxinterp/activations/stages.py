"""A decoder as a row of stages, so that a forward pass can start at any block and at any token.

The stages are the ends (embedding and unembedding) and the blocks. Blocks lose their layer numbers here, so one
compiled program serves all blocks of a kind, however deep the model is. A program of this module advances some of the
cells of a sweep by one stage; their residual streams stand in one buffer, [cell, batch, seq, embedding], of which it
takes and puts back the cells it is told.

A cell that leaves the first tokens of every text alone has their residual streams, keys and values in common with the
unedited run. Then its buffer holds only the last columns, and the keys and values of the others are put in front.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any, cast

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.groups import Leaves, Shared
from jaxinterp.activations.metrics import Measure, apply_measure
from jaxinterp.activations.state import Save
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.low_rank import LowRank
from jaxinterp.sites.taps import Tap, attach

NamedArray = pz.nx.NamedArray
KeysAndValues = tuple[jax.Array, jax.Array]
"""Two arrays [batch, seq, kv_head, projection]."""

STREAM = (axes.BATCH, axes.SEQ, axes.EMBEDDING)
"""Axes of the residual stream."""

_KEYS = (axes.BATCH, axes.SEQ, axes.KV_HEAD, axes.PROJECTION)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens", "mask"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts that all cells have in common.

    Attributes:
        tokens: Token ids, int [batch, seq], padded on the left.
        mask: Which of them are tokens, boolean [batch, seq].
    """

    tokens: jax.Array
    mask: jax.Array

    def rows(self, indices: jax.Array) -> Texts:
        """Some of the texts, possibly repeated."""
        return Texts(self.tokens[indices], self.mask[indices])

    def side_inputs(self, start: int) -> dict[str, Any]:
        """What a forward pass needs from a column on."""
        return side_inputs(self.tokens[:, start:], self.mask, start=start)


_nameless: dict[int, tuple[weakref.ref[Any], pz.nn.Layer]] = {}
"""Blocks without names of the blocks in use, so that they are made once."""


def nameless_block(block: pz.nn.Layer) -> pz.nn.Layer:
    """A block whose taps and weights do not say which layer they belong to; see `without_names`."""
    key = id(block)
    known = _nameless.get(key)
    if known is not None and known[0]() is block:
        return known[1]
    made = without_names(block)
    _nameless[key] = (weakref.ref(block, lambda _: _nameless.pop(key, None)), made)
    return made


def without_names(node: Any, old: Any = None, done: Any = None) -> Any:
    """A tree whose taps and weights do not say which layer they belong to.

    Args:
        node: A block.
        old: Another block that it may share parts with.
        done: That block without names; parts in common are taken from it.

    Returns:
        The block; two blocks of a kind now have the same structure.
    """
    if old is not None and node is old:
        return done
    if isinstance(node, Tap):
        return dataclasses.replace(node, layer=None)
    if isinstance(node, pz.ParameterValue):
        return dataclasses.replace(node, label="", metadata={})
    if isinstance(node, list | tuple):
        alike = isinstance(old, list | tuple) and len(old) == len(node)
        pairs = list(zip(cast("Any", old), done, strict=True)) if alike else [(None, None)] * len(node)
        return type(node)(without_names(child, *pair) for child, pair in zip(node, pairs, strict=True))
    if isinstance(node, pz.nn.Layer | LowRank):
        alike = type(old) is type(node)
        children = {}
        for field in dataclasses.fields(cast("Any", node)):
            pair = (getattr(old, field.name), getattr(done, field.name)) if alike else (None, None)
            children[field.name] = without_names(getattr(node, field.name), *pair)
        return dataclasses.replace(cast("Any", node), **children)
    return node


@pz.pytree_dataclass
class _Prepend(pz.nn.Layer):
    """Puts the keys (or values) of earlier tokens in front of the new ones."""

    earlier: NamedArray

    def __call__(self, value: NamedArray, /, **_: Any) -> NamedArray:
        """Maps [batch, new, kv_head, projection] to [batch, all, kv_head, projection]."""
        names = (axes.BATCH, axes.KV_HEAD, axes.PROJECTION)
        both = [part.untag(axes.SEQ).order_as(*names) for part in (self.earlier, value)]
        return pz.nx.nmap(lambda old, new: jnp.concatenate([old, new]))(*both).tag(axes.SEQ)


def _of_rows(tree: Any, rows: jax.Array) -> Any:
    """A tree whose edits hold the numbers of some rows of the batch."""

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, NamedArray) or axes.BATCH not in leaf.named_shape:
            return leaf
        return leaf.untag(axes.BATCH)[pz.nx.wrap(rows, axes.BATCH)]

    return jax.tree_util.tree_map(take, tree, is_leaf=lambda node: isinstance(node, NamedArray))


def _advance(
    block: pz.nn.Layer, x: jax.Array, earlier: KeysAndValues | None, texts: Texts, last: bool = False
) -> jax.Array:
    """One block on x [batch, seq, embedding], the last columns of the texts; see `advance_unedited`."""
    start = texts.tokens.shape[1] - x.shape[1]
    front = None if earlier is None or not start else tuple(part[:, :start] for part in earlier)
    if last and x.shape[1] > 1:
        # What the other columns do here reaches the last one through their keys and values alone, so all else that
        # this first call computes is dropped by the compiler.
        _, own = _keep_keys(block, x, texts, start)
        own = tuple(part[:, :-1] for part in own)
        front = own if front is None else tuple(jnp.concatenate(pair, axis=1) for pair in zip(front, own, strict=True))
        new = _advance_behind(block, x[:, -1:], front, texts)
        return jnp.concatenate([x[:, :-1], new], axis=1)
    return _advance_behind(block, x, front, texts)


def _advance_behind(block: pz.nn.Layer, x: jax.Array, front: tuple[jax.Array, ...] | None, texts: Texts) -> jax.Array:
    """One block on the last columns, behind the keys and values of all columns before them."""
    if front is not None:
        parts = [_Prepend(pz.nx.wrap(part, *_KEYS)) for part in front]
        block = attach(block, [((site, None), part) for site, part in zip(("k", "v"), parts, strict=True)])
    inputs = texts.side_inputs(texts.tokens.shape[1] - x.shape[1])
    return block(pz.nx.wrap(x, *STREAM), **inputs).unwrap(*STREAM)


def _keep_keys(block: pz.nn.Layer, x: jax.Array, texts: Texts, start: int) -> tuple[jax.Array, KeysAndValues]:
    """One block on the columns from `start` on, as if there were none before, and its keys and values there."""
    saves = [((site, None), Save(pz.StateVariable(None, label=site), None)) for site in ("k", "v")]
    reading, variables = pz.unbind_state_vars(attach(block, saves))
    frozen = [variable.freeze() for variable in variables]
    inputs = texts.side_inputs(start)
    for name in ("attend", "distance", "kv_positions"):
        inputs[name] = inputs[name].untag(axes.KV_SEQ)[start:].tag(axes.KV_SEQ)
    out, states = reading.stateless_call(frozen, pz.nx.wrap(x, *STREAM), **inputs)
    saved = {state.label: state.value.unwrap(*_KEYS) for state in states}
    return out.unwrap(*STREAM), (saved["k"], saved["v"])


def _begin(ends: Decoder, texts: Texts) -> jax.Array:
    inputs = texts.side_inputs(0)
    embedded = ends.embedding(inputs["tokens"], **inputs)
    return ends.start(embedded, **inputs).unwrap(*STREAM)


def _measure(ends: Decoder, x: jax.Array, texts: Texts, measure: Measure) -> jax.Array:
    """The metric [batch] of the last column x [batch, embedding]."""
    inputs = texts.side_inputs(texts.tokens.shape[1] - 1)
    if measure.tokens is not None and not ends.logits.edits:
        inputs["choose"] = pz.nx.wrap(measure.tokens, axes.BATCH, "choice")
        names = (axes.BATCH, "choice")
    else:
        names = (axes.BATCH, axes.VOCABULARY)
    named = pz.nx.wrap(x[:, None], *STREAM)
    logits = ends.read_out(named, **inputs).untag(axes.SEQ)[0].unwrap(*names)
    return apply_measure(measure, logits) if ends.logits.edits else measure(logits)


@functools.partial(jax.jit, static_argnames="last", donate_argnames="buffer")
def advance_unedited(
    buffer: jax.Array,
    cells: jax.Array,
    block: pz.nn.Layer,
    earlier: KeysAndValues | None,
    texts: Texts,
    *,
    last: bool,
) -> jax.Array:
    """Takes cells that have no edit of their own in a block through it.

    Args:
        buffer: Residual streams, [cell, batch, seq, embedding]; it is used up.
        cells: Which of them, int [n]; numbers beyond the buffer stand for none.
        block: The block.
        earlier: Keys and values of the unedited run in it, or `None` if the buffer holds all columns.
        texts: Of all columns.
        last: Whether only the last column is wanted behind the block; the others keep what they have.

    Returns:
        The buffer.
    """
    batch = buffer.shape[1]
    x = buffer.at[cells].get(mode="clip")
    rows = jnp.tile(jnp.arange(batch), len(cells))
    earlier = None if earlier is None else (earlier[0][rows], earlier[1][rows])
    out = _advance(_of_rows(block, rows), x.reshape(-1, *x.shape[2:]), earlier, texts.rows(rows), last)
    return buffer.at[cells].set(out.reshape(x.shape), mode="drop")


@functools.partial(jax.jit, static_argnames="last", donate_argnames="buffer")
def advance_edited(
    buffer: jax.Array,
    cells: jax.Array,
    shared: Shared,
    own: Leaves,
    earlier: KeysAndValues | None,
    texts: Texts,
    *,
    last: bool,
) -> jax.Array:
    """Takes cells through a block in which each has edits of its own.

    Args:
        buffer: As in `advance_unedited`.
        cells: As in `advance_unedited`.
        shared: What their blocks have in common.
        own: The other leaves, with a cell axis in front.
        earlier: As in `advance_unedited`.
        texts: Of all columns.
        last: As in `advance_unedited`.

    Returns:
        The buffer.
    """

    def one(leaves: Leaves, x: jax.Array) -> jax.Array:
        return _advance(shared.joined(leaves), x, earlier, texts, last)

    out = jax.vmap(one)(own, buffer.at[cells].get(mode="clip"))
    return buffer.at[cells].set(out, mode="drop")


@functools.partial(jax.jit, donate_argnames="buffer")
def enter(
    buffer: jax.Array, cells: jax.Array, shared: Shared, own: Leaves, clean: jax.Array, texts: Texts
) -> jax.Array:
    """Starts cells in front of a block from the unedited stream there, or from what their edits make of it.

    Args:
        buffer: As in `advance_unedited`.
        cells: As in `advance_unedited`.
        shared: What their edits of the stream (a tuple of layers, possibly empty) have in common.
        own: The other leaves, with a cell axis in front.
        clean: The unedited stream there, [batch, seq, embedding] with all columns.
        texts: Of all columns.

    Returns:
        The buffer.
    """
    entering = clean[:, clean.shape[1] - buffer.shape[2] :]
    out = jax.vmap(lambda leaves: _edit(shared.joined(leaves), entering, texts), axis_size=len(cells))(own)
    return buffer.at[cells].set(out, mode="drop")


@functools.partial(jax.jit, static_argnames="count")
def first_change(shared: Shared, own: Leaves, clean: jax.Array, texts: Texts, count: int) -> jax.Array:
    """The first column that edits of the residual stream between two blocks change in any text.

    Args:
        shared: As in `enter`.
        own: As in `enter`.
        clean: As in `enter`.
        texts: Of all columns.
        count: How many cells these are.

    Returns:
        Int [cell]; the number of columns where nothing is changed.
    """

    def one(leaves: Leaves) -> jax.Array:
        changed = (_edit(shared.joined(leaves), clean, texts) != clean).any(axis=(0, 2))
        return jnp.where(changed.any(), jnp.argmax(changed), len(changed))

    return jax.vmap(one, axis_size=count)(own)


def _edit(edits: tuple[pz.nn.Layer, ...], x: jax.Array, texts: Texts) -> jax.Array:
    """What edits make of the residual stream x [batch, seq, embedding], the last columns of the texts."""
    inputs = texts.side_inputs(texts.tokens.shape[1] - x.shape[1])
    named = pz.nx.wrap(x, *STREAM)
    for edit in edits:
        named = edit(named, **inputs)
    return named.unwrap(*STREAM)


@functools.partial(jax.jit, donate_argnames="buffer")
def begin_edited(buffer: jax.Array, cells: jax.Array, shared: Shared, own: Leaves, texts: Texts) -> jax.Array:
    """Starts cells that edit the embedding; see `enter`, with the ends in place of edits."""

    def one(leaves: Leaves) -> jax.Array:
        return _begin(shared.joined(leaves), texts)

    out = jax.vmap(one, axis_size=len(cells))(own)
    return buffer.at[cells].set(out[:, :, out.shape[2] - buffer.shape[2] :], mode="drop")


@jax.jit
def measure_unedited(buffer: jax.Array, cells: jax.Array, ends: Decoder, texts: Texts, measure: Measure) -> jax.Array:
    """The metric of cells whose last edit lies before the final norm.

    Args:
        buffer: As in `advance_unedited`, after the last block.
        cells: As in `advance_unedited`.
        ends: Embedding, final norm and unembedding.
        texts: Of all columns.
        measure: The metric, bound to the texts.

    Returns:
        [cell, batch].
    """
    x = buffer.at[cells].get(mode="clip")[:, :, -1]
    rows = jnp.tile(jnp.arange(buffer.shape[1]), len(cells))
    values = _measure(_of_rows(ends, rows), x.reshape(-1, x.shape[-1]), texts.rows(rows), measure.take(rows))
    return values.reshape(x.shape[:2])


@jax.jit
def measure_edited(
    buffer: jax.Array, cells: jax.Array, shared: Shared, own: Leaves, texts: Texts, measure: Measure
) -> jax.Array:
    """The metric of cells that edit the final norm or the logits; see `measure_unedited`, `advance_edited`."""

    def one(leaves: Leaves, x: jax.Array) -> jax.Array:
        return _measure(shared.joined(leaves), x, texts, measure)

    return jax.vmap(one)(own, buffer.at[cells].get(mode="clip")[:, :, -1])

"""Subspaces learned through the model: what an interchange has to move, by gradient, at all layers at once.

DAS learns a rotation and DCM a mask, by the same descent: the parameters of all cells (layers, seeds, controls) are
stacked, every block carries the interchange, and a number says in which blocks it acts. So one compiled step serves
whatever layer a cell is about, and many cells at a time. Tokens in front of the first one that is exchanged never
change: their keys and values are read once, and a step runs the rest of the text alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.run import run
from jaxinterp.analysis.pairs import Pairs
from jaxinterp.interventions.edit import Edit
from jaxinterp.interventions.interchange import Interchange
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import At
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address, attach

Objective = Literal["log_prob", "logit"]

MEMORY = 2 * 2**30
"""Bytes of activations that a training step may keep for its gradient; as many cells run together as fit. Also the
bytes of keys and values of earlier tokens that may be held; where there are more, whole texts are run."""


@pz.pytree_dataclass
class Precede(pz.nn.Layer):
    """Puts keys (or values) of earlier columns in front of those that pass.

    Attributes:
        earlier: [batch, seq, kv_head, projection].
    """

    earlier: pz.nx.NamedArray

    def __call__(self, value: pz.nx.NamedArray, /, **_: Any) -> pz.nx.NamedArray:
        """Returns all of them."""
        names = (axes.SEQ, axes.KV_HEAD, axes.PROJECTION)
        both = pz.nx.nmap(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]))
        return both(self.earlier.untag(*names), value.untag(*names)).tag(*names)


@pz.pytree_dataclass
class Material(pz.Struct):
    """What an interchange of some pairs is made of.

    Attributes:
        tokens: The last columns of the clean prompts, from the first exchanged token on, int [pair, seq].
        mask: Which columns of the whole prompts are tokens, boolean [pair, kv_seq].
        keys: Keys of the columns in front of those, of every block, [block, pair, column, kv_head, projection].
        values: Their values.
        source: Counterfactual activations at the chosen tokens of every block, [block, pair, choice, width].
        targets: The tokens they go to, int [pair, choice].
        own: Clean activations of each group of tokens that is held, [block, pair, choice, width].
        own_targets: Their tokens, int [pair, choice].
    """

    tokens: jax.Array
    mask: jax.Array
    keys: jax.Array
    values: jax.Array
    source: jax.Array
    targets: jax.Array
    own: tuple[jax.Array, ...]
    own_targets: tuple[jax.Array, ...]


@pz.pytree_dataclass
class Lessons(pz.Struct):
    """What each cell learns from, with a cell axis in front.

    Attributes:
        rows: Pairs of each step, int [cell, step, batch].
        expected: Token that each pair should give, int [cell, pair].
        active: In which blocks the interchange acts, boolean [cell, block].
        held: In which blocks each held group keeps its clean values, boolean [cell, group, block].
        penalty: Factor on the sum of the parameters, [cell].
    """

    rows: jax.Array
    expected: jax.Array
    active: jax.Array
    held: jax.Array
    penalty: jax.Array


@dataclasses.dataclass(frozen=True)
class Course:
    """How all cells learn.

    Attributes:
        addresses: The tap of each block.
        axis: The axis of the site that the subspace lies in.
        subspace: (parameters of a cell, fixed array of all cells) -> orthonormal rows [block, component, width] and
            their weights [block, component]; or [1, ...] if they are those of all blocks. A function of a module,
            since it is part of what is compiled.
        objective: What is raised: the expected token's log-probability, or its logit alone.
        learning_rate: Of Adam.
        bounded: Whether parameters are kept in [0, 1] after every step.
    """

    addresses: tuple[Address, ...]
    axis: str
    subspace: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    objective: Objective
    learning_rate: float
    bounded: bool


def stream_taps(model: LanguageModel, site: Site) -> tuple[tuple[Address, ...], list[int], str, int]:
    """The taps of a site in all blocks, the layers that the selector means, and the axis there with its width.

    Raises:
        ValueError: The site does not stand in blocks, or holds more than one vector for each token.
    """
    names = axes.SITES[site.name][0]
    sizes = model.architecture.axis_sizes()
    if site.axis is not None or names[:2] != (axes.BATCH, axes.SEQ) or len(names) != 3 or site.name in axes.UNLAYERED:
        raise ValueError(f"a subspace is learned where a block has one vector for each token; {site} is no such site")
    layers = [layer for _, layer in site.addresses(model.body) if layer is not None]
    return Site(site.name).addresses(model.body), layers, names[2], sizes[names[2]]


def gather(
    model: LanguageModel,
    prompts: np.ndarray,
    mask: np.ndarray,
    addresses: Sequence[Address],
    positions: np.ndarray,
    batch_size: int = 64,
) -> np.ndarray:
    """Activations at chosen tokens.

    Args:
        model: The model.
        prompts: Token ids, left-padded, int [row, seq].
        mask: Which of them are tokens.
        addresses: The taps to read.
        positions: From the start of each text, int [row, choice].
        batch_size: Rows per forward pass.

    Returns:
        [tap, row, choice, width].
    """
    sites = [Site(addresses[0][0], tuple(int(layer) for _, layer in addresses if layer is not None))]
    columns = positions + np.argmax(mask, axis=1)[:, None]
    count = len(prompts)
    step = min(batch_size, count)
    parts = []
    for first in range(0, count, step):
        rows = np.arange(first, first + step) % count
        _, cache = run(model, prompts[rows], mask[rows], sites=sites, logits=None)
        picked = [cache[at][np.arange(step)[:, None], columns[rows]] for at in addresses]
        parts.append(np.stack(picked)[:, : count - first])
    return np.concatenate(parts, axis=1)


def prepare_material(
    model: LanguageModel, pairs: Pairs, addresses: Sequence[Address], group: str, held: Sequence[str] = ()
) -> Material:
    """Reads all that the interchanges of some pairs need.

    Args:
        model: The unedited model.
        pairs: The pairs.
        addresses: The taps, one for each block.
        group: The group of tokens that is exchanged.
        held: Groups of tokens that are held at their clean values somewhere.

    Returns:
        The material.
    """
    table = pairs.positions[group]
    source = gather(model, pairs.counterfactual, pairs.counterfactual_mask, addresses, table[..., 1])
    clean = [gather(model, pairs.clean, pairs.clean_mask, addresses, pairs.positions[name][..., 0]) for name in held]
    padding = np.argmax(pairs.clean_mask, axis=1)[:, None]
    first = min(int((pairs.positions[name][..., 0] + padding).min()) for name in (group, *held))
    sizes = model.architecture
    column = 8 * sizes.layers * len(pairs) * sizes.kv_heads * sizes.projection
    first = first if column * first <= MEMORY else 0
    keys, values = _read_earlier(model, pairs, first)
    return Material(
        jnp.asarray(pairs.clean[:, first:]),
        jnp.asarray(pairs.clean_mask),
        keys,
        values,
        jnp.asarray(source),
        jnp.asarray(table[..., 0], jnp.int32),
        tuple(jnp.asarray(array) for array in clean),
        tuple(jnp.asarray(pairs.positions[name][..., 0], jnp.int32) for name in held),
    )


def _read_earlier(
    model: LanguageModel, pairs: Pairs, columns: int, batch_size: int = 64
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the first columns of the clean prompts, [block, pair, column, kv_head, projection]."""
    count, layers = len(pairs), range(model.architecture.layers)
    step = min(batch_size, count)
    parts = []
    for first in range(0, count, step):
        rows = np.arange(first, first + step) % count
        sites = [Site("k"), Site("v")]
        _, cache = run(model, pairs.clean[rows], pairs.clean_mask[rows], sites=sites, logits=None)
        read = [[cache[site.name, layer][: count - first, :columns] for layer in layers] for site in sites]
        parts.append(np.asarray(read))
    keys, values = np.concatenate(parts, axis=2)
    return jnp.asarray(keys), jnp.asarray(values)


def draw_rows(count: int, batch: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Random batches, every pair once before any comes again, int [step, batch]."""
    rounds = -(-steps * batch // count)
    return np.concatenate([rng.permutation(count) for _ in range(rounds)])[: steps * batch].reshape(steps, batch)


def over_cells(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array over some axes of a grid of cells (1 in the others), as one over the cells in a row.

    >>> over_cells(np.array([[1], [2]]), (2, 3)).tolist()
    [1, 1, 1, 2, 2, 2]
    """
    rest = array.shape[len(shape) :]
    return np.broadcast_to(array, (*shape, *rest)).reshape(math.prod(shape), *rest)


def descend(
    model: LanguageModel, material: Material, parameters: np.ndarray, fixed: Any, lessons: Lessons, course: Course
) -> tuple[np.ndarray, np.ndarray]:
    """Learns the parameters of all cells by Adam.

    Args:
        model: The unedited model.
        material: Of the pairs to learn from.
        parameters: Where they start, [cell, ...].
        fixed: An array that all cells share.
        lessons: What each cell learns from.
        course: How.

    Returns:
        The parameters, [cell, ...], and the loss before each step, in nats, [cell, step].
    """
    cells, steps, batch = lessons.rows.shape
    together = min(cells, _cells_that_fit(model, batch, material.tokens.shape[1], material.mask.shape[1]))
    learned = np.empty(parameters.shape, np.float32)
    losses = np.empty((cells, steps), np.float32)
    optimizer = optax.adam(course.learning_rate)
    for first in range(0, cells, together):
        # The last block is filled with cells of before, so that it is the same compiled program.
        block = np.arange(first, first + together) % cells
        part = jax.tree_util.tree_map(lambda leaf, block=block: leaf[block], lessons)
        now = jnp.asarray(parameters[block], jnp.float32)
        state = optimizer.init(now)
        history = []
        for step in range(steps):
            now, state, loss = _step(model.body, material, fixed, part, now, state, step, course=course)
            history.append(loss)
        learned[block], losses[block] = np.asarray(now), np.stack(history, axis=1)
    return learned, losses


@functools.partial(jax.jit, static_argnames="course")
def _step(
    body: pz.nn.Layer,
    material: Material,
    fixed: jax.Array,
    lessons: Lessons,
    parameters: jax.Array,
    state: optax.OptState,
    step: int | jax.Array,
    *,
    course: Course,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    def loss(own: jax.Array, lesson: Lessons) -> jax.Array:
        rows = lesson.rows[step]
        edited = attach(body, [*_edits(material, fixed, own, lesson, rows, course), *_earlier(material, rows)])
        logits = _last_logits(edited, material.tokens[rows], material.mask[rows])
        values = jax.nn.log_softmax(logits) if course.objective == "log_prob" else logits
        score = values[jnp.arange(len(rows)), lesson.expected[rows]].mean()
        return -score + lesson.penalty * jnp.abs(own).sum()

    losses, slopes = jax.vmap(jax.value_and_grad(loss))(parameters, lessons)
    updates, state = optax.adam(course.learning_rate).update(slopes, state)
    parameters = jnp.asarray(optax.apply_updates(parameters, updates))
    return jnp.clip(parameters, 0, 1) if course.bounded else parameters, state, losses


def _last_logits(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    seq = tokens.shape[1]
    inputs = side_inputs(tokens, mask, start=mask.shape[1] - seq)
    read = pz.nx.wrap(jnp.full(len(tokens), seq - 1), axes.BATCH)
    return body(pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), read=read, **inputs).unwrap(axes.BATCH, axes.VOCABULARY)


def _earlier(material: Material, rows: jax.Array) -> Iterator[tuple[Address, pz.nn.Layer]]:
    for site, kept in (("k", material.keys), ("v", material.values)):
        for block in range(len(kept)):
            array = pz.nx.wrap(kept[block][rows], axes.BATCH, axes.SEQ, axes.KV_HEAD, axes.PROJECTION)
            yield (site, block), Precede(array)


def _edits(
    material: Material, fixed: jax.Array, own: jax.Array, lesson: Lessons, rows: jax.Array, course: Course
) -> Sequence[tuple[Address, Edit]]:
    edits: list[tuple[Address, Edit]] = []

    def edit(selected: jax.Array, source: jax.Array, targets: jax.Array, basis: Any, weights: Any) -> Edit:
        where = pz.nx.wrap(targets[rows], axes.BATCH, "choice")
        moved = pz.nx.wrap(source[rows], axes.BATCH, "choice", course.axis)
        return Interchange(pz.nx.wrap(selected), At(where), moved, where, basis, weights)

    bases, weights = course.subspace(own, fixed)
    for block, address in enumerate(course.addresses):
        basis, weight = bases[min(block, len(bases) - 1)], weights[min(block, len(weights) - 1)]
        named = pz.nx.wrap(basis, axes.COMPONENT, course.axis), pz.nx.wrap(weight, axes.COMPONENT)
        edits.append((address, edit(lesson.active[block], material.source[block], material.targets, *named)))
        for number, (source, targets) in enumerate(zip(material.own, material.own_targets, strict=True)):
            edits.append((address, edit(lesson.held[number, block], source[block], targets, None, None)))
    return edits


def _cells_that_fit(model: LanguageModel, batch: int, seq: int, kv_seq: int) -> int:
    """How many cells' activations fit, by what a block keeps of each token for its gradient."""
    sizes = model.architecture
    token = 20 * sizes.embedding + 5 * sizes.neurons + 4 * sizes.heads * kv_seq
    earlier = 4 * kv_seq * sizes.kv_heads * sizes.projection
    row = 4 * (sizes.layers * (seq * token + earlier) + 3 * sizes.vocabulary)
    return max(1, MEMORY // (row * batch))

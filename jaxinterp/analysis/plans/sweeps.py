"""The programs of a patching sweep: the unedited run, cells that enter, blocks that they pass, and the metric."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp.activations import stages
from jaxinterp.activations.groups import Shared, by_structure
from jaxinterp.activations.metrics import LogitDiff
from jaxinterp.activations.plan import Base, find_route
from jaxinterp.activations.run import bucket
from jaxinterp.activations.schedule import STARTS, CleanRun
from jaxinterp.activations.sizes import ACCELERATOR_TILE, Sizes, choose_sizes
from jaxinterp.activations.stages import Texts
from jaxinterp.analysis.plans.compiler import Cost, DoesNotFitError, compile_cost
from jaxinterp.analysis.plans.shapes import (
    GIB,
    Load,
    Part,
    first_blocks,
    of_all_blocks,
    on_every_chip,
    placed,
    shape_of,
    weights_held,
)
from jaxinterp.interventions.patch import patch
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel import mesh as meshes
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import at
from jaxinterp.sites.selectors import resid_post


def patch_sweep(model: LanguageModel, mesh: Mesh, load: Load) -> list[Part]:
    """Every layer's residual stream patched at every position, on all texts.

    No cell is skipped for changing nothing. The last block, of which only the last column is wanted, counts as the
    others.

    Args:
        model: Without numbers.
        mesh: Over the devices of a slice; `sweep` shares the cells, and `data` the texts.
        load: How much is asked for.

    Returns:
        The programs of one group of chips.

    Raises:
        DoesNotFitError: Weights or one text do not fit.
    """
    a, seq = model.architecture, bucket(load.seq)
    groups, shares = mesh.shape[meshes.SWEEP], mesh.shape[meshes.DATA]
    mesh = meshes.groups(mesh)[0][0]
    sizes = _sizes(model, mesh, load, shares)
    programs = _Programs(model, mesh, sizes, seq)
    turns = math.ceil(math.ceil(load.rows / sizes.rows) / shares)
    (unedited,) = of_all_blocks(lambda depth: [programs.unedited(depth)], model)
    found = [Part("unedited run", turns, unedited)]
    for start, positions in _columns(seq).items():
        width = seq - start
        tile = _power_of_two(sizes.tile // (sizes.rows * width))
        most = max(1, sizes.cells * seq // width)
        cells = math.ceil(positions * a.layers / groups)
        buffer = programs.buffer(-(-min(most, cells) // tile) * tile, width)
        name = f"{tile} cells, last {width} tokens"
        passes = turns * _block_passes(positions, a.layers, tile, most) / groups
        tiles = turns * math.ceil(cells / tile)
        found.append(Part(f"entering, {name}", tiles, programs.enter(buffer, tile), whole=False))
        found.append(Part(f"a block, {name}", passes, programs.advance(buffer, tile), whole=False))
    many = _power_of_two(min(tile, sizes.logits // sizes.rows))
    every = turns * math.ceil(seq * a.layers / groups / many)
    return [*found, Part(f"measuring {many} cells", every, programs.measure(buffer, many), whole=False)]


def _sizes(model: LanguageModel, mesh: Mesh, load: Load, shares: int) -> Sizes:
    """What the scheduler would choose on a chip that holds the weights."""
    held = weights_held(model, mesh)
    free = int(load.memory * GIB) - held
    try:
        sizes = choose_sizes(model.architecture, (load.rows, bucket(load.seq)), free // 2, best=ACCELERATOR_TILE)
    except ValueError as error:
        needed = held if free < 0 else None
        raise DoesNotFitError(needed, f"weights take {held / GIB:.2f} GiB of each chip, and {error}") from error
    return dataclasses.replace(sizes, rows=min(sizes.rows, -(-load.rows // shares)))


class _Programs:
    """The programs of a group of chips.

    Args:
        model: Without numbers.
        mesh: Of the group.
        sizes: How much is run at a time.
        seq: Columns.
    """

    def __init__(self, model: LanguageModel, mesh: Mesh, sizes: Sizes, seq: int) -> None:
        self._model, self._mesh, self._rows, self._seq = model, mesh, sizes.rows, seq
        self._base = Base.of(cast("Decoder", placed(first_blocks(model, 1), mesh).body))
        self._dtype = jax.tree_util.tree_leaves(model.body)[0].dtype
        self._texts = Texts(self._array(seq, dtype=jnp.int32), self._array(seq, dtype=jnp.bool_))
        self._tokens = self._array(2, dtype=jnp.int32)

    def _array(self, *sizes: int, dtype: Any = None) -> Any:
        return on_every_chip((self._rows, *sizes), dtype or self._dtype, self._mesh)

    def buffer(self, cells: int, width: int) -> Any:
        """Streams of cells."""
        shape = (cells, self._rows, width, self._model.architecture.embedding)
        return on_every_chip(shape, self._dtype, self._mesh)

    def unedited(self, depth: int) -> Cost:
        """The run from which cells start, of a model with some of the blocks."""
        own = Base.of(cast("Decoder", placed(first_blocks(self._model, depth), self._mesh).body))

        def run(blocks: Any, ends: Any, texts: Texts, tokens: jax.Array) -> Any:
            here = dataclasses.replace(own, blocks=blocks, ends=ends)
            found = CleanRun.of(here, texts, LogitDiff(tokens), frozenset(range(depth)), keep=True)
            return found.streams, found.keys, found.value

        return compile_cost(run, own.blocks, own.ends, self._texts, self._tokens, what="the unedited run")

    def enter(self, buffer: Any, tile: int) -> Cost:
        """A tile of cells is patched."""
        a = self._model.architecture
        shared, own = _entry(self._model, self._rows, self._seq, tile, self._mesh)
        stream, chosen = self._array(self._seq, a.embedding), on_every_chip((tile,), jnp.int32, self._mesh)
        given = (buffer, chosen, shared, own, stream, self._texts)
        return compile_cost(stages.enter, *given, donate=(0,), what="patching cells")

    def advance(self, buffer: Any, tile: int) -> Cost:
        """A tile of cells goes through a block."""
        a = self._model.architecture
        keys = tuple(self._array(self._seq, a.kv_heads, a.projection) for _ in range(2))
        chosen = on_every_chip((tile,), jnp.int32, self._mesh)
        given = (buffer, chosen, self._base.blocks[0], keys if buffer.shape[2] < self._seq else None, self._texts)
        advance = functools.partial(stages.advance_unedited, last=False)
        return compile_cost(advance, *given, donate=(0,), what="a block of patched cells")

    def measure(self, buffer: Any, cells: int) -> Cost:
        """The metric of some cells."""
        given = (on_every_chip((cells,), jnp.int32, self._mesh), self._base.ends, self._texts, LogitDiff(self._tokens))
        return compile_cost(stages.measure_unedited, buffer, *given, what="measuring patched cells")


def _columns(seq: int) -> dict[int, int]:
    """First columns of buffers -> how many positions start there, as the scheduler rounds them."""
    step = max(1, seq // STARTS)
    positions = np.arange(seq)
    starts = np.where(positions == seq - 1, positions, positions // step * step)
    return {int(start): int(number) for start, number in zip(*np.unique(starts, return_counts=True), strict=True)}


def _block_passes(positions: int, layers: int, tile: int, most: int) -> float:
    """How many full tiles go through a block, for cells that enter behind each block, `most` in a buffer."""
    entered = np.repeat(np.arange(1, layers + 1), positions)
    quarter, passes = max(1, tile // 4), 0.0
    for first in range(0, len(entered), most):
        under_way = np.searchsorted(entered[first : first + most], np.arange(layers), side="right")
        passes += float(np.ceil(under_way / quarter).sum()) * quarter / tile
    return passes


def _entry(model: LanguageModel, rows: int, seq: int, tile: int, mesh: Mesh) -> tuple[Shared, list[Any]]:
    """Edits of a tile of cells that patch the stream: what they share, and what each has of its own."""
    a = model.architecture
    small = first_blocks(model, 2)
    other = Cache(
        {("resid_post", 0): np.zeros((rows, seq, a.embedding), np.float32)},
        np.zeros((rows, seq), np.int32),
        np.ones((rows, seq), bool),
    )
    base = Base.of(cast("Decoder", small.body))
    trees = [
        find_route(base, cast("Decoder", patch(small, resid_post(0), other, at=at(place)).body)).entry
        for place in range(2)
    ]
    (group,) = by_structure(trees)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shared = [None if leaf is None else shape_of(leaf, everywhere) for leaf in group.shared.leaves]
    own = [
        jax.ShapeDtypeStruct((tile, *np.shape(leaf)), jnp.result_type(leaf), sharding=everywhere)
        if kept is None
        else None
        for leaf, kept in zip(group.leaves[0], group.shared.leaves, strict=True)
    ]
    return dataclasses.replace(group.shared, leaves=shared), own


def _power_of_two(most: int) -> int:
    return 1 << max(0, int(most).bit_length() - 1)

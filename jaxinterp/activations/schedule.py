"""The order in which a sweep's cells go through the stages, and how many at a time.

Cells that start at the same column share a buffer. Stage by stage, those whose first edit is there join, and all
that are under way advance in tiles: on a CPU as many tokens as keep its matrix products efficient, on an accelerator
as many as fit. Devices that hold a whole model each work by themselves: with n of them, each takes every nth cell. On a
mesh those are the groups of its `sweep` and `data` axes, and `data` shares the texts.

A cell that edits nothing but the residual stream between two blocks starts at the first column whose stream the edit
changes, which may lie behind the first one that it acts on. One that changes none, such as a patch from a text that is
the same up to there, has the clean value.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.activations import stages
from jaxinterp.activations.groups import Group, Leaves, by_structure
from jaxinterp.activations.metrics import Measure
from jaxinterp.activations.plan import Base, Route
from jaxinterp.activations.reading import pass_blocks
from jaxinterp.activations.sizes import Sizes
from jaxinterp.activations.stages import KeysAndValues, Texts
from jaxinterp.parallel.mesh import DATA, SWEEP, groups
from jaxinterp.parallel.placement import fetch, mesh_of, whole_sharding
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address

STARTS = 4
"""At how many columns, evenly spread over the text, cells may start, and at the last; each is compiled for itself."""

_FEWEST_CELLS = 64
"""Cells that a buffer has room for, be there ever so few."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Measured cells.

    Attributes:
        cells: Which cells, int [cell].
        rows: Of which texts, int [row].
        values: The metric, [cell, row].
        clean: The metric of the unedited model, [row].
        written: Whether this process is the one of those that measured it that writes it down.
    """

    cells: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    clean: np.ndarray
    written: bool = True


def measure_cells(
    base: Base,
    routes: Sequence[Route],
    columns: np.ndarray,
    texts: Texts,
    measure: Measure,
    sizes: Sizes,
    done: np.ndarray | None = None,
) -> Iterator[Block]:
    """Runs the cells of a sweep.

    Args:
        base: The unedited model.
        routes: Of the cells.
        columns: First column at which each of them acts, int [cell].
        texts: The texts.
        measure: The metric, bound to the texts.
        sizes: How much is run at a time.
        done: Which cells need not be run on which texts, boolean [cell, text]; by default none.

    Yields:
        Blocks as they are done; together they hold every cell and text that was not done before.
    """
    batch = len(texts.tokens)
    places = _places(base)
    count = min(sizes.rows, -(-batch // len(places[0])))
    parts = [np.arange(first, min(first + count, batch)) for first in range(0, batch, count)]
    work: list[Iterator[_UnderWay | Block]] = []
    for first_cell, row in enumerate(places):
        cells = np.arange(first_cell, len(routes), len(places))
        for first_part, place in enumerate(row):
            if place is not None:
                share = _Share(base, place, routes, columns, texts, measure, sizes, count)
                work.append(share.start(cells, parts[first_part :: len(row)], done))
    under_way: collections.deque[_UnderWay] = collections.deque()
    most = len(work)
    while work:
        for cells in tuple(work):
            begun = next(cells, None)
            if begun is None:
                work.remove(cells)
            elif isinstance(begun, Block):
                yield begun
            else:
                under_way.append(begun)
                if len(under_way) > most:
                    yield under_way.popleft().finish()
    while under_way:
        yield under_way.popleft().finish()


def _places(base: Base) -> list[list[Base | None]]:
    """The model in each place that works by itself, [share of the cells][share of the texts]; `None` in others'."""
    mesh = mesh_of(base.body)
    if mesh is None:
        devices = jax.local_devices()
        return [[base]] if len(devices) == 1 else [[base.on(device)] for device in devices]
    if mesh.shape[SWEEP] == mesh.shape[DATA] == 1:
        return [[base]]
    return [[base.on(group) if group.local_devices else None for group in row] for row in groups(mesh)]


class _Share:
    """What one place does of a sweep.

    Args:
        base: The unedited model, of which the cells were made.
        place: The same in this place.
        routes: Of the cells.
        columns: First column at which each of them acts, int [cell].
        texts: All texts.
        measure: The metric, bound to all texts.
        sizes: How much is run at a time.
        count: How many texts are run at a time.
    """

    def __init__(
        self,
        base: Base,
        place: Base,
        routes: Sequence[Route],
        columns: np.ndarray,
        texts: Texts,
        measure: Measure,
        sizes: Sizes,
        count: int,
    ) -> None:
        self._base, self._place, self._routes, self._columns = base, place, routes, columns
        self._texts, self._measure, self._sizes, self._count = texts, measure, sizes, count
        mesh = mesh_of(place.ends)
        self._written = mesh is None or mesh.devices.flat[0].process_index == jax.process_index()

    def start(
        self, cells: np.ndarray, parts: Sequence[np.ndarray], done: np.ndarray | None
    ) -> Iterator[_UnderWay | Block]:
        """Runs cells.

        Args:
            cells: Which of them.
            parts: The texts that are run together.
            done: Which cells need not be run on which texts, boolean [cell, text]; by default none.

        Yields:
            What is started, or known without a run.
        """
        batch, length = self._texts.tokens.shape
        for rows in parts:
            some = np.minimum(rows[0] + np.arange(self._count), batch - 1)
            part = _Part(self._base, self._place, self._routes, self._columns, self._texts, self._measure, some)
            due = cells if done is None else cells[~done[np.ix_(cells, rows)].all(axis=1)]
            changed = part.first_changes(due, self._sizes)
            idle = due[changed[due] == length]
            if len(idle):
                clean = fetch(part.clean.value)[0, : len(rows)]
                yield Block(idle, rows, np.tile(clean, (len(idle), 1)), clean, self._written)
            due = due[changed[due] < length]
            for chosen, start in _buffers(due, _round_down(changed, length), self._routes, self._sizes, length):
                values = measure_buffer(part.clean, part.take(chosen), length - start, self._sizes)
                yield _UnderWay(chosen, rows, values, part.clean.value, self._written)


class _Part:
    """The cells of a sweep on some of its texts, in one place.

    Args:
        base: The unedited model, of which the cells were made.
        place: The same in this place.
        routes: Of the cells.
        columns: First column at which each of them acts, int [cell].
        texts: All texts.
        measure: The metric, bound to all texts.
        rows: Which of them these are, int [row].
    """

    def __init__(
        self,
        base: Base,
        place: Base,
        routes: Sequence[Route],
        columns: np.ndarray,
        texts: Texts,
        measure: Measure,
        rows: np.ndarray,
    ) -> None:
        self._all = len(rows) == len(texts.tokens) and bool((rows == np.arange(len(rows))).all())
        self._base, self._place, self._routes, self._columns, self._rows = base, place, routes, columns, rows
        self._texts, self._measure = texts.rows(jnp.asarray(rows)), measure.take(jnp.asarray(rows))
        self._needed = frozenset(route.stage for route in routes)
        self._keep = bool(columns.any()) or any(_is_on_stream(route) for route in routes)

    @functools.cached_property
    def clean(self) -> CleanRun:
        """The unedited run; it is made when it is first asked for."""
        base = self._place if self._all else self._place.of_rows(self._rows)
        return CleanRun.of(base, self._texts, self._measure, self._needed, self._keep)

    def take(self, cells: np.ndarray) -> list[Route]:
        """The routes of some cells, with the numbers of these texts and the weights of this place."""
        some = [self._routes[cell] for cell in cells]
        if self._place is not self._base:
            some = [route.on(self._base, self._place) for route in some]
        return some if self._all else [route.of_rows(self._rows) for route in some]

    def first_changes(self, due: np.ndarray, sizes: Sizes) -> np.ndarray:
        """The first column that each cell changes: of those that are due, as found; of the others, as they say.

        Those that act at the last column alone are not looked at: running them costs less.

        Args:
            due: Which cells are run.
            sizes: How much is run at a time.

        Returns:
            Int [cell]; the number of columns for a cell that changes nothing.
        """
        columns = self._columns.copy()
        length = self._texts.tokens.shape[1]
        tile = _power_of_two(sizes.tile // (len(self._rows) * length))
        on_stream = [cell for cell in due if _is_on_stream(self._routes[cell]) and columns[cell] < length - 1]
        on_stream = np.asarray(on_stream, int)
        for first in range(0, len(on_stream), max(1, sizes.cells)):
            cells = on_stream[first : first + max(1, sizes.cells)]
            some = self.take(cells)
            found = []
            for stage in sorted({route.stage for route in some}):
                places = [place for place, route in enumerate(some) if route.stage == stage]
                for chosen, group, own in _groups(places, some, None, tile):
                    stream = self.clean.streams[stage]
                    found.append((chosen, stages.first_change(group.shared, own, stream, self._texts, len(chosen))))
            for chosen, first_changed in found:
                real = chosen < len(cells)
                columns[cells[chosen[real]]] = fetch(first_changed)[real]
        return columns


def _is_on_stream(route: Route) -> bool:
    """Whether a cell edits the residual stream between two blocks and nothing else."""
    return bool(route.entry) and not route.edited


@dataclasses.dataclass(frozen=True)
class _UnderWay:
    """A block whose values a device may still be working on."""

    cells: np.ndarray
    rows: np.ndarray
    values: list[tuple[np.ndarray, jax.Array]]
    clean: jax.Array
    written: bool

    def finish(self) -> Block:
        """Waits for the values."""
        count = len(self.rows)
        table = np.empty((len(self.cells), count), np.float32)
        for places, values in self.values:
            real = places < len(self.cells)
            table[places[real]] = fetch(values)[real, :count]
        return Block(self.cells, self.rows, table, fetch(self.clean)[0, :count], self.written)


def _round_down(columns: np.ndarray, length: int) -> np.ndarray:
    step = max(1, length // STARTS)
    return np.where(columns == length - 1, columns, columns // step * step)


def _buffers(
    cells: np.ndarray, starts: np.ndarray, routes: Sequence[Route], sizes: Sizes, length: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Cells that start at the same column, by first stage, as many as fit into a buffer."""
    for start in np.unique(starts[cells]):
        alike = cells[starts[cells] == start]
        alike = alike[np.argsort([routes[cell].stage for cell in alike], kind="stable")]
        most = _most(sizes, length, length - int(start))
        for first in range(0, len(alike), most):
            yield alike[first : first + most], int(start)


def _most(sizes: Sizes, length: int, seq: int) -> int:
    """How many cells that hold the last columns fit into a buffer."""
    return max(1, sizes.cells * length // seq)


def _capacity(count: int, tile: int, most: int) -> int:
    """The size of a buffer for some cells: one of few, because every program that touches it is compiled for it.

    Examples:
        >>> [_capacity(count, 1, 500) for count in (2, 60, 65, 300)], _capacity(2, 128, 500)
        ([64, 64, 128, 500], 128)
    """
    size = max(_FEWEST_CELLS, tile)
    while size < count:
        size *= 2
    return max(count, min(size, most))


@dataclasses.dataclass(frozen=True)
class CleanRun:
    """The unedited run of some texts, as far as cells restart from it.

    Attributes:
        base: The model.
        texts: The texts.
        measure: The metric, bound to them.
        streams: Stage -> residual stream entering it, [batch, seq, embedding], for stages where cells start.
        keys: Keys and values in each block, or `None` if all cells start at the first column.
        value: The metric, [1, batch].
    """

    base: Base
    texts: Texts
    measure: Measure
    streams: dict[int, jax.Array]
    keys: list[KeysAndValues | None]
    value: jax.Array

    @classmethod
    def of(
        cls, base: Base, texts: Texts, measure: Measure, needed: frozenset[int] = frozenset(), keep: bool = False
    ) -> CleanRun:
        """Runs the unedited model.

        Args:
            base: The model.
            texts: The texts.
            measure: The metric, bound to them.
            needed: Stages where cells start.
            keep: Whether keys and values are needed.

        Returns:
            The run.
        """
        sites: dict[Address, Site] = {
            (name, layer): Site(name) for name in ("k", "v") for layer in range(base.depth) if keep
        }
        saved: dict[Address, jax.Array] = {}
        streams, x = {}, None
        for stage, x in pass_blocks(base, texts, sites, saved, to_the_end=True):
            if stage in needed or stage == 0:
                streams[stage] = x
        keys = [(saved["k", layer], saved["v", layer]) if keep else None for layer in range(base.depth)]
        assert x is not None
        value = stages.measure_unedited(x[None], np.zeros(1, np.int32), base.ends, texts, measure)
        return cls(base, texts, measure, streams, keys, value)


def measure_buffer(
    clean: CleanRun, routes: Sequence[Route], seq: int, sizes: Sizes
) -> list[tuple[np.ndarray, jax.Array]]:
    """Takes cells from where they start to the metric.

    Args:
        clean: The unedited run.
        routes: Of the cells, in the order of their first stages.
        seq: How many of the last columns they hold.
        sizes: How much is run at a time.

    Returns:
        (places among the routes, some of them beyond the last; metric [place, batch]) pairs.
    """
    base, texts = clean.base, clean.texts
    batch, length = texts.tokens.shape
    tile = _power_of_two(sizes.tile // (batch * seq))
    stream = clean.streams[0]
    cells = _capacity(len(routes), tile, _most(sizes, length, seq))
    buffer = jnp.zeros((cells, batch, seq, stream.shape[-1]), stream.dtype, device=whole_sharding(stream))
    # One column takes hardly any time, but compiling does: tiles have one size, and the last block is like the others.
    single = seq == 1
    measured: list[tuple[np.ndarray, jax.Array]] = []
    started = 0
    for stage in range(routes[0].stage, base.depth + 1):
        arriving = [place for place in range(started, len(routes)) if routes[place].stage == stage]
        started += len(arriving)
        for places, group, own in _groups([p for p in arriving if routes[p].entry is None], routes, -1, tile):
            buffer = stages.begin_edited(buffer, places, group.shared, own, texts)
        entering = [place for place in arriving if routes[place].entry is not None]
        for places, group, own in _groups(entering, routes, None, tile, coarse=True):
            buffer = stages.enter(buffer, places, group.shared, own, clean.streams[stage], texts)
        if stage == base.depth:
            break
        earlier = clean.keys[stage] if seq < length else None
        last = stage == base.depth - 1 and not single
        edited = [place for place in range(started) if stage in routes[place].edited]
        for places, group, own in _groups(edited, routes, stage, tile, coarse=single):
            buffer = stages.advance_edited(buffer, places, group.shared, own, earlier, texts, last=last)
        others = [place for place in range(started) if stage not in routes[place].edited]
        for places in _tiles(others, tile, coarse=last or single):
            buffer = stages.advance_unedited(buffer, places, base.blocks[stage], earlier, texts, last=last)
    tile = _power_of_two(min(tile, sizes.logits // batch))
    changed = [place for place, route in enumerate(routes) if base.depth in route.edited]
    for places, group, own in _groups(changed, routes, base.depth, tile):
        values = stages.measure_edited(buffer, places, group.shared, own, texts, clean.measure)
        measured.append((places, values))
    others = [place for place, route in enumerate(routes) if base.depth not in route.edited]
    measured += [
        (places, stages.measure_unedited(buffer, places, base.ends, texts, clean.measure))
        for places in _tiles(others, tile, coarse=True)
    ]
    return measured


def _groups(
    places: list[int], routes: Sequence[Route], stage: int | None, tile: int, coarse: bool = False
) -> Iterator[tuple[np.ndarray, Group, Leaves]]:
    """Cells whose own trees at a stage (or at their entry, if `None`) have one structure, a tile at a time."""
    trees = [routes[place].entry if stage is None else routes[place].edited[stage] for place in places]
    for group in by_structure(trees):
        for some in _tiles(range(len(group.members)), tile, coarse):
            members = np.minimum(some, len(group.members) - 1)
            chosen = np.asarray(places)[[group.members[member] for member in members]]
            yield np.where(some < _NONE, chosen, _NONE).astype(np.int32), group, group.stack(members)


_NONE = np.iinfo(np.int32).max
"""In a tile that is not full, the number of a cell that no buffer has."""


def _tiles(places: Sequence[int], tile: int, coarse: bool = False) -> Iterator[np.ndarray]:
    """Numbers of cells, a tile at a time; the last one is filled up to one of few sizes."""
    for first in range(0, len(places), tile):
        some = places[first : first + tile]
        full = np.full(_step_up(len(some), tile, coarse), _NONE, np.int32)
        full[: len(some)] = some
        yield full


def _power_of_two(most: int) -> int:
    """The largest power of two up to a number; at least 1."""
    return 1 << max(0, int(most).bit_length() - 1)


def _step_up(count: int, tile: int, coarse: bool = False) -> int:
    """The size that a tile with some cells is filled up to: a quarter of it, half, three quarters, or all.

    Examples:
        >>> [_step_up(count, 32) for count in (1, 8, 9, 25)], _step_up(9, 32, coarse=True)
        ([8, 8, 16, 32], 32)
    """
    quarter = max(1, tile // 4)
    quarters = -(-count // quarter)
    return quarter * (quarters if quarters == 1 or not coarse else -(-tile // quarter))

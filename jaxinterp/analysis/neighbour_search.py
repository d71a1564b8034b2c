"""Comparing all vectors of a table with some of them, block by block, on one device."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

Metric = Literal["cosine", "euclidean"]

CHUNK = 16
"""Candidates whose maximum stands for them when a block is searched."""
_ROWS, _WIDTH = 1024, 2**15
"""The largest sides of a wide block; a larger one is no faster."""
_SIDE = 2048
"""The largest side of a square block: a larger one leaves the caches and is slower."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("vectors", "lengths", "centre", "columns", "halves"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Pool:
    """Vectors laid out for searches among them.

    Attributes:
        vectors: As they were given [n, embedding].
        lengths: What each is divided by before it is compared [n]: its length for the cosine, else one.
        centre: What is then subtracted [embedding]: the mean for Euclidean distances, which loses no digits to a
            common offset; else zero.
        columns: The compared vectors in blocks that are compared at once, [embedding, column] each; zeros fill up the
            last one.
        halves: Half the squared length of each [column], infinite for the zeros.
    """

    vectors: jax.Array
    lengths: jax.Array
    centre: jax.Array
    columns: tuple[jax.Array, ...]
    halves: tuple[jax.Array, ...]

    @property
    def block(self) -> int:
        """Columns that are compared at once."""
        return self.columns[0].shape[1]

    def compared(self, vectors: jax.Array, lengths: jax.Array) -> jax.Array:
        """Other vectors as they are compared with these, [q, embedding]."""
        return vectors / lengths[:, None] - self.centre


def lay_out(vectors: jax.Array, lengths: jax.Array, metric: Metric, block: int) -> Pool:
    """Lays vectors out, on the device where they are.

    Args:
        vectors: Finite [n, embedding].
        lengths: Positive [n]; ones for `"euclidean"`.
        metric: Which distance.
        block: Columns that are compared at once.

    Returns:
        The pool.
    """
    return Pool(vectors, lengths, *_lay_out(vectors, lengths, centred=metric == "euclidean", block=block))


def square_block(n: int, k: int, memory: int) -> int:
    """Side of the square blocks in which all vectors are compared with all.

    Args:
        n: Vectors.
        k: Neighbours of each.
        memory: Bytes that inner products (4 each) and candidates (32 each) may take.

    Returns:
        A multiple of `CHUNK`.

    Raises:
        ValueError: The memory is too little.
    """
    candidates = 32 * (k + 1) * CHUNK
    largest = int((math.sqrt(candidates**2 + 16 * memory) - candidates) / 8)
    return _even(n, min(largest, _SIDE), k, memory)


def wide_block(n: int, rows: int, k: int, memory: int) -> tuple[int, int]:
    """Sides of the blocks in which some rows are compared with all vectors.

    Candidates are picked once for each row of a block, so blocks are wide.

    Args:
        n: Vectors.
        rows: Rows that are asked for.
        k: Neighbours of each.
        memory: As for `square_block`.

    Returns:
        Rows and columns of a block; the latter a multiple of `CHUNK`.

    Raises:
        ValueError: The memory is too little.
    """
    candidates = 32 * (k + 1) * CHUNK
    height = max(1, min(rows, _ROWS, memory // (2 * candidates)))
    return height, _even(n, min((memory // height - candidates) // 4, _WIDTH), k, memory)


def _even(n: int, largest: int, k: int, memory: int) -> int:
    """The width of the fewest blocks that hold `n`."""
    if largest < CHUNK:
        raise ValueError(f"{memory} bytes are too few to search for {k} neighbours; pass at least {2**20 * (k + 1)}")
    return min(-(-math.ceil(n / math.ceil(n / largest)) // CHUNK) * CHUNK, largest // CHUNK * CHUNK)


def search_all(pool: Pool, k: int) -> jax.Array:
    """The nearest vectors of every vector but itself, in the order of the inner products.

    A block of pairs (a, b) serves both a's and b's neighbours, so that all pairs cost little more than half a product.

    Args:
        pool: Vectors, laid out with a `square_block`.
        k: Neighbours of each.

    Returns:
        Indices, int32 [n, k].
    """
    found = _nothing(len(pool.columns) * pool.block, k)
    blocks = list(zip(pool.columns, pool.halves, range(0, len(found[0]), pool.block), strict=True))
    for place, (rows, row_halves, row) in enumerate(blocks):
        for columns, halves, column in blocks[place:]:
            others = row_halves if column > row else None
            found = _search_block(found, rows, columns, others, halves, row, column, itself=True)
    return found[1][: len(pool.vectors)]


def search_rows(pool: Pool, rows: jax.Array, k: int, height: int) -> jax.Array:
    """The nearest vectors of some others, in the order of the inner products.

    Args:
        pool: Vectors, laid out with the width of a `wide_block`.
        rows: As `Pool.compared` makes them [q, embedding].
        k: Neighbours of each.
        height: Rows that are compared at once.

    Returns:
        Indices, int32 [q, k].
    """
    parts = []
    for start in range(0, len(rows), height):
        asked = rows[start : start + height].T
        found = _nothing(asked.shape[1], k)
        for place, (columns, halves) in enumerate(zip(pool.columns, pool.halves, strict=True)):
            found = _search_block(found, asked, columns, None, halves, 0, place * pool.block, itself=False)
        parts.append(found[1])
    return jnp.concatenate(parts)


@partial(jax.jit, static_argnames="batch")
def measure(pool: Pool, rows: jax.Array, index: jax.Array, *, batch: int) -> tuple[jax.Array, jax.Array]:
    """Squared distances of those found, computed from differences, and all in order: nearest first, ties by index.

    Args:
        pool: Vectors.
        rows: As `Pool.compared` makes them [q, embedding].
        index: Those found for each, int [q, k].
        batch: Rows done at once.

    Returns:
        Indices, int32 [q, k], and squared distances [q, k].
    """

    def one(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vector, near = row
        squares = jnp.sum(jnp.square(pool.compared(pool.vectors[near], pool.lengths[near]) - vector), axis=1)
        order = jnp.lexsort((near, squares))
        return near[order], squares[order]

    return jax.lax.map(one, (rows, index), batch_size=batch)


@partial(jax.jit, static_argnames=("centred", "block"))
def _lay_out(
    vectors: jax.Array, lengths: jax.Array, *, centred: bool, block: int
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    rows = vectors / lengths[:, None]
    centre = rows.mean(axis=0) if centred else jnp.zeros(rows.shape[1])
    columns, halves = [], []
    for start in range(0, len(rows), block):
        part = rows[start : start + block] - centre
        missing = block - len(part)
        columns.append(jnp.pad(part.T, ((0, 0), (0, missing))))
        halves.append(jnp.pad(jnp.sum(jnp.square(part), axis=1) / 2, (0, missing), constant_values=jnp.inf))
    return centre, tuple(columns), tuple(halves)


def _nothing(rows: int, k: int) -> tuple[jax.Array, jax.Array]:
    return jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)


@partial(jax.jit, static_argnames="itself", donate_argnums=0)
def _search_block(
    found: tuple[jax.Array, jax.Array],
    rows: jax.Array,
    columns: jax.Array,
    row_halves: jax.Array | None,
    halves: jax.Array,
    row: int,
    column: int,
    *,
    itself: bool,
) -> tuple[jax.Array, jax.Array]:
    """Lets the pairs of one block compete with those found so far, whose column indices are all lower.

    For a fixed row a, the nearest b has the largest a·b - |b|²/2; for unit vectors the second term is the same for all.
    The `k` + 1 chunks of a block with the largest maxima contain its `k` + 1 best candidates, so only those are sorted.
    With `row_halves` the rows compete for the columns as well.
    """
    sizes = rows.shape[1], columns.shape[1]
    products = jnp.matmul(rows.T, columns, precision="highest")
    maxima = (products - halves).reshape(sizes[0], -1, CHUNK).max(axis=2)
    place, chunk = jnp.arange(sizes[0])[:, None, None], _best_chunks(maxima, found[0].shape[1])
    picked = products.reshape(sizes[0], -1, CHUNK)[place, chunk[:, :, None], jnp.arange(CHUNK)]
    found = _merge(found, picked, chunk, halves, row, column, itself)
    if row_halves is not None:
        maxima = (products - row_halves[:, None]).reshape(-1, CHUNK, sizes[1]).max(axis=1).T
        place, chunk = jnp.arange(sizes[1])[:, None, None], _best_chunks(maxima, found[0].shape[1])
        picked = products.reshape(-1, CHUNK, sizes[1])[chunk[:, :, None], jnp.arange(CHUNK), place]
        found = _merge(found, picked, chunk, row_halves, column, row, itself)
    return found


def _best_chunks(maxima: jax.Array, k: int) -> jax.Array:
    """Which chunks can contain the k best and the row itself, in order, int [row, k + 1 or all]."""
    _, chunk = jax.lax.top_k(maxima, min(k + 1, maxima.shape[1]))
    return jnp.sort(chunk, axis=1)


def _merge(
    found: tuple[jax.Array, jax.Array],
    picked: jax.Array,
    chunk: jax.Array,
    half: jax.Array,
    row: int,
    column: int,
    itself: bool,
) -> tuple[jax.Array, jax.Array]:
    """Replaces the results of some rows by the best of them and of the picked candidates, the former first."""
    start = (row, 0)
    values, indices = (jax.lax.dynamic_slice(part, start, (len(picked), part.shape[1])) for part in found)
    local = (chunk[:, :, None] * CHUNK + jnp.arange(CHUNK)).reshape(len(picked), -1)
    scores = picked.reshape(len(picked), -1) - half[local]
    if itself:
        scores = jnp.where(local + column == (row + jnp.arange(len(picked)))[:, None], -jnp.inf, scores)
    scores = jnp.concatenate([values, scores], axis=1)
    values, place = jax.lax.top_k(scores, values.shape[1])
    indices = jnp.take_along_axis(jnp.concatenate([indices, local + column], axis=1), place, axis=1)
    update = jax.lax.dynamic_update_slice
    return update(found[0], values, start), update(found[1], indices, start)

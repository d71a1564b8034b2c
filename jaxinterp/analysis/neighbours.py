"""Nearest neighbours in a whole vocabulary, exactly, and the weights that rebuild a vector from its neighbours."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Metric = Literal["cosine", "euclidean"]

_CHUNK = 16
"""Candidates whose maximum stands for them when a block is searched."""
_MEMORY = 2**28
"""Bytes of working memory by default; with more, blocks grow and nothing gets faster."""


def nearest_neighbours(
    vectors: np.ndarray,
    k: int,
    metric: Metric = "cosine",
    queries: np.ndarray | None = None,
    *,
    memory: int = _MEMORY,
) -> tuple[np.ndarray, np.ndarray]:
    r"""The `k` nearest vectors of each vector, or of each query, by comparing all pairs.

    A vector is not its own neighbour. Inner products are taken block by block, and a block of pairs (a, b) serves both
    a's and b's neighbours, so that all pairs cost little more than half a matrix product. The `k` + 1 chunks of a block
    with the largest maxima contain its `k` + 1 best candidates (itself among them), so only those are sorted.

    Exact means: ordered by inner products in float32 (of vectors centred first, for `"euclidean"`), so that candidates
    may change places whose distances differ by less than rounding. The distances of those found are computed from
    differences: they are 0 for equal vectors, and ties are in the order of the index.

    Args:
        vectors: [n, embedding].
        k: Neighbours of each, less than `n` (or at most `n` with `queries`).
        metric: `"cosine"` distance is 1 minus the cosine, `"euclidean"` the length of the difference.
        queries: Vectors whose neighbours are looked for, [queries, embedding]; none of the `vectors` is left out then.
            By default the `vectors` themselves.
        memory: Bytes that the search may take besides three copies of the vectors and two of the result.

    Returns:
        Indices into `vectors`, int32 [n or queries, k], nearest first, and their distances, float32 of the same shape.

    Raises:
        ValueError: There are not `k` other vectors, a vector is not finite or, for `"cosine"`, zero, shapes do not fit,
            or `memory` is too little.

    >>> index, distance = nearest_neighbours(np.array([[0.0], [1.0], [3.0]]), 1, "euclidean")
    >>> index[:, 0].tolist(), distance[:, 0].tolist()
    ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"there is no metric {metric!r}; choose 'cosine' or 'euclidean'")
    among = _rows(vectors, metric, "vectors")
    asked = among if queries is None else _rows(queries, metric, "queries")
    if asked.shape[1] != among.shape[1]:
        raise ValueError(f"queries have width {asked.shape[1]} and vectors {among.shape[1]}; give the same width")
    limit = len(among) - (queries is None)
    if not 0 < k <= limit:
        raise ValueError(f"k is {k}, but there are {limit} vectors to choose from; pass 1 <= k <= {limit}")
    if metric == "euclidean":
        centre = among.mean(axis=0)
        among, asked = among - centre, asked - centre
    among, asked = jnp.asarray(among), jnp.asarray(asked)
    column_block = _block(len(among), k, memory)
    row_block = column_block if queries is None else min(column_block, _block(len(asked), k, memory))
    columns = _pad(among, column_block)
    rows = columns if queries is None else _pad(asked, row_block)
    halves = jnp.full(columns.shape[1], jnp.inf).at[: len(among)].set(jnp.sum(jnp.square(among), axis=1) / 2)
    found = jnp.full((rows.shape[1], k), -jnp.inf), jnp.zeros((rows.shape[1], k), jnp.int32)
    search = partial(_search_block, sizes=(row_block, column_block), itself=queries is None)
    for row in range(0, rows.shape[1], row_block):
        for column in range(row if queries is None else 0, columns.shape[1], column_block):
            mirrored = queries is None and column > row
            found = search(found, rows, columns, halves, row, column, mirrored=mirrored)
    index = found[1][: len(asked)]
    batch = max(1, memory // (16 * k * among.shape[1]))
    index, squares = _measure(asked, among, index, batch=min(batch, len(asked)))
    distance = squares / 2 if metric == "cosine" else jnp.sqrt(squares)
    return np.asarray(index), np.asarray(distance)


def locally_linear_weights(
    vectors: np.ndarray, neighbours: np.ndarray, *, regularisation: float = 1e-3, memory: int = _MEMORY
) -> np.ndarray:
    r"""Weights that rebuild each vector from its neighbours, summing to one (Roweis and Saul 2000).

    For vector $x_i$ with neighbours $x_j$ they minimise $\lVert x_i - \sum_j w_{ij} x_j \rVert^2$ plus a penalty: with
    $G$ the Gram matrix of $x_j - x_i$, they are the solution of $(G + \rho\, \mathrm{tr}(G) I) w = 1$, scaled to sum to
    one, with $\rho$ = `regularisation`; where all neighbours equal the vector, $\rho I$ alone is added. This is
    scikit-learn's convention.

    Args:
        vectors: [n, embedding].
        neighbours: Indices of each vector's neighbours, int [n, k], as `nearest_neighbours` gives them.
        regularisation: $\rho > 0$; needed where there are more neighbours than dimensions they span.
        memory: Bytes that this may take besides the vectors and the result.

    Returns:
        Float32 [n, k].

    Raises:
        ValueError: Shapes do not fit, an index is outside the vectors, or `regularisation` is not positive.

    >>> points = np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 4.0]])
    >>> [round(float(weight), 2) for weight in locally_linear_weights(points, np.array([[1, 2], [0, 2], [0, 1]]))[0]]
    [0.75, 0.25]
    """
    table, chosen = _rows(vectors, "euclidean", "vectors"), np.asarray(neighbours)
    if (
        chosen.ndim != 2
        or len(chosen) != len(table)
        or not chosen.shape[1]
        or not np.issubdtype(chosen.dtype, np.integer)
    ):
        raise ValueError(f"neighbours have shape {chosen.shape} for {len(table)} vectors; pass integers [n, k]")
    if chosen.min() < 0 or chosen.max() >= len(table):
        raise ValueError(
            f"neighbours reach from {chosen.min()} to {chosen.max()}; pass indices of {len(table)} vectors"
        )
    if not (regularisation > 0 and math.isfinite(regularisation)):
        raise ValueError(f"regularisation is {regularisation}; pass a positive number such as 1e-3")
    batch = max(1, memory // (12 * chosen.shape[1] * (table.shape[1] + 4 * chosen.shape[1])))
    weights = _rebuild(jnp.asarray(table), jnp.asarray(chosen, jnp.int32), regularisation, batch=min(batch, len(table)))
    return np.asarray(weights)


def _rows(table: np.ndarray, metric: Metric, what: str) -> np.ndarray:
    """Checked float32 rows, of length one for the cosine."""
    rows = np.asarray(table, np.float32)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"{what} have shape {rows.shape}; pass [n, embedding]")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    for wrong, problem in (
        (~np.isfinite(lengths[:, 0]), "not finite"),
        (lengths[:, 0] == 0, "zero and has no direction"),
    ):
        if wrong.any() and (metric == "cosine" or problem == "not finite"):
            raise ValueError(
                f"row {int(np.argmax(wrong))} of {wrong.sum()} such rows of the {what} is {problem}; leave them out"
            )
    return rows / lengths if metric == "cosine" else rows


def _block(n: int, k: int, memory: int) -> int:
    """Rows of a square block whose inner products (4 bytes each) and candidates (32 bytes each) fit into `memory`."""
    candidates = 32 * (k + 1) * _CHUNK
    largest = int((math.sqrt(candidates**2 + 16 * memory) - candidates) / 8)
    if largest < _CHUNK:
        raise ValueError(f"{memory} bytes are too few to search for {k} neighbours; pass at least {2**20 * (k + 1)}")
    return min(-(-math.ceil(n / math.ceil(n / largest)) // _CHUNK) * _CHUNK, largest // _CHUNK * _CHUNK)


@partial(jax.jit, static_argnames="block")
def _pad(rows: jax.Array, block: int) -> jax.Array:
    """Columns [embedding, n], with zeros up to a whole number of blocks."""
    return jnp.pad(rows.T, ((0, 0), (0, -len(rows) % block)))


@partial(jax.jit, static_argnames=("sizes", "itself", "mirrored"), donate_argnums=0)
def _search_block(
    found: tuple[jax.Array, jax.Array],
    rows: jax.Array,
    columns: jax.Array,
    halves: jax.Array,
    row: int,
    column: int,
    *,
    sizes: tuple[int, int],
    itself: bool,
    mirrored: bool,
) -> tuple[jax.Array, jax.Array]:
    """Lets the pairs of one block compete with those found so far, whose column indices are all lower.

    For a fixed row a, the nearest b has the largest a·b - |b|²/2; for unit vectors the second term is the same for all.
    """
    left = jax.lax.dynamic_slice_in_dim(rows, row, sizes[0], axis=1)
    right = jax.lax.dynamic_slice_in_dim(columns, column, sizes[1], axis=1)
    products = jnp.matmul(left.T, right, precision="highest")
    half = jax.lax.dynamic_slice_in_dim(halves, column, sizes[1])
    maxima = (products - half).reshape(sizes[0], -1, _CHUNK).max(axis=2)
    place, chunk = jnp.arange(sizes[0])[:, None, None], _best_chunks(maxima, found[0].shape[1])
    picked = products.reshape(sizes[0], -1, _CHUNK)[place, chunk[:, :, None], jnp.arange(_CHUNK)]
    found = _merge(found, picked, chunk, half, row, column, itself)
    if mirrored:
        half = jax.lax.dynamic_slice_in_dim(halves, row, sizes[0])
        maxima = (products - half[:, None]).reshape(-1, _CHUNK, sizes[1]).max(axis=1).T
        place, chunk = jnp.arange(sizes[1])[:, None, None], _best_chunks(maxima, found[0].shape[1])
        picked = products.reshape(-1, _CHUNK, sizes[1])[chunk[:, :, None], jnp.arange(_CHUNK), place]
        found = _merge(found, picked, chunk, half, column, row, itself)
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
    local = (chunk[:, :, None] * _CHUNK + jnp.arange(_CHUNK)).reshape(len(picked), -1)
    scores = picked.reshape(len(picked), -1) - half[local]
    if itself:
        scores = jnp.where(local + column == (row + jnp.arange(len(picked)))[:, None], -jnp.inf, scores)
    scores = jnp.concatenate([values, scores], axis=1)
    values, place = jax.lax.top_k(scores, values.shape[1])
    indices = jnp.take_along_axis(jnp.concatenate([indices, local + column], axis=1), place, axis=1)
    update = jax.lax.dynamic_update_slice
    return update(found[0], values, start), update(found[1], indices, start)


@partial(jax.jit, static_argnames="batch")
def _measure(asked: jax.Array, among: jax.Array, index: jax.Array, *, batch: int) -> tuple[jax.Array, jax.Array]:
    """Squared distances of those found, nearest first."""

    def one(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vector, near = row
        squares = jnp.sum(jnp.square(among[near] - vector), axis=1)
        order = jnp.lexsort((near, squares))
        return near[order], squares[order]

    return jax.lax.map(one, (asked, index), batch_size=batch)


@partial(jax.jit, static_argnames="batch")
def _rebuild(vectors: jax.Array, neighbours: jax.Array, regularisation: float, *, batch: int) -> jax.Array:
    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        vector, near = row
        away = vectors[near] - vector
        gram = jnp.matmul(away, away.T, precision="highest")
        trace = jnp.trace(gram)
        gram += jnp.eye(len(near)) * jnp.where(trace > 0, regularisation * trace, regularisation)
        weights = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram), jnp.ones(len(near)))
        return weights / weights.sum()

    return jax.lax.map(one, (vectors, neighbours), batch_size=batch)

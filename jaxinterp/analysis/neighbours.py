"""Nearest neighbours in a whole vocabulary, exactly, and the weights that rebuild a vector from its neighbours."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.analysis import neighbour_search
from jaxinterp.analysis.neighbour_search import Metric, Pool

_MEMORY = 2**28
"""Bytes of working memory by default; with more, blocks grow and nothing gets faster."""
_AT_ONCE = 256
"""Vectors that are rebuilt at once: what they take stays in the caches."""


def nearest_neighbours(
    vectors: np.ndarray,
    k: int,
    metric: Metric = "cosine",
    queries: np.ndarray | None = None,
    *,
    rows: np.ndarray | None = None,
    memory: int = _MEMORY,
) -> tuple[np.ndarray, np.ndarray]:
    r"""The `k` nearest vectors of each vector, of some of them, or of each query, by comparing all pairs.

    A vector is not its own neighbour. Inner products are taken block by block; where all vectors are asked for, a block
    of pairs (a, b) serves both a's and b's neighbours, so that all pairs cost little more than half a matrix product.

    Exact means: ordered by inner products in float32 (of vectors centred first, for `"euclidean"`), so that candidates
    may change places whose distances differ by less than rounding. The distances of those found are computed from
    differences: they are 0 for equal vectors, and ties are in the order of the index.

    Args:
        vectors: [n, embedding].
        k: Neighbours of each, less than `n` (or at most `n` with `queries`).
        metric: `"cosine"` distance is 1 minus the cosine, `"euclidean"` the length of the difference.
        queries: Vectors whose neighbours are looked for, [queries, embedding]; none of the `vectors` is left out then.
        rows: Which of the `vectors` are asked for, int [rows]; by default, and without `queries`, all.
        memory: Bytes that the search may take besides three copies of the vectors and two of the result.

    Returns:
        Indices into `vectors`, int32 [n, rows or queries, k], nearest first, and their distances, float32 of the same
        shape.

    Raises:
        ValueError: There are not `k` other vectors, a vector is not finite or, for `"cosine"`, zero, shapes do not fit,
            or `memory` is too little.

    >>> index, distance = nearest_neighbours(np.array([[0.0], [1.0], [3.0]]), 1, "euclidean")
    >>> index[:, 0].tolist(), distance[:, 0].tolist()
    ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"there is no metric {metric!r}; choose 'cosine' or 'euclidean'")
    if queries is not None and rows is not None:
        raise ValueError("both queries and rows were given; rows are among the vectors, queries are others")
    among, lengths = _checked(vectors, metric, "vectors")
    check_count(k, len(among) - (queries is None))
    if queries is not None:
        asked, asked_lengths = _checked(queries, metric, "queries")
        if asked.shape[1] != among.shape[1]:
            raise ValueError(f"queries have width {asked.shape[1]} and vectors {among.shape[1]}; give the same width")
        height, width = neighbour_search.wide_block(len(among), len(asked), k, memory)
        pool = neighbour_search.lay_out(among, lengths, metric, width)
        return _find(pool, pool.compared(asked, asked_lengths), k, metric, height, memory)
    if rows is not None:
        return search(lay_out(among, metric, k, memory=memory), check_rows(rows, len(among)), k, metric, memory=memory)
    pool = neighbour_search.lay_out(among, lengths, metric, neighbour_search.square_block(len(among), k, memory))
    return _order(pool, pool.compared(among, lengths), neighbour_search.search_all(pool, k), metric, memory)


def lay_out(vectors: Any, metric: Metric, k: int, *, memory: int = _MEMORY) -> Pool:
    """Lays vectors out for `search`, once for many searches.

    Args:
        vectors: [n, embedding]; a JAX array stays on its device.
        metric: As for `nearest_neighbours`.
        k: The most neighbours that will be searched for.
        memory: As for `nearest_neighbours`.

    Returns:
        The vectors, ready to be searched.

    Raises:
        ValueError: A vector is not finite or, for `"cosine"`, zero; or `memory` is too little.
    """
    among, lengths = _checked(vectors, metric, "vectors")
    _, width = neighbour_search.wide_block(len(among), len(among), k + 1, memory)
    return neighbour_search.lay_out(among, lengths, metric, width)


def search(
    pool: Pool, rows: np.ndarray, k: int, metric: Metric, *, memory: int = _MEMORY
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest of the vectors for some of them, each left out of its own.

    Args:
        pool: As `lay_out` made it, for the same metric, memory and at least this `k`.
        rows: Indices of vectors, int [rows].
        k: Neighbours of each.
        metric: As for `nearest_neighbours`.
        memory: As for `nearest_neighbours`.

    Returns:
        Indices and distances, as from `nearest_neighbours`.
    """
    chosen = jnp.asarray(rows, jnp.int32)
    height, _ = neighbour_search.wide_block(len(pool.vectors), len(rows), k + 1, memory)
    asked = pool.compared(pool.vectors[chosen], pool.lengths[chosen])
    index, distance = _find(pool, asked, k + 1, metric, height, memory)
    others = index != np.asarray(rows)[:, None]
    others[others.all(axis=1), -1] = False  # a vector with k equal ones may be missing from its own list
    return index[others].reshape(-1, k), distance[others].reshape(-1, k)


def _find(
    pool: Pool, asked: jax.Array, k: int, metric: Metric, height: int, memory: int
) -> tuple[np.ndarray, np.ndarray]:
    return _order(pool, asked, neighbour_search.search_rows(pool, asked, k, height), metric, memory)


def _order(
    pool: Pool, asked: jax.Array, index: jax.Array, metric: Metric, memory: int
) -> tuple[np.ndarray, np.ndarray]:
    batch = max(1, memory // (16 * index.shape[1] * asked.shape[1]))
    index, squares = neighbour_search.measure(pool, asked, index, batch=min(batch, len(asked)))
    return np.asarray(index), np.asarray(squares / 2 if metric == "cosine" else jnp.sqrt(squares))


def locally_linear_weights(
    vectors: Any,
    neighbours: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    regularisation: float = 1e-3,
    memory: int = _MEMORY,
) -> np.ndarray:
    r"""Weights that rebuild each vector from its neighbours, summing to one (Roweis and Saul 2000).

    For vector $x_i$ with neighbours $x_j$ they minimise $\lVert x_i - \sum_j w_{ij} x_j \rVert^2$ plus a penalty: with
    $G$ the Gram matrix of $x_j - x_i$, they are the solution of $(G + \rho\, \mathrm{tr}(G) I) w = 1$, scaled to sum to
    one, with $\rho$ = `regularisation`; where all neighbours equal the vector, $\rho I$ alone is added. This is
    scikit-learn's convention. The system is made and solved in float64 (float32 on a TPU, which has no other), since
    rounding is amplified by up to $k/\rho$.

    Args:
        vectors: [n, embedding]; a JAX array stays on its device.
        neighbours: Indices of each vector's neighbours, int [n or rows, k], as `nearest_neighbours` gives them.
        rows: Which of the vectors are rebuilt, int [rows]; by default all.
        regularisation: $\rho > 0$; needed where there are more neighbours than dimensions they span.
        memory: Bytes that this may take besides the vectors and the result.

    Returns:
        Float32 [n or rows, k].

    Raises:
        ValueError: Shapes do not fit, an index is outside the vectors, or `regularisation` is not positive.

    >>> points = np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 4.0]])
    >>> [round(float(weight), 2) for weight in locally_linear_weights(points, np.array([[1, 2], [0, 2], [0, 1]]))[0]]
    [0.75, 0.25]
    """
    table, chosen = _checked(vectors, "euclidean", "vectors")[0], np.asarray(neighbours)
    rebuilt = np.arange(len(table)) if rows is None else check_rows(rows, len(table))
    if (
        chosen.ndim != 2
        or len(chosen) != len(rebuilt)
        or not chosen.shape[1]
        or not np.issubdtype(chosen.dtype, np.integer)
    ):
        raise ValueError(f"neighbours have shape {chosen.shape} for {len(rebuilt)} vectors; pass integers [n, k]")
    if chosen.min() < 0 or chosen.max() >= len(table):
        raise ValueError(
            f"neighbours reach from {chosen.min()} to {chosen.max()}; pass indices of {len(table)} vectors"
        )
    if not (regularisation > 0 and math.isfinite(regularisation)):
        raise ValueError(f"regularisation is {regularisation}; pass a positive number such as 1e-3")
    return rebuild(table, rebuilt, chosen, regularisation, memory=memory)


def rebuild(
    vectors: jax.Array, rows: np.ndarray, neighbours: np.ndarray, regularisation: float, *, memory: int = _MEMORY
) -> np.ndarray:
    """What `locally_linear_weights` computes, of arguments that were checked before.

    Args:
        vectors: Float32 [n, embedding], on the device that computes.
        rows: Int [rows].
        neighbours: Int [rows, k].
        regularisation: Positive.
        memory: As for `locally_linear_weights`.

    Returns:
        Float32 [rows, k].
    """
    batch = max(1, memory // (20 * neighbours.shape[1] * (vectors.shape[1] + 4 * neighbours.shape[1])))
    batch = min(batch, _AT_ONCE, len(rows))
    indices = jnp.asarray(rows, jnp.int32), jnp.asarray(neighbours, jnp.int32)
    with jax.enable_x64(all(device.platform != "tpu" for device in vectors.devices())):
        return np.asarray(_rebuild(vectors, *indices, regularisation, batch=batch))


def check_count(k: int, limit: int) -> None:
    """Refuses more neighbours than there are."""
    if not 0 < k <= limit:
        raise ValueError(f"k is {k}, but there are {limit} vectors to choose from; pass 1 <= k <= {limit}")


def check_rows(rows: np.ndarray, n: int) -> np.ndarray:
    """Refuses what are not indices of `n` vectors."""
    chosen = np.asarray(rows)
    if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"rows have shape {chosen.shape} and dtype {chosen.dtype}; pass indices, int [rows]")
    if chosen.min() < 0 or chosen.max() >= n:
        raise ValueError(f"rows reach from {chosen.min()} to {chosen.max()}; pass indices of {n} vectors")
    return chosen


def _checked(table: Any, metric: Metric, what: str) -> tuple[jax.Array, jax.Array]:
    """Float32 rows, and what each is divided by: its length for the cosine, else one."""
    rows = jnp.asarray(table, jnp.float32)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"{what} have shape {rows.shape}; pass [n, embedding]")
    plain = np.asarray(rows)
    lengths = np.sqrt(np.einsum("nd,nd->n", plain, plain))  # of a row the same whatever else is in the table
    for wrong, problem in (
        (~np.isfinite(lengths), "not finite"),
        (lengths == 0, "zero and has no direction"),
    ):
        if wrong.any() and (metric == "cosine" or problem == "not finite"):
            raise ValueError(
                f"row {int(np.argmax(wrong))} of {wrong.sum()} such rows of the {what} is {problem}; leave them out"
            )
    return rows, jnp.asarray(lengths if metric == "cosine" else np.ones_like(lengths))


@partial(jax.jit, static_argnames="batch")
def _rebuild(
    vectors: jax.Array, rows: jax.Array, neighbours: jax.Array, regularisation: float, *, batch: int
) -> jax.Array:
    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, near = row
        away = (vectors[near] - vectors[own]).astype(jnp.result_type(float))
        gram = jnp.matmul(away, away.T, precision="highest")
        trace = jnp.trace(gram)
        gram += jnp.eye(len(near)) * jnp.where(trace > 0, regularisation * trace, regularisation)
        weights = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram), jnp.ones(len(near)))
        return (weights / weights.sum()).astype(jnp.float32)

    return jax.lax.map(one, (rows, neighbours), batch_size=batch)

"""How many dimensions the neighbours of a token spread over, and how many those of all tokens.

Two very different numbers. The first counts the principal components of a neighbourhood until they explain most of its
variance: noise in every direction counts too, so it is in the hundreds for a table of that width. The second looks only
at the two nearest neighbours, at the smallest scale that the table has: it is about ten.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_MEMORY = 2**28
"""Bytes of working memory by default."""


@dataclasses.dataclass(frozen=True)
class LocalDimension:
    """Two measures of the same neighbourhoods.

    Attributes:
        components: Principal components that explain the asked share of variance, int32 [n].
        participation: Participation ratio of the variances, float32 [n].
    """

    components: np.ndarray
    participation: np.ndarray


def local_dimension(
    vectors: np.ndarray, neighbours: np.ndarray, *, threshold: float = 0.95, memory: int = _MEMORY
) -> LocalDimension:
    r"""Dimension of the neighbourhood of each token, from the principal components of its neighbours.

    With $\lambda_1 \ge \lambda_2 \ge \dots$ the variances of the neighbours around their own mean, `components` is the
    smallest $m$ with $\sum_{i \le m} \lambda_i \ge \tau \sum_i \lambda_i$, $\tau$ = `threshold`, and `participation` is
    $(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2$. Both are at most `min(k - 1, embedding)`, and 0 where all neighbours
    are equal. Only eigenvalues are computed, of the smaller of the two Gram matrices, in float32: a count may differ
    by one from that of float64 where $\tau$ is met to six digits.

    Args:
        vectors: [n, embedding].
        neighbours: Indices into `vectors` of the neighbours of each token, int [token, k], k at least 2, as
            `jaxinterp.analysis.neighbours.nearest_neighbours` gives them: the token itself is not among them.
        threshold: Share of the variance to be explained, in (0, 1].
        memory: Bytes that this may take besides the vectors and the result.

    Returns:
        The two measures of each token.

    Raises:
        ValueError: Shapes do not fit, an index is outside the vectors, or `threshold` is not in (0, 1].

    >>> corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    >>> found = local_dimension(corners, np.array([[0, 1, 2, 3], [0, 1, 0, 1]]))
    >>> found.components.tolist(), found.participation.tolist()
    ([2, 1], [2.0, 1.0])
    """
    table, near = np.asarray(vectors, np.float32), np.asarray(neighbours)
    if table.ndim != 2 or near.ndim != 2 or near.shape[1] < 2 or not np.issubdtype(near.dtype, np.integer):
        raise ValueError(
            f"vectors have shape {table.shape} and neighbours {near.shape}; pass [n, embedding] and integers "
            "[token, k], with at least two neighbours"
        )
    if near.size and (near.min() < 0 or near.max() >= len(table)):
        raise ValueError(f"neighbours reach from {near.min()} to {near.max()}; pass indices of {len(table)} vectors")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; pass a share of the variance in (0, 1]")
    if not len(near):
        return LocalDimension(np.zeros(0, np.int32), np.zeros(0, np.float32))
    k, width = near.shape[1], table.shape[1]
    batch = max(1, min(len(near), memory // (4 * (2 * k * width + 3 * min(k, width) ** 2))))
    found = _spread(jnp.asarray(table), jnp.asarray(near, jnp.int32), threshold, batch=batch)
    return LocalDimension(*map(np.asarray, found))


@partial(jax.jit, static_argnames="batch")
def _spread(table: jax.Array, neighbours: jax.Array, threshold: float, *, batch: int) -> tuple[jax.Array, jax.Array]:
    def one(near: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = table[near]
        rows = rows - rows.mean(axis=0)
        if rows.shape[0] < rows.shape[1]:
            rows = rows.T
        gram = jnp.matmul(rows.T, rows, precision="highest")
        variances = jnp.maximum(jnp.linalg.eigvalsh(gram)[::-1], 0)
        explained = jnp.cumsum(variances)
        total = explained[-1]
        components = jnp.sum(explained < threshold * total) + 1
        participation = jnp.square(total) / jnp.sum(jnp.square(variances))
        return jnp.where(total > 0, components, 0).astype(jnp.int32), jnp.where(total > 0, participation, 0)

    return jax.lax.map(one, neighbours, batch_size=batch)


def two_nearest_dimension(first: np.ndarray, second: np.ndarray, *, discarded: float = 0.1) -> float:
    r"""Dimension of a whole table from the distances to the two nearest neighbours (TwoNN, Facco et al. 2017).

    Where tokens lie evenly on a manifold of dimension $d$, the ratio $\mu$ of the second distance to the first has
    $P(\mu > x) = x^{-d}$: so $d$ is the slope of $-\log(1 - F(\mu))$ over $\log \mu$ through the origin, $F$ the share
    of tokens with a ratio up to $\mu$.

    Args:
        first: Distance of each token to its nearest neighbour, [token].
        second: Distance to the next, [token].
        discarded: Share of tokens, those with the largest ratios, that are left out of the fit.

    Returns:
        The dimension. Tokens equal to their nearest neighbour are left out.

    Raises:
        ValueError: Fewer than two tokens are left, or all of them have two neighbours at the same distance.

    >>> line = np.random.default_rng(0).uniform(size=4000)
    >>> away = np.sort(np.abs(line[:, None] - line), axis=1)
    >>> round(two_nearest_dimension(away[:, 1], away[:, 2]))
    1
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    apart = first > 0
    ratios = np.sort(second[apart] / first[apart])
    kept = int(len(ratios) * (1 - discarded))
    if kept < 2 or ratios[kept - 1] <= 1:
        raise ValueError(
            f"{len(first)} tokens leave {kept} with two different neighbours; pass more tokens, and each only once"
        )
    x = np.log(ratios[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / len(ratios))
    return float(x @ y / (x @ x))


def gaussian_table(table: np.ndarray, rows: int, seed: int, *, covariance: bool) -> np.ndarray:
    """Points without any structure but, if asked, the mean and the covariance of a table.

    Args:
        table: [n, embedding].
        rows: How many points.
        seed: Of the random numbers.
        covariance: Whether the points have the table's mean and covariance; else they are standard normal.

    Returns:
        Float32 [rows, embedding].
    """
    points = np.random.default_rng(seed).standard_normal((rows, table.shape[1]), np.float32)
    if not covariance:
        return points
    mean = table.mean(axis=0, dtype=np.float64).astype(np.float32)
    away = table - mean
    values, directions = np.linalg.eigh((away.T @ away).astype(np.float64) / len(table))
    scale = (directions * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    return points @ scale.T + mean

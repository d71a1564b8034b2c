"""Other measures of how alike two spaces of the same tokens are: debiased linear CKA, Procrustes, shared neighbours.

With K = X X^T and L = Y Y^T, both with a zero diagonal, and m tokens,

    HSIC(K, L) = [tr(K L) + (1^T K 1)(1^T L 1) / ((m - 1)(m - 2)) - 2 / (m - 2) 1^T K L 1] / (m (m - 3))
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

Every term follows from sums over tokens, such as X^T Y and sum_i |x_i|^2 y_i, so no matrix [token, token] is formed;
and sums of some tokens are those of all minus those of the others, which makes the jackknife cheap.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy

from jaxinterp.analysis.neighbours import Metric, nearest_neighbours

Sums = dict[str, np.ndarray]

CKA, PROCRUSTES = "debiased CKA", "Procrustes distance"


@dataclasses.dataclass(frozen=True)
class Similarity:
    """A measure of two spaces, its interval and its null.

    Attributes:
        value: The number.
        low: Lower end of the 95 % interval over tokens.
        high: Upper end.
        null: The number for relabelled tokens [relabelling].
    """

    value: float
    low: float
    high: float
    null: np.ndarray


def debiased_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Centred kernel alignment of two linear kernels, by the estimator without bias (Song et al. 2012).

    Args:
        first: Rows of one table [token, embedding].
        second: Rows of the other, the same tokens in the same order; the width may differ.

    Returns:
        1 for a rotated and scaled copy, around 0 for unrelated tables, and a little less or more by chance.

    Raises:
        ValueError: The numbers of rows differ, or there are fewer than four.
    """
    x, y = _centred(first, second)
    return _cka(_sums(x, y))


def procrustes_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance of two tables after the best rotation, both centred and scaled to norm one.

    The narrower table is taken to have zeros in the dimensions it lacks.

    Args:
        first: Rows of one table [token, embedding].
        second: Rows of the other, the same tokens in the same order; the width may differ.

    Returns:
        From 0, a rotated and scaled copy, to the square root of 2.

    Raises:
        ValueError: As for `debiased_cka`.
    """
    x, y = _centred(first, second)
    return _procrustes(_sums(x, y))


def compare_spaces(
    first: np.ndarray, second: np.ndarray, *, relabellings: int, seed: int, groups: int = 20
) -> dict[str, Similarity]:
    """Both measures with intervals, by a jackknife that leaves out one group of tokens at a time, and with nulls.

    Args:
        first: Rows of one table [token, embedding].
        second: Rows of the other, the same tokens in the same order.
        relabellings: How often the tokens of one table are relabelled at random.
        seed: Seed of the groups and the relabellings.
        groups: Into how many groups tokens are dealt at random.

    Returns:
        `"debiased CKA"` and `"Procrustes distance"`.

    Raises:
        ValueError: As for `debiased_cka`, or a group would have all tokens.
    """
    x, y = _centred(first, second)
    if not 2 <= groups <= len(x) // 4:
        raise ValueError(f"{len(x)} tokens are dealt into {groups} groups; give at least four tokens for each of two")
    draw = np.random.default_rng(seed)
    dealt = np.array_split(draw.permutation(len(x)), groups)
    parts = [_sums(x[some], y[some]) for some in dealt]
    total = _sum(parts)
    left = [{name: total[name] - part[name] for name in total} for part in parts]
    nulls = []
    for _ in range(relabellings):
        order = draw.permutation(len(x))
        nulls.append(total | _cross(x, y[order]))
    found = {}
    for name, measure in ((CKA, _cka), (PROCRUSTES, _procrustes)):
        value, without = measure(total), np.array([measure(sums) for sums in left])
        error = np.sqrt((groups - 1) * np.mean((without - without.mean()) ** 2))
        reach = float(scipy.stats.t.ppf(0.975, groups - 1)) * float(error)
        found[name] = Similarity(value, value - reach, value + reach, np.array([measure(sums) for sums in nulls]))
    return found


def shared_neighbours(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which share of each token's neighbours is the same in two tables.

    Args:
        first: Neighbours in one table, int [token, k], none twice.
        second: In the other.

    Returns:
        Float64 [token], in [0, 1].

    >>> shared_neighbours(np.array([[1, 2], [0, 2]]), np.array([[2, 1], [3, 0]])).tolist()
    [1.0, 0.5]
    """
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


def neighbours_of(table: np.ndarray, tokens: np.ndarray, k: int, metric: Metric = "cosine") -> np.ndarray:
    """The `k` nearest others of some tokens among all.

    Args:
        table: Rows [token, embedding].
        tokens: Whose neighbours are wanted, int [asked].
        k: How many.
        metric: As in `nearest_neighbours`.

    Returns:
        Int [asked, k], nearest first.

    Raises:
        ValueError: As for `nearest_neighbours`.
    """
    if not 0 < k < len(table):
        raise ValueError(f"k is {k}, but a token has {len(table) - 1} others; pass 1 <= k <= {len(table) - 1}")
    index, _ = nearest_neighbours(table, k + 1, metric, table[tokens])
    itself = index == np.asarray(tokens)[:, None]
    itself[~itself.any(axis=1), -1] = True  # a copy of the row may have taken its place
    return index[~itself].reshape(len(index), k)


def _centred(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both tables centred (which changes neither measure, but keeps the sums exact) and of mean square length one."""
    if len(first) != len(second) or len(first) < 4:
        raise ValueError(f"the tables have {len(first)} and {len(second)} rows; give the same four or more tokens")
    tables = []
    for table in (first, second):
        rows = np.asarray(table, np.float32)
        rows = rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        size = np.sqrt(np.mean(np.square(rows).sum(axis=1), dtype=np.float64))
        if size == 0:
            raise ValueError("all rows of a table are equal; give a table with some spread")
        tables.append(rows / np.float32(size))
    return tables[0], tables[1]


def _cross(x: np.ndarray, y: np.ndarray) -> Sums:
    a, b = (np.square(rows, dtype=np.float64).sum(axis=1) for rows in (x, y))
    return {"xy": (x.T @ y).astype(np.float64), "xb": b @ x, "ya": a @ y, "ab": a @ b}


def _sums(x: np.ndarray, y: np.ndarray) -> Sums:
    a, b = (np.square(rows, dtype=np.float64).sum(axis=1) for rows in (x, y))
    own = {"n": np.float64(len(x)), "x": x.sum(axis=0, dtype=np.float64), "y": y.sum(axis=0, dtype=np.float64)}
    own |= {"a": a.sum(), "b": b.sum(), "aa": a @ a, "bb": b @ b, "xa": a @ x, "yb": b @ y}
    return own | {"xx": (x.T @ x).astype(np.float64), "yy": (y.T @ y).astype(np.float64)} | _cross(x, y)


def _sum(parts: list[Sums]) -> Sums:
    return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}


def _cka(sums: Sums) -> float:
    n = sums["n"]

    def hsic(one: str, other: str, diagonals: str, product: str, left: str, right: str) -> np.float64:
        s, t = sums[one], sums[other]
        lengths = {"x": sums["a"], "y": sums["b"]}
        ones = (s @ s - lengths[one]) * (t @ t - lengths[other])
        mixed = s @ sums[product] @ t - s @ sums[left] - t @ sums[right] + sums[diagonals]
        trace = np.sum(sums[product] ** 2) - sums[diagonals]
        return (trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed) / (n * (n - 3))

    between = hsic("x", "y", "ab", "xy", "xb", "ya")
    return float(between / np.sqrt(hsic("x", "x", "aa", "xx", "xa", "xa") * hsic("y", "y", "bb", "yy", "yb", "yb")))


def _procrustes(sums: Sums) -> float:
    x, y, n = sums["x"], sums["y"], sums["n"]
    strengths = np.linalg.svd(sums["xy"] - np.outer(x, y) / n, compute_uv=False)
    sizes = (sums["a"] - x @ x / n) * (sums["b"] - y @ y / n)
    return float(np.sqrt(max(0.0, 2 - 2 * strengths.sum() / np.sqrt(sizes))))

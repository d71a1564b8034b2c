"""Do two embedding tables put the same tokens near each other? Pearson's r of all pairwise cosines.

For unit rows A [token, d], B [token, e] and M = N(N - 1) ordered pairs of different tokens,

    Sx  = |A^T 1|^2 - N        Sy  = |B^T 1|^2 - N
    Sxx = |A^T A|_F^2 - N      Syy = |B^T B|_F^2 - N      Sxy = |A^T B|_F^2 - N
    r = (Sxy/M - Sx Sy/M^2) / sqrt((Sxx/M - Sx^2/M^2) (Syy/M - Sy^2/M^2))

is exactly the correlation of the two N x N cosine matrices off their diagonals, at O(N d e) cost. So the whole
shared vocabulary can be used, where the matrices themselves would take gigabytes.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from jaxinterp.analysis import pair_scores

_LOOK_UP = 40
"""Multiplications in the time of looking one number up out of order."""
_FEW = 4000
"""Tokens of which matrices of all pairs may be formed."""


def unit_rows(table: np.ndarray, *, centred: bool = False, without: int = 0) -> np.ndarray:
    """Rows of a table scaled to length one.

    Args:
        table: Embedding table [token, embedding].
        centred: Whether the mean row is subtracted first.
        without: How many leading principal directions of the (centred) rows are projected out before scaling.

    Returns:
        Float32 [token, embedding]; a row that is zero stays zero.
    """
    rows = np.asarray(table, np.float32)
    if centred:
        rows = rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    if without:
        _, directions = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        leading = directions[:, -without:].astype(np.float32)
        rows = rows - (rows @ leading) @ leading.T
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _correlation(total: Any, squares: Any, x: Any, y: Any, xx: Any, yy: Any, xy: Any) -> Any:
    """The formula above, for weighted tokens: |A^T w|^2, |A^T W A|_F^2 and so on in, r out, elementwise.

    A token drawn twice has weight two. The pairs between its copies are left out, since they would have cosine one in
    both tables: hence the sum of squared weights where the formula has N.
    """
    pairs = total**2 - squares
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = ((energy - squares) / pairs for energy in (x, y, xx, yy, xy))
    return (mean_xy - mean_x * mean_y) / np.sqrt((mean_xx - mean_x**2) * (mean_yy - mean_y**2))


def _energy(values: np.ndarray) -> np.float64:
    flat = values.ravel().astype(np.float64)
    return np.float64(flat @ flat)


def _energies(a: np.ndarray, b: np.ndarray) -> dict[str, np.float64]:
    parts = {"x": a.sum(axis=0), "y": b.sum(axis=0), "xx": a.T @ a, "yy": b.T @ b, "xy": a.T @ b}
    return {name: _energy(part) for name, part in parts.items()}


def cosine_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of all pairwise cosines of two tables, by the closed form.

    Args:
        a: Unit rows [token, embedding] of one table, as `unit_rows` makes them.
        b: Unit rows [token, embedding] of the other, the same tokens in the same order; widths may differ.

    Returns:
        r in [-1, 1].

    Raises:
        ValueError: The tables have different numbers of rows, or fewer than three.

    Examples:
        >>> rows = unit_rows(np.random.default_rng(0).normal(size=(50, 8)))
        >>> round(cosine_correlation(rows, rows[:, ::-1]), 6)
        1.0
    """
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"the tables have {len(a)} and {len(b)} rows; give the same three or more tokens in both")
    return float(_correlation(len(a), len(a), **_energies(a, b)))


def cosine_correlation_explicit(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of all pairwise cosines of two tables, from the cosine matrices themselves.

    Args:
        a: Unit rows [token, embedding].
        b: Unit rows [token, embedding], the same tokens in the same order.

    Returns:
        r in [-1, 1]; needs memory for two matrices [token, token].
    """
    upper = np.triu_indices(len(a), 1)
    return float(np.corrcoef((a @ a.T)[upper], (b @ b.T)[upper])[0, 1])


def permutation_null(
    a: np.ndarray, b: np.ndarray, *, permutations: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """The correlation after the tokens of one table are relabelled at random (Mantel's test).

    Args:
        a: Unit rows [token, embedding].
        b: Unit rows [token, embedding], the same tokens in the same order.
        permutations: How many relabellings.
        seed: Seed of the random numbers.
        groups: Int [token]; if given, tokens are only exchanged within their group, which keeps what the group
            explains (for example frequency) in the null.

    Returns:
        r of each relabelling, float64 [permutation].
    """
    if len(a) <= _FEW and len(a) * _LOOK_UP < a.shape[1] * b.shape[1]:
        pairs = (pair_scores.standardise(rows @ rows.T) for rows in (a, b))
        return pair_scores.permutation_null(*pairs, permutations=permutations, seed=seed, groups=groups)
    energies = _energies(a, b)
    orders = pair_scores.relabellings(len(b), permutations, seed, groups)
    products = (_energy(a.T @ b[order]) for order in orders)
    return np.array([_correlation(len(a), len(a), **energies | {"xy": product}) for product in products])


def random_table_null(
    first: np.ndarray, second: np.ndarray, *, tokens: int, draws: int, seed: int, **options: Any
) -> np.ndarray:
    """The correlation of random tables that share nothing but have the means and covariances of two given ones.

    Args:
        first: Rows [token, embedding].
        second: Rows [token, embedding].
        tokens: Rows of each random table.
        draws: How many pairs of random tables.
        seed: Seed of the random numbers.
        **options: As for `unit_rows`.

    Returns:
        r of each pair, float64 [draw].
    """
    draw = np.random.default_rng(seed)
    moments = []
    for table in (first, second):
        mean = table.mean(axis=0, dtype=np.float64)
        centred = table - mean.astype(np.float32)
        strengths, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(table))
        spread = directions * np.sqrt(np.maximum(strengths, 0))
        moments.append((mean.astype(np.float32), spread.T.astype(np.float32)))
    null = np.empty(draws)
    for index in range(draws):
        pair = [mean + draw.standard_normal((tokens, len(mean)), np.float32) @ spread for mean, spread in moments]
        null[index] = cosine_correlation(*(unit_rows(table, **options) for table in pair))
    return null


def quantisation_noise(table: np.ndarray, seed: int, *, block: int = 32, levels: int = 127) -> np.ndarray:
    """Noise as large as what rounding to 8 bits leaves (GGUF's Q8_0): uniform within one step of each block.

    Args:
        table: Rows [token, embedding].
        seed: Seed of the random numbers.
        block: Numbers of a row that share a step.
        levels: Steps from zero to the largest number of a block.

    Returns:
        Float32 [token, embedding], to be added.
    """
    rows = np.asarray(table, np.float32)
    padded = np.pad(np.abs(rows), ((0, 0), (0, -rows.shape[1] % block)))
    steps = padded.reshape(len(rows), -1, block).max(axis=2) / levels
    size = np.repeat(steps, block, axis=1)[:, : rows.shape[1]]
    return size * (np.random.default_rng(seed).random(rows.shape, np.float32) - np.float32(0.5))


def node_bootstrap(
    a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int, groups: int = 60, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the correlation over the choice of tokens.

    Pairs share tokens, so tokens are drawn, not pairs. They are dealt at random into equal groups, and groups are drawn
    with replacement. With `c` the times that each group was drawn, every sum in the formula is a quadratic form in `c`,
    such as `|sum_g c_g A_g^T A_g|_F^2`, whose coefficients are formed once: resamples cost nothing.

    Args:
        a: Unit rows [token, embedding].
        b: Unit rows [token, embedding], the same tokens in the same order.
        resamples: How many resamples.
        seed: Seed of the random numbers.
        groups: How many groups; at most the number of tokens.
        level: Coverage of the interval.

    Returns:
        (low, high), the percentile interval.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(a))
    a, b = a[order], b[order]
    edges = np.linspace(0, len(a), min(groups, len(a)) + 1).astype(int)
    dealt = [slice(first, last) for first, last in itertools.pairwise(edges)]
    counts = draw.multinomial(len(dealt), np.full(len(dealt), 1 / len(dealt)), size=resamples).astype(np.float64)

    def form(left: np.ndarray | None, right: np.ndarray) -> np.ndarray:
        sums = np.stack([right[rows].sum(axis=0) if left is None else left[rows].T @ right[rows] for rows in dealt])
        flat = sums.reshape(len(dealt), -1)
        return np.einsum("rg,rg->r", counts @ (flat @ flat.T).astype(np.float64), counts)

    energies = {"x": form(None, a), "y": form(None, b), "xx": form(a, a), "yy": form(b, b), "xy": form(a, b)}
    sizes = np.diff(edges).astype(np.float64)
    drawn = _correlation(counts @ sizes, counts**2 @ sizes, **energies)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

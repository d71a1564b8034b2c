import numpy as np
import pytest
from scipy import sparse
from sklearn.manifold import _locally_linear
from sklearn.metrics import pairwise

from jaxinterp.analysis import neighbourhoods
from jaxinterp.analysis.neighbours import locally_linear_weights, nearest_neighbours

N, K = 300, 6


def neighbourhood(seed, width=20):
    table = np.random.default_rng(seed).normal(size=(N, width)).astype(np.float32)
    near, _ = nearest_neighbours(table, K)
    return table, near, locally_linear_weights(table, near)


def matrix(near, weights):
    return sparse.csr_array((weights.ravel(), near.ravel(), np.arange(0, N * K + 1, K)), shape=(N, N)).toarray()


def test_sparse_cosines_and_overlaps_are_those_of_whole_rows():
    _, near_a, weights_a = neighbourhood(0)
    _, near_b, weights_b = neighbourhood(1)
    draw, near_b = np.random.default_rng(2), near_b.copy()
    for row in range(0, N, 2):  # some in common, at other places
        others = np.setdiff1d(np.arange(N), near_a[row])
        near_b[row] = draw.permutation([*near_a[row, :3], *draw.choice(others, K - 3, replace=False)])
    ours = neighbourhoods.sparse_cosines(near_a, weights_a, near_b, weights_b)
    whole = [matrix(near_a, weights_a), matrix(near_b, weights_b)]
    np.testing.assert_allclose(ours, np.diag(pairwise.cosine_similarity(*whole)), atol=1e-6)
    shared = (whole[0] != 0) & (whole[1] != 0)
    np.testing.assert_allclose(neighbourhoods.overlap(near_a, near_b), shared.sum(axis=1) / K)
    assert neighbourhoods.overlap(near_a, near_a[:, ::-1]).tolist() == [1.0] * N
    np.testing.assert_allclose(
        neighbourhoods.cosines(weights_a, weights_b),
        np.diag(pairwise.cosine_similarity(weights_a, weights_b)),
        atol=1e-6,
    )
    assert neighbourhoods.cosines(np.zeros((2, 3)), np.ones((2, 3))).tolist() == [0, 0]


def test_a_row_is_the_same_whatever_else_is_compared(monkeypatch):
    _, near_a, weights_a = neighbourhood(0)
    _, near_b, weights_b = neighbourhood(1)
    at_once = neighbourhoods.sparse_cosines(near_a, weights_a, near_b, weights_b)
    monkeypatch.setattr(neighbourhoods, "_BATCH", 7 * K**2)
    np.testing.assert_array_equal(at_once, neighbourhoods.sparse_cosines(near_a, weights_a, near_b, weights_b))


def test_relabelling_is_that_of_the_table_itself():
    table, near, weights = neighbourhood(0)
    asked = np.sort(np.random.default_rng(3).permutation(N)[:100])
    groups = np.arange(N) // 50 * 2 + np.isin(np.arange(N), asked)
    order, draw = np.arange(N), np.random.default_rng(4)
    for group in np.unique(groups):
        order[groups == group] = draw.permutation(np.flatnonzero(groups == group))
    renamed = neighbourhoods.relabel(near[asked], asked, order)
    anew, _ = nearest_neighbours(table[order], K)
    np.testing.assert_array_equal(renamed, anew[asked])
    own = weights[asked][neighbourhoods.place_of(asked, order)]
    np.testing.assert_allclose(own, locally_linear_weights(table[order], anew)[asked], atol=1e-6)


@pytest.mark.parametrize("width", [20, 4])
def test_weights_are_scikit_learns_and_do_not_see_rotation_scale_and_place(width):
    table, near, weights = neighbourhood(0, width)
    exact = table.astype(np.float64)
    theirs = _locally_linear.barycenter_weights(exact, exact, near, 1e-3)
    np.testing.assert_allclose(weights, theirs, atol=1e-5)
    turned = np.linalg.qr(np.random.default_rng(5).normal(size=(width, width)))[0]
    moved = locally_linear_weights(3 * table @ turned + 5, near)
    np.testing.assert_allclose(moved, weights, atol=1e-3)
    errors = neighbourhoods.reconstruction_errors(table, np.arange(N), near, weights)
    expected = np.linalg.norm(table - matrix(near, weights) @ table, axis=1) / np.linalg.norm(table, axis=1)
    np.testing.assert_allclose(errors, expected, rtol=1e-4)


def test_what_does_not_fit_is_refused():
    near = np.zeros((4, 2), int)
    with pytest.raises(ValueError, match="the same tokens and k"):
        neighbourhoods.overlap(near, near[:, :1])
    with pytest.raises(ValueError, match="one for each neighbour"):
        neighbourhoods.sparse_cosines(near, np.ones((4, 3)), near, np.ones((4, 2)))

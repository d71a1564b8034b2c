import numpy as np
import pytest
from sklearn.manifold import _locally_linear
from sklearn.neighbors import NearestNeighbors

from jaxinterp.analysis import neighbour_search
from jaxinterp.analysis.neighbours import locally_linear_weights, nearest_neighbours


def cloud(n=700, width=24, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) * rng.uniform(0.5, 3, (n, 1)) + 4).astype(np.float32)


@pytest.mark.parametrize("memory", [2**28, 2**20])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_brute_force_in_float64_whatever_the_blocks(metric, memory):
    table = cloud()
    one_block = neighbour_search.square_block(700, 7, memory) >= 350  # else several, with a padded one
    assert one_block == (memory == 2**28)
    index, distance = nearest_neighbours(table, 7, metric, memory=memory)
    reference = NearestNeighbors(n_neighbors=8, metric=metric, algorithm="brute").fit(table.astype(np.float64))
    expected, order = reference.kneighbors(table.astype(np.float64))
    np.testing.assert_array_equal(index, order[:, 1:])
    np.testing.assert_allclose(distance, expected[:, 1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_other_queries_may_find_every_vector(metric):
    table, asked = cloud(), np.concatenate([cloud(30, seed=1), cloud()[:3]])
    index, distance = nearest_neighbours(table, 5, metric, asked, memory=2**20)
    reference = NearestNeighbors(n_neighbors=5, metric=metric, algorithm="brute").fit(table.astype(np.float64))
    expected, order = reference.kneighbors(asked.astype(np.float64))
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=1e-6)
    assert index[-3:, 0].tolist() == [0, 1, 2] and (distance[-3:, 0] == 0).all()


@pytest.mark.parametrize("memory", [2**28, 2**16])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_some_rows_have_the_neighbours_that_they_have_among_all(metric, memory):
    table, rows = cloud(3000), np.random.default_rng(2).permutation(3000)[:90]
    assert (neighbour_search.wide_block(3000, 90, 8, memory)[1] < 3000) == (memory == 2**16)
    index, distance = nearest_neighbours(table, 7, metric)
    some, distances = nearest_neighbours(table, 7, metric, rows=rows, memory=memory)
    np.testing.assert_array_equal(some, index[rows])
    np.testing.assert_allclose(distances, distance[rows], rtol=1e-5, atol=1e-6)
    weights = locally_linear_weights(table, some, rows=rows)
    np.testing.assert_allclose(weights, locally_linear_weights(table, index)[rows], atol=1e-5)


def test_a_row_with_many_equals_is_left_out_of_its_own_neighbours():
    table = np.concatenate([np.ones((9, 3)), cloud(20, 3)])
    index, distance = nearest_neighbours(table, 4, rows=np.array([8, 0, 12]))
    assert index[0].tolist() == [0, 1, 2, 3] and index[1].tolist() == [1, 2, 3, 4] and (distance[:2] == 0).all()
    assert 12 not in index[2]


def test_equal_vectors_are_neighbours_at_distance_zero_and_ties_go_by_index():
    table = np.repeat(cloud(40), 5, axis=0)[np.random.default_rng(0).permutation(200)]
    index, distance = nearest_neighbours(table, 4, "euclidean", memory=2**18)
    assert (distance == 0).all() and (np.diff(index, axis=1) > 0).all()
    for row, near in enumerate(index):
        assert row not in near and (table[near] == table[row]).all()
    same, _ = nearest_neighbours(np.ones((50, 3)), 3, memory=2**18)
    assert same[0].tolist() == [1, 2, 3] and same[2].tolist() == [0, 1, 3] and same[49].tolist() == [0, 1, 2]


def test_all_others_are_found_when_k_is_as_large_as_can_be():
    index, _ = nearest_neighbours(cloud(20), 19)
    assert (np.sort(index, axis=1) == [[other for other in range(20) if other != row] for row in range(20)]).all()


def test_nearest_neighbours_refuses_what_has_no_answer():
    table = cloud(10)
    with pytest.raises(ValueError, match="1 <= k <= 9"):
        nearest_neighbours(table, 10)
    with pytest.raises(ValueError, match="no metric 'manhattan'"):
        nearest_neighbours(table, 2, "manhattan")
    with pytest.raises(ValueError, match="width 3 and vectors 24"):
        nearest_neighbours(table, 2, queries=np.ones((4, 3)))
    with pytest.raises(ValueError, match="row 4 of 1 such rows of the vectors is zero"):
        nearest_neighbours(np.where(np.arange(10)[:, None] == 4, 0, table), 2)
    with pytest.raises(ValueError, match="not finite"):
        nearest_neighbours(np.where(np.arange(10)[:, None] == 4, np.nan, table), 2, "euclidean")
    with pytest.raises(ValueError, match="rows are among the vectors"):
        nearest_neighbours(table, 2, queries=table, rows=np.array([1]))
    with pytest.raises(ValueError, match="from 3 to 10; pass indices of 10 vectors"):
        nearest_neighbours(table, 2, rows=np.array([3, 10]))
    with pytest.raises(ValueError, match=r"indices, int \[rows\]"):
        nearest_neighbours(table, 2, rows=np.array([True]))
    with pytest.raises(ValueError, match="bytes are too few"):
        nearest_neighbours(table, 2, memory=1000)
    with pytest.raises(ValueError, match=r"\[n, embedding\]"):
        nearest_neighbours(table[0], 2)


@pytest.mark.parametrize("memory", [2**28, 2**19])
@pytest.mark.parametrize(("width", "regularisation"), [(24, 1e-3), (5, 1e-3), (24, 0.1)])
def test_locally_linear_weights_are_scikit_learns(width, regularisation, memory):
    table = cloud(width=width)
    near, _ = nearest_neighbours(table, 7, "euclidean")
    ours = locally_linear_weights(table, near, regularisation=regularisation, memory=memory)
    theirs = _locally_linear.barycenter_weights(
        table.astype(np.float64), table.astype(np.float64), near, regularisation
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_affine_combinations_on_a_plane_are_recovered():
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(3, 50)) * 10
    planted = rng.dirichlet([2, 2, 2], size=20)
    table = np.concatenate([corners, planted @ corners])
    near = np.tile([0, 1, 2], (23, 1))
    near[:3] = [[1, 2, 3], [0, 2, 3], [0, 1, 3]]
    found = locally_linear_weights(table, near, regularisation=1e-6)
    np.testing.assert_allclose(found[3:], planted, atol=1e-3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_neighbours_equal_to_the_vector_share_the_weight():
    np.testing.assert_allclose(locally_linear_weights(np.ones((4, 3)), np.array([[1, 2], [0, 2], [0, 1], [0, 1]])), 0.5)


def test_locally_linear_weights_refuse_what_does_not_fit():
    table = cloud(10)
    with pytest.raises(ValueError, match=r"integers \[n, k\]"):
        locally_linear_weights(table, np.zeros((9, 2), int))
    with pytest.raises(ValueError, match="indices of 10 vectors"):
        locally_linear_weights(table, np.full((10, 2), 10))
    with pytest.raises(ValueError, match="positive number"):
        locally_linear_weights(table, np.zeros((10, 2), int), regularisation=0)

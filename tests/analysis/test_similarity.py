import numpy as np
import pytest
from scipy import spatial
from sklearn.neighbors import NearestNeighbors

from jaxinterp.analysis import similarity


def tables(noise, *, tokens=300, widths=(12, 20), seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(tokens, widths[0])) * np.linspace(2, 0.5, widths[0]) + 0.4
    turn = np.linalg.qr(rng.normal(size=(max(widths), max(widths))))[0][: widths[0], : widths[1]]
    return first.astype(np.float32), (3 * first @ turn + noise * rng.normal(size=(tokens, widths[1])) + 1).astype("f4")


def explicit_cka(first, second):
    """The estimator as it is written, with both matrices [token, token]."""

    def hsic(k, other):
        m, one = len(k), np.ones(len(k))
        mixed = one @ k @ other @ one
        cross = (one @ k @ one) * (one @ other @ one) / ((m - 1) * (m - 2))
        return (np.trace(k @ other) + cross - 2 / (m - 2) * mixed) / (m * (m - 3))

    k, other = (table.astype(float) @ table.T.astype(float) for table in (first, second))
    for matrix in (k, other):
        np.fill_diagonal(matrix, 0)
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


@pytest.mark.parametrize("noise", [0.0, 2.0, 20.0])
def test_cka_is_the_written_estimator(noise):
    pair = tables(noise)
    assert similarity.debiased_cka(*pair) == pytest.approx(explicit_cka(*pair), abs=1e-5)


def test_procrustes_is_that_of_scipy():
    first, second = tables(3.0)
    padded = np.pad(first, ((0, 0), (0, 8)))
    disparity = spatial.procrustes(padded, second)[2]
    ours = similarity.procrustes_distance(first, second)
    # scipy also scales one table to the other: 1 - s^2, where the distance is sqrt(2 - 2 s).
    assert ours == pytest.approx(np.sqrt(2 - 2 * np.sqrt(1 - disparity)), abs=1e-5)
    assert similarity.procrustes_distance(second, first) == pytest.approx(ours, abs=1e-6)


def test_a_rotated_copy_is_found_and_unrelated_tables_are_not():
    copy = similarity.compare_spaces(*tables(0.0), relabellings=10, seed=0)
    assert copy["debiased CKA"].value == pytest.approx(1, abs=1e-4)
    assert copy["Procrustes distance"].value < 5e-3
    first = tables(0.0)[0]
    other = np.random.default_rng(9).normal(size=(300, 20)).astype(np.float32)
    for name, found in similarity.compare_spaces(first, other, relabellings=50, seed=0).items():
        assert abs(found.value - found.null.mean()) < 4 * found.null.std(), name
    noisy = similarity.compare_spaces(*tables(3.0), relabellings=20, seed=0)
    for name, found in noisy.items():
        assert found.low < found.value < found.high, name
        assert (found.null > found.high).all() if name.startswith("Pro") else (found.null < found.low).all(), name
    assert abs(noisy["debiased CKA"].null.mean()) < 0.02


def test_nulls_are_of_relabelled_tokens():
    first, second = tables(2.0, tokens=50)
    found = similarity.compare_spaces(first, second, relabellings=1, seed=4, groups=5)
    draw = np.random.default_rng(4)
    draw.permutation(50)
    order = draw.permutation(50)
    assert found["debiased CKA"].null[0] == pytest.approx(similarity.debiased_cka(first, second[order]), abs=1e-6)
    expected = similarity.procrustes_distance(first, second[order])
    assert found["Procrustes distance"].null[0] == pytest.approx(expected, abs=1e-6)


def test_the_interval_holds_the_value_of_all_tokens_as_often_as_it_says():
    first, second = tables(3.0, tokens=20_000)
    truth = similarity.debiased_cka(first, second)
    hits = 0
    for seed in range(40):
        some = np.random.default_rng(seed).choice(20_000, 300, replace=False)
        found = similarity.compare_spaces(first[some], second[some], relabellings=1, seed=0)["debiased CKA"]
        hits += found.low <= truth <= found.high
    assert hits >= 33


def test_neighbours_are_those_of_scikit_learn():
    table = tables(1.0)[1]
    asked = np.array([5, 0, 299, 17])
    ours = similarity.neighbours_of(table, asked, 7)
    theirs = NearestNeighbors(n_neighbors=8, metric="cosine").fit(table).kneighbors(table[asked], return_distance=False)
    np.testing.assert_array_equal(ours, theirs[:, 1:])


def test_a_token_is_not_its_own_neighbour_even_with_a_copy():
    table = tables(1.0)[1]
    table[8] = table[3]
    near = similarity.neighbours_of(table, np.array([3, 8]), 2)
    assert near[:, 0].tolist() == [8, 3]
    with pytest.raises(ValueError, match="299 others"):
        similarity.neighbours_of(table, np.array([3]), 300)


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="3 and 3 rows"):
        similarity.debiased_cka(np.eye(3), np.eye(3))
    with pytest.raises(ValueError, match="4 and 5 rows"):
        similarity.procrustes_distance(np.eye(4), np.eye(5))
    with pytest.raises(ValueError, match="all rows of a table are equal"):
        similarity.debiased_cka(np.ones((8, 2)), np.eye(8))
    with pytest.raises(ValueError, match="dealt into 20 groups"):
        similarity.compare_spaces(np.eye(8), np.eye(8), relabellings=1, seed=0)

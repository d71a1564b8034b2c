import numpy as np
import pytest

from jaxinterp.analysis.intrinsic_dimension import gaussian_table, local_dimension, two_nearest_dimension
from jaxinterp.analysis.neighbours import nearest_neighbours


def cloud(n=400, width=30, seed=0):
    """Points whose directions have very different variances, in a hidden basis and off the origin."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return ((rng.normal(size=(n, width)) * np.geomspace(3, 0.02, width)) @ basis + 2).astype(np.float32)


def components(rows, threshold):
    """The count for one neighbourhood, by singular values in float64."""
    rows = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    variances = np.linalg.svd(rows, compute_uv=False) ** 2
    return int(np.argmax(np.cumsum(variances) / variances.sum() >= threshold)) + 1


@pytest.mark.parametrize("memory", [2**28, 2**17])
@pytest.mark.parametrize(("k", "threshold"), [(12, 0.95), (90, 0.95), (90, 0.5)])
def test_components_are_those_of_singular_values(k, threshold, memory):
    table = cloud()
    near, _ = nearest_neighbours(table, k)
    found = local_dimension(table, near[:60], threshold=threshold, memory=memory)
    assert found.components.tolist() == [components(table[row], threshold) for row in near[:60]]
    assert (found.components <= min(k - 1, 30)).all() and (found.participation <= min(k - 1, 30)).all()


def test_both_measures_are_those_of_scikit_dimension():
    skdim = pytest.importorskip("skdim", reason="scikit-dimension is not installed")
    table = cloud()
    near, away = nearest_neighbours(table, 60, "euclidean")
    found = local_dimension(table, near[:20])
    for row, ours, ratio in zip(near[:20], found.components, found.participation, strict=True):
        asked = table[row].astype(np.float64)
        assert skdim.id.lPCA(ver="ratio", alphaRatio=0.95).fit(asked).dimension_ == ours
        theirs = skdim.id.lPCA(ver="participation_ratio").fit(asked).dimension_
        assert ratio == pytest.approx(theirs, rel=1e-4)
    for discarded in (0.1, 0.3):
        theirs = skdim.id.TwoNN(discard_fraction=discarded).fit(table.astype(np.float64)).dimension_
        assert two_nearest_dimension(*away.T[:2], discarded=discarded) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("width", [8, 64])
def test_points_of_a_subspace_have_at_most_its_dimension(width):
    rng = np.random.default_rng(1)
    table = (rng.normal(size=(300, 3)) @ rng.normal(size=(3, width)) + 5).astype(np.float32)
    near, _ = nearest_neighbours(table, 40, "euclidean")
    assert local_dimension(table, near, threshold=0.999).components.max() <= 3
    turned = 7 * table @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    np.testing.assert_array_equal(
        local_dimension(turned, near, threshold=0.8).components, local_dimension(table, near, threshold=0.8).components
    )


def test_equal_neighbours_have_no_dimension_and_no_neighbourhood_no_row():
    table = np.repeat(cloud(2), [5, 1], axis=0)
    found = local_dimension(table, np.array([[0, 1, 2, 3]]))
    assert found.components.tolist() == [0] and found.participation.tolist() == [0]
    assert len(local_dimension(table, np.zeros((0, 4), int)).components) == 0


def test_local_dimension_refuses_what_has_no_answer():
    table = cloud(10)
    with pytest.raises(ValueError, match="at least two neighbours"):
        local_dimension(table, np.zeros((3, 1), int))
    with pytest.raises(ValueError, match="indices of 10 vectors"):
        local_dimension(table, np.full((3, 4), 10))
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        local_dimension(table, np.zeros((3, 4), int), threshold=95)


@pytest.mark.parametrize("dimension", [2, 5])
def test_two_nearest_neighbours_find_the_dimension_of_a_curved_sheet(dimension):
    rng = np.random.default_rng(2)
    flat = rng.uniform(-1, 1, size=(4000, dimension))
    table = np.concatenate([flat, np.sin(2 * flat)], axis=1) @ rng.normal(size=(2 * dimension, 40))
    _, away = nearest_neighbours(table, 2, "euclidean")
    assert two_nearest_dimension(*away.T) == pytest.approx(dimension, rel=0.1)
    ratios = np.sort(away[:, 1] / away[:, 0])[:3600]
    left = -np.log(1 - np.arange(1, 3601) / 4000)
    slope = np.linalg.lstsq(np.log(ratios)[:, None], left)[0][0]
    assert two_nearest_dimension(*away.T) == pytest.approx(slope, rel=1e-5)


def test_two_nearest_neighbours_leave_repeats_out_and_refuse_a_table_of_them():
    _, away = nearest_neighbours(cloud(), 2, "euclidean")
    more = np.concatenate([away, [[0.0, 1.0]] * 50])
    assert two_nearest_dimension(*more.T) == pytest.approx(two_nearest_dimension(*away.T))
    with pytest.raises(ValueError, match="each only once"):
        two_nearest_dimension(np.zeros(9), np.ones(9))
    with pytest.raises(ValueError, match="two different neighbours"):
        two_nearest_dimension(np.ones(9), np.ones(9))


def test_gaussian_tables_have_the_covariance_that_is_asked_for():
    table = cloud(2000, 12)
    same = gaussian_table(table, 50_000, seed=0, covariance=True)
    np.testing.assert_allclose(same.mean(axis=0), table.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(same.T), np.cov(table.T), atol=0.1)
    plain = gaussian_table(table, 50_000, seed=0, covariance=False)
    np.testing.assert_allclose(np.cov(plain.T), np.eye(12), atol=0.03)
    assert plain.shape == same.shape and (gaussian_table(table, 9, 0, covariance=False) == plain[:9]).all()

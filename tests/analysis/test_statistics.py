import numpy as np
import pytest
from scipy import stats

from jaxinterp.analysis import statistics


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 10), (187, 300), (300, 300)])
def test_wilson_agrees_with_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(statistics.wilson(successes, n), (expected.low, expected.high), atol=1e-12)


def test_wilson_of_nothing_is_everything():
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        statistics.wilson(4, 3)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = statistics.bootstrap(rng.normal(2.0, 1.0, 60), seed=trial, n=300)
        covered += low <= 2.0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_bootstrap_draws_whole_rows_and_repeats_with_its_seed():
    pairs = np.stack([np.arange(50.0), np.arange(50.0)], axis=1)
    difference = statistics.bootstrap(pairs, seed=1, statistic=lambda rows: float((rows[:, 0] - rows[:, 1]).sum()))
    assert difference == (0.0, 0.0)
    assert statistics.bootstrap(pairs[:, 0], seed=1) == statistics.bootstrap(pairs[:, 0], seed=1)
    assert statistics.bootstrap(pairs[:, 0], seed=1) != statistics.bootstrap(pairs[:, 0], seed=2)
    with pytest.raises(ValueError, match="no examples"):
        statistics.bootstrap(np.zeros(0), seed=0)


def test_permutation_p_is_uniform_under_the_null_and_small_under_an_effect():
    rng = np.random.default_rng(3)
    p_values = [statistics.permutation_p(rng.normal(), rng.normal(size=99)) for _ in range(2000)]
    assert stats.kstest(p_values, "uniform").statistic < 0.04
    null = rng.normal(size=999)
    assert statistics.permutation_p(9.0, null) == pytest.approx(0.001)
    assert statistics.permutation_p(-9.0, null) == 1.0
    assert statistics.permutation_p(-9.0, null, "less") == statistics.permutation_p(-9.0, null, "two-sided")


def test_rank_correlation_agrees_with_scipy_ties_and_all():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 40), rng.normal(size=40)
    value, low, high, p = statistics.rank_correlation(first, second, seed=0)
    expected = stats.spearmanr(first, second)
    assert value == pytest.approx(expected.statistic, abs=1e-12)
    assert low < value < high
    assert p == pytest.approx(expected.pvalue, abs=0.05)
    assert statistics.rank_correlation(second, second, seed=0)[3] == pytest.approx(1 / 2001)


def test_rank_correlation_of_what_does_not_vary_is_none():
    assert statistics.rank_correlation(np.zeros(5), np.arange(5.0), seed=0) == (0.0, -1.0, 1.0, 1.0)

import numpy as np
import pytest
from scipy import stats

from jaxinterp.analysis import pair_scores


def related(noise=0.5, tokens=60, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(tokens, 5))
    second = first @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + noise * rng.normal(size=(tokens, 5))
    return first @ first.T, second @ second.T


@pytest.mark.parametrize(("ranks", "reference"), [(False, stats.pearsonr), (True, stats.spearmanr)])
def test_correlations_are_those_of_scipy(ranks, reference):
    first, second = related()
    second = np.round(second, 1)  # ties
    upper = np.triu_indices(len(first), 1)
    ours = pair_scores.correlation(*(pair_scores.standardise(scores, ranks=ranks) for scores in (first, second)))
    assert ours == pytest.approx(reference(first[upper], second[upper]).statistic, abs=1e-6)


def test_a_relabelling_is_a_correlation_with_the_order_changed():
    first, second = related()
    orders = list(pair_scores.relabellings(60, 5, 3))
    null = pair_scores.permutation_null(*map(pair_scores.standardise, (first, second)), permutations=5, seed=3)
    upper = np.triu_indices(60, 1)
    expected = [np.corrcoef(first[upper], second[np.ix_(order, order)][upper])[0, 1] for order in orders]
    np.testing.assert_allclose(null, expected, atol=1e-6)


def test_relabellings_stay_within_their_groups():
    groups = np.array([0, 1, 0, 2, 1, 0, 2, 2])
    for order in pair_scores.relabellings(8, 20, 0, groups):
        assert sorted(order) == list(range(8))
        assert (groups[order] == groups).all()


def test_the_bootstrap_is_that_of_drawing_tokens():
    first, second = related(noise=1.0)
    standard = [pair_scores.standardise(scores) for scores in (first, second)]
    low, high = pair_scores.node_bootstrap(*standard, resamples=2000, seed=0)
    rng = np.random.default_rng(1)
    upper = np.triu_indices(60, 1)
    drawn = []
    for _ in range(1000):
        chosen = rng.integers(0, 60, 60)
        differ = (chosen[:, None] != chosen[None])[upper]
        x, y = (scores[np.ix_(chosen, chosen)][upper][differ] for scores in (first, second))
        drawn.append(np.corrcoef(x, y)[0, 1])
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert low < pair_scores.correlation(*standard) < high


def test_ranks_kept_in_the_bootstrap_give_almost_the_interval_of_ranks_taken_anew():
    first, second = related(noise=1.0)
    low, high = pair_scores.node_bootstrap(
        *(pair_scores.standardise(scores, ranks=True) for scores in (first, second)), resamples=2000, seed=0
    )
    rng = np.random.default_rng(1)
    upper = np.triu_indices(60, 1)
    drawn = []
    for _ in range(400):
        chosen = rng.integers(0, 60, 60)
        differ = (chosen[:, None] != chosen[None])[upper]
        x, y = (scores[np.ix_(chosen, chosen)][upper][differ] for scores in (first, second))
        drawn.append(stats.spearmanr(x, y)[0])
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)


def test_what_cannot_be_correlated_is_refused():
    with pytest.raises(ValueError, match="three or more"):
        pair_scores.standardise(np.eye(2))
    with pytest.raises(ValueError, match="the same score"):
        pair_scores.standardise(np.ones((4, 4)))

import numpy as np
import pytest

from jaxinterp.analysis import token_agreement


def three(n=500):
    rng = np.random.default_rng(0)
    common = rng.normal(size=n)
    return common + rng.normal(size=n), 2 * common + rng.normal(size=n), common


def test_pearson_is_numpys_and_nothing_correlates_with_a_constant():
    first, second, _ = three()
    assert token_agreement.pearson(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert np.isnan(token_agreement.pearson(first, np.ones(500)))


def test_a_partial_correlation_is_that_of_the_textbook():
    first, second, common = three()
    r = np.corrcoef([first, second, common])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    found = token_agreement.partial_correlation(first, second, common[:, None])
    assert found == pytest.approx(expected) and abs(found) < 0.1 < token_agreement.pearson(first, second)
    twice = np.column_stack([common, common, np.ones(500)])
    assert token_agreement.partial_correlation(first, second, twice) == pytest.approx(expected)


def test_what_is_explained_wholly_has_no_partial_correlation():
    first, second, _ = three()
    assert np.isnan(token_agreement.partial_correlation(first, second, first[:, None]))


def test_ranks_of_ties_are_their_mean():
    assert token_agreement.ranks(np.array([3.0, 1, 3])).tolist() == [2.5, 1, 2.5]


def test_relabelled_tokens_agree_by_chance_alone_and_within_groups_by_what_the_groups_explain():
    first, second, common = three()
    null = token_agreement.relabelled(first, second, permutations=200, seed=0)
    assert abs(null.mean()) < 0.02 and null.std() == pytest.approx(500**-0.5, rel=0.2)
    bins = np.digitize(common, np.quantile(common, np.linspace(0, 1, 21)[1:-1]))
    kept = token_agreement.relabelled(first, second, permutations=200, seed=0, groups=bins)
    assert kept.mean() == pytest.approx(token_agreement.pearson(first, second), abs=0.1)

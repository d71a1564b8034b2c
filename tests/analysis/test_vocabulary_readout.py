import numpy as np
import pytest
from scipy import stats

from jaxinterp.analysis import vocabulary_readout as readout


def test_a_rotated_vocabulary_says_the_same_and_another_does_not():
    rng = np.random.default_rng(0)
    rows, other = rng.normal(size=(500, 16)), rng.normal(size=(500, 16))
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    vector = rng.normal(size=16)
    here = readout.Readout(rows).scores(vector)
    there = readout.Readout(rows @ turn + 3).scores(vector @ turn)
    np.testing.assert_allclose(here, there, atol=1e-4)
    assert readout.top_overlap(here, there, 50) > 0.95
    assert readout.top_overlap(here, readout.Readout(other).scores(vector), 50) < 0.4


def test_ranks_give_spearmans_correlation():
    first, second = np.random.default_rng(0).normal(size=(2, 300))
    second = second + first
    found = readout.centred_ranks(first) @ readout.centred_ranks(second)
    expected = stats.spearmanr(first, second).statistic
    assert found == pytest.approx(expected)
    low, high = readout.correlation_interval(found, 300)
    assert low < found < high and high - low < 0.25


def test_the_best_are_in_order_and_not_more_than_there_are():
    np.testing.assert_array_equal(readout.top(np.array([1.0, 9.0, 3.0, 7.0]), 3), [1, 3, 2])
    with pytest.raises(ValueError, match="ask for fewer"):
        readout.top(np.zeros(3), 4)

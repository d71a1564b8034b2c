import numpy as np
import pytest

from jaxinterp.analysis import crossed_bootstrap


def test_intervals_grow_with_the_spread_of_either_kind_of_item():
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=(400, 1)), rng.normal(size=(1, 40))
    low, high = crossed_bootstrap.crossed_interval(rows + np.zeros((400, 40)), seed=0)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    low, high = crossed_bootstrap.crossed_interval(np.zeros((400, 40)) + columns, seed=0)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.25)


def test_a_ratio_is_paired():
    values = np.random.default_rng(0).normal(5, 3, size=(20, 6))
    ratio, low, high = crossed_bootstrap.crossed_ratio(0.5 * values, values, seed=0)
    np.testing.assert_allclose([ratio, low, high], 0.5)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="nothing to draw from"):
        crossed_bootstrap.crossed_means(np.zeros((0, 3)), seed=0)

import numpy as np
import pytest

from jaxinterp.analysis import geometry


def related(noise: float, *, tokens=400, seed=0):
    """Two tables of other widths, the second a hidden rotation of the first plus noise; neither is centred."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(tokens, 12)) * np.linspace(2, 0.5, 12) + 0.4
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0][:12]
    second = first @ rotation + noise * rng.normal(size=(tokens, 20)) + 0.2
    return first.astype(np.float32), second.astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"centred": True}, {"centred": True, "without": 3}])
def test_the_closed_form_is_the_correlation_of_the_cosine_matrices(options):
    a, b = (geometry.unit_rows(table, **options) for table in related(0.7))
    assert geometry.cosine_correlation(a, b) == pytest.approx(geometry.cosine_correlation_explicit(a, b), abs=1e-5)


def test_a_rotation_is_found_and_noise_lowers_the_correlation():
    values = []
    for noise in (0.0, 0.5, 2.0):
        a, b = (geometry.unit_rows(table, centred=True) for table in related(noise))
        values.append(geometry.cosine_correlation(a, b))
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[0] > values[1] > values[2] > 0.02


def test_unit_rows_centre_scale_and_drop_directions():
    table = related(0.3)[1]
    rows = geometry.unit_rows(table, centred=True, without=2)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert np.linalg.matrix_rank(rows, tol=1e-2) == table.shape[1] - 2
    assert (geometry.unit_rows(np.zeros((3, 4))) == 0).all()


def test_the_permutation_null_is_left_of_related_tables_and_around_unrelated_ones():
    a, b = (geometry.unit_rows(table, centred=True) for table in related(1.0))
    null = geometry.permutation_null(a, b, permutations=100, seed=0)
    assert abs(null.mean()) < 4 * null.std() / 10 + 1e-3
    assert geometry.cosine_correlation(a, b) > null.max() + 5 * null.std()
    other = geometry.unit_rows(np.random.default_rng(5).normal(size=b.shape), centred=True)
    assert (
        abs(geometry.cosine_correlation(a, other))
        < 4 * geometry.permutation_null(a, other, permutations=100, seed=0).std()
    )


def test_a_null_within_groups_keeps_what_the_groups_explain():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 150)
    shared = np.where(groups == 0, 1.0, -1.0)[:, None]
    a, b = (geometry.unit_rows(shared + rng.normal(size=(300, width))) for width in (6, 9))
    free = geometry.permutation_null(a, b, permutations=50, seed=1)
    kept = geometry.permutation_null(a, b, permutations=50, seed=1, groups=groups)
    observed = geometry.cosine_correlation(a, b)
    assert abs(free.mean()) < 0.02
    assert kept.mean() == pytest.approx(observed, abs=0.02) and observed > 0.3


def test_a_group_null_with_one_token_in_each_group_changes_nothing():
    a, b = (geometry.unit_rows(table) for table in related(0.5, tokens=60))
    null = geometry.permutation_null(a, b, permutations=3, seed=0, groups=np.arange(60))
    np.testing.assert_allclose(null, geometry.cosine_correlation(a, b), atol=1e-6)


def test_the_node_bootstrap_covers_the_value_and_shrinks_with_tokens():
    widths = []
    for tokens in (200, 3200):
        a, b = (geometry.unit_rows(table, centred=True) for table in related(1.5, tokens=tokens))
        low, high = geometry.node_bootstrap(a, b, resamples=400, seed=0)
        assert low < geometry.cosine_correlation(a, b) < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_the_bootstrap_equals_drawing_tokens_when_every_group_is_one_token():
    a, b = (geometry.unit_rows(table, centred=True) for table in related(1.0, tokens=40))
    low, high = geometry.node_bootstrap(a, b, resamples=1500, seed=3, groups=40)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        chosen = rng.integers(0, 40, 40)
        upper = np.triu_indices(40, 1)
        differ = (chosen[:, None] != chosen[None])[upper]
        first, second = ((rows[chosen] @ rows[chosen].T)[upper][differ] for rows in (a, b))
        drawn.append(np.corrcoef(first, second)[0, 1])
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)


def test_tables_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="3 and 4 rows"):
        geometry.cosine_correlation(np.ones((3, 2)), np.ones((4, 2)))


def test_nulls_by_look_up_and_by_the_closed_form_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (geometry.unit_rows(rng.normal(size=(60, width)) + 0.3) for width in (90, 80))
    for groups in (None, np.repeat(np.arange(3), 20)):
        looked_up = geometry.permutation_null(a, b, permutations=20, seed=1, groups=groups)
        with monkeypatch.context() as patch:
            patch.setattr(geometry, "_FEW", 0)
            computed = geometry.permutation_null(a, b, permutations=20, seed=1, groups=groups)
        np.testing.assert_allclose(looked_up, computed, atol=1e-5)
        assert looked_up.std() > 1e-3


def test_random_tables_have_the_moments_and_share_nothing():
    a, b = related(0.3, tokens=2000)
    null = geometry.random_table_null(a, b, tokens=300, draws=30, seed=0, centred=True)
    assert abs(null.mean()) < 4 * null.std() / np.sqrt(30) and null.max() < 0.1
    shifted = geometry.random_table_null(a + 5, b + 5, tokens=300, draws=30, seed=0)
    assert shifted.std() > 2 * null.std(), "a common direction makes the raw null wider"


def test_noise_is_that_of_eight_bits_and_moves_little():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2000, 70)).astype(np.float32)
    noise = geometry.quantisation_noise(table, seed=0)
    steps = np.abs(np.pad(table, ((0, 0), (0, 26)))).reshape(2000, 3, 32).max(axis=2) / 127
    largest = np.abs(np.pad(noise, ((0, 0), (0, 26)))).reshape(2000, 3, 32).max(axis=2)
    assert (largest <= 0.5 * steps * (1 + 1e-6)).all() and (largest > 0.3 * steps).mean() > 0.9
    rounded = np.round(table[:, :32] / steps[:, :1]) * steps[:, :1] - table[:, :32]
    assert noise[:, :32].std() == pytest.approx(rounded.std(), rel=0.03)
    a, b = (geometry.unit_rows(rows) for rows in (table, table + noise))
    assert geometry.cosine_correlation(a, b) > 0.9999

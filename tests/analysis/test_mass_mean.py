import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from jaxinterp.analysis import probes
from jaxinterp.analysis.mass_mean import fit_mass_mean


def slanted(seed, n=800, width=12):
    """The label moves feature 0 at layer 1; feature 1 is nearly a copy of feature 0's noise. Layer 0 is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    x = rng.normal(size=(2, n, width))
    x[:, :, 1] = x[:, :, 0] + 0.2 * rng.normal(size=(2, n))
    x[1, :, 0] += labels
    return (x * np.linspace(1, 30, width) + 20).astype(np.float32), labels


def test_the_direction_is_the_difference_of_means_and_the_midpoint_its_zero():
    features, labels = slanted(0)
    found = fit_mass_mean(features, labels)
    means = np.stack([features[:, labels].mean(axis=1), features[:, ~labels].mean(axis=1)])
    np.testing.assert_allclose(found.weights, means[0] - means[1], atol=1e-3)
    np.testing.assert_allclose(found.scores(means.mean(axis=0)[:, None]), 0, atol=0.05)


def test_whitening_is_the_linear_discriminant():
    features, labels = slanted(0)
    sets = np.stack([labels, *probes.permuted(labels, 2, 0)])
    found = fit_mass_mean(features, sets, whiten=True, shrinkage=0)
    assert found.weights.shape == (3, 2, 12)
    for index, marks in enumerate(sets):
        for layer in range(2):
            own = LinearDiscriminantAnalysis(solver="lsqr").fit(features[layer].astype(float), marks)
            np.testing.assert_allclose(
                found.weights[index, layer], own.coef_[0], rtol=1e-2, atol=2e-3 * np.abs(own.coef_).max()
            )


def test_found_where_it_was_planted_and_only_there_and_whitening_undoes_the_slant():
    (features, labels), (held_out, truth) = slanted(1), slanted(2)
    plain, whitened = (
        fit_mass_mean(features, np.stack([labels, *probes.permuted(labels, 20, 0)]), whiten=whiten)
        for whiten in (False, True)
    )
    accuracy = [probes.balanced_accuracy(found.scores(held_out) > 0, truth) for found in (plain, whitened)]
    assert abs(accuracy[0][0, 0] - 0.5) < 0.08 and abs(accuracy[1][0, 0] - 0.5) < 0.08
    assert accuracy[1][0, 1] > 0.95 > 0.75 > accuracy[0][0, 1]
    for values in accuracy:
        assert abs(values[1:].mean() - 0.5) < 0.04


def test_more_features_than_examples_need_shrinkage():
    features, labels = slanted(3, n=10)
    assert np.isfinite(fit_mass_mean(features, labels, whiten=True).weights).all()
    with pytest.raises(ValueError, match="shrinkage"):
        fit_mass_mean(features, labels, whiten=True, shrinkage=-1.0)
    with pytest.raises(ValueError, match="both classes"):
        fit_mass_mean(features, np.ones(10, bool))

import logging

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxinterp.analysis import probes


def planted(seed, layers, n, width, strength):
    """Features of `n` examples with a direction per layer that carries the label with the given strength."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    directions = np.random.default_rng(99).normal(size=(layers, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    signal = np.asarray(strength)[:, None, None] * (2.0 * labels - 1)[None, :, None] * directions[:, None]
    noise = rng.normal(size=(layers, n, width))
    offset = np.linspace(-5, 5, width)
    return (3.0 * (noise + signal) + offset).astype(np.float32), labels, directions


def correlated(seed, n=400, width=60):
    """Two layers whose features differ a thousandfold in scale, are far from centred and nearly of low rank."""
    mix = np.random.default_rng(98).normal(size=(2, 12, width))
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2, n, 12))
    x = hidden @ mix + 0.1 * rng.normal(size=(2, n, width))
    labels = hidden[1, :, 0] + 0.5 * rng.normal(size=n) > 0.8
    return (x * np.logspace(-1, 2, width) + 30).astype(np.float32), labels


def test_logistic_finds_the_planted_direction_and_only_there():
    features, labels, directions = planted(0, 3, 600, 24, [0.0, 1.0, 4.0])
    held_out, truth, _ = planted(1, 3, 600, 24, [0.0, 1.0, 4.0])
    found = probes.fit_logistic(features, np.stack([labels, *probes.permuted(labels, 20, 0)]), balanced=True)
    assert found.weights.shape == (21, 3, 24) and found.converged.all()
    accuracy = probes.balanced_accuracy(found.scores(held_out) > 0, truth)
    assert abs(accuracy[0, 0] - 0.5) < 0.06 and 0.75 < accuracy[0, 1] < 0.9 and accuracy[0, 2] > 0.995
    assert found.weights[0, 2] @ directions[2] / np.linalg.norm(found.weights[0, 2]) > 0.9
    assert abs(accuracy[1:].mean() - 0.5) < 0.06


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("standardise", [True, False])
def test_logistic_is_scikit_learns_problem(standardise, balanced):
    (features, labels), (held_out, truth) = correlated(0), correlated(1, n=2000)
    sets = np.stack([labels, ~labels & (np.arange(len(labels)) % 2 == 0)])
    strengths = [1.0, 0.05]
    found = probes.fit_logistic(features, sets, C=strengths, standardise=standardise, balanced=balanced, tolerance=1e-6)
    assert found.weights.shape == (2, 2, 2, 60) and found.bias.shape == (2, 2, 2) and found.converged.all()
    for c, strength in enumerate(strengths):
        for s, marks in enumerate(sets):
            for layer in range(2):
                reference = LogisticRegression(
                    C=strength, solver="newton-cholesky", tol=1e-9, class_weight="balanced" if balanced else None
                )
                pipeline = make_pipeline(StandardScaler(), reference) if standardise else make_pipeline(reference)
                pipeline.fit(features[layer].astype(np.float64), marks)
                theirs = pipeline.decision_function(held_out[layer].astype(np.float64))
                ours = found.scores(held_out)[c, s, layer]
                assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()
                assert abs(((ours > 0) == truth).mean() - ((theirs > 0) == truth).mean()) <= 1e-3
                scale = features[layer].std(axis=0)
                sizes = scale if standardise else np.ones(60)
                expected = reference.coef_[0]
                np.testing.assert_allclose(
                    found.weights[c, s, layer] * sizes, expected, atol=0.01 * np.abs(expected).max()
                )


def test_one_value_drops_its_axis():
    features, labels, _ = planted(6, 2, 80, 5, [1.0, 1.0])
    both = probes.fit_logistic(features, [labels, ~labels], C=[1.0, 2.0])
    one = probes.fit_logistic(features, labels, C=2.0)
    assert one.weights.shape == (2, 5) and one.iterations.shape == one.converged.shape == (2,)
    np.testing.assert_allclose(one.weights, both.weights[1, 0], atol=1e-4)
    np.testing.assert_allclose(both.weights[:, 0], -both.weights[:, 1], atol=1e-3)
    assert both.accuracy(features, labels).shape == (2, 2, 2)


def test_a_probe_that_has_not_converged_says_so(caplog):
    features, labels = correlated(2)
    with caplog.at_level(logging.WARNING):
        found = probes.fit_logistic(features, labels, steps=2)
    assert not found.converged.any() and (found.iterations == 2).all()
    assert "2 of 2 logistic probes have not converged" in caplog.text


def test_separable_classes_and_fewer_examples_than_features_converge():
    features, labels, _ = planted(7, 2, 30, 64, [5.0, 0.0])
    found = probes.fit_logistic(features, labels, C=100.0)
    assert found.converged.all() and (found.accuracy(features, labels) == 1).all()


@pytest.mark.parametrize("l2", [1.0, 10.0])
def test_softmax_agrees_with_scikit_learn(l2):
    features, labels, _ = planted(2, 2, 500, 40, [0.5, 1.5])
    held_out, truth, _ = planted(3, 2, 2000, 40, [0.5, 1.5])
    probe, _ = probes.fit_softmax(features, labels, l2=l2)
    ours = probe.scores(held_out) > 0
    for layer in range(2):
        standard = (features[layer] - probe.centre[layer]) / probe.scale[layer]
        weights = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
        reference = LogisticRegression(C=2 / l2, fit_intercept=False, tol=1e-8, max_iter=2000)
        reference.fit(standard, labels, sample_weight=weights)
        theirs = np.asarray(reference.predict((held_out[layer] - probe.centre[layer]) / probe.scale[layer]))
        difference = probes.balanced_accuracy(ours[layer], truth) - probes.balanced_accuracy(theirs, truth)
        assert abs(difference) <= 1e-3
        assert (ours[layer] == theirs).mean() >= 0.999
        direction = probe.weights[layer, 1] - probe.weights[layer, 0]
        np.testing.assert_allclose(direction, reference.coef_[0], atol=1e-3)


def test_softmax_finds_the_planted_direction_and_its_rows_oppose_each_other():
    features, labels, directions = planted(4, 2, 600, 16, [0.0, 2.0])
    held_out, truth, _ = planted(5, 2, 600, 16, [0.0, 2.0])
    probe, control = probes.fit_softmax(features, labels, permutations=20)
    accuracy = probes.balanced_accuracy(probe.scores(held_out) > 0, truth)
    assert abs(accuracy[0] - 0.5) < 0.06 and accuracy[1] > 0.95
    found = probe.directions()[1, 1]
    assert found @ directions[1] / np.linalg.norm(found) > 0.9
    shuffled = probes.balanced_accuracy(control.scores(held_out) > 0, truth)
    assert shuffled.shape == (20, 2) and abs(shuffled.mean() - 0.5) < 0.06
    np.testing.assert_allclose(probe.cosine(), -1, atol=1e-6)
    np.testing.assert_allclose(control.cosine(), np.full((20, 2), -1), atol=1e-6)


def test_constant_features_do_no_harm():
    features = np.ones((1, 40, 8), np.float32)
    labels = np.arange(40) % 2 == 0
    probe, _ = probes.fit_softmax(features, labels)
    assert np.isfinite(probe.weights).all() and np.isnan(probe.cosine()).all()
    assert probes.balanced_accuracy(probe.scores(features) > 0, labels)[0] == 0.5
    assert np.abs(probes.fit_logistic(features, labels).weights).max() < 1e-6


def test_shuffling_repeats_with_its_seed_and_keeps_the_classes():
    labels = np.arange(50) % 3 == 0
    first, second, third = (probes.permuted(labels, 4, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third) and (first.sum(axis=1) == labels.sum()).all()
    assert probes.permuted(labels, 0, 0).shape == (0, 50)


def test_refuses_what_it_cannot_fit():
    features, labels = np.zeros((1, 4, 2), np.float32), np.array([True, False, True, False])
    for fit in (probes.fit_softmax, probes.fit_logistic):
        with pytest.raises(ValueError, match="both classes"):
            fit(features, np.ones(4, bool))
        with pytest.raises(ValueError, match=r"\[layer, n, embedding\]"):
            fit(features, np.ones(5, bool))
        with pytest.raises(ValueError, match="layer 0 are not all finite"):
            fit(features + np.nan, labels)
    with pytest.raises(ValueError, match="zeros and ones"):
        probes.fit_logistic(features, np.array([1, 2, 1, 2]))
    with pytest.raises(ValueError, match="positive number"):
        probes.fit_logistic(features, labels, C=[1.0, 0.0])
    with pytest.raises(ValueError, match="tolerance"):
        probes.fit_logistic(features, labels, tolerance=0)


def test_balanced_accuracy_ignores_how_common_a_class_is():
    labels = np.array([True] * 90 + [False] * 10)
    assert probes.balanced_accuracy(np.ones(100, bool), labels) == 0.5
    assert np.isnan(probes.balanced_accuracy(np.ones(5, bool), np.ones(5, bool)))

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

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


def test_finds_the_planted_direction_and_only_there():
    features, labels, directions = planted(0, 3, 600, 24, [0.0, 1.0, 4.0])
    held_out, truth, _ = planted(1, 3, 600, 24, [0.0, 1.0, 4.0])
    probe, control = probes.fit(features, labels, permutations=20)
    accuracy = probes.balanced_accuracy(probe.scores(held_out) > 0, truth)
    assert abs(accuracy[0] - 0.5) < 0.06
    assert 0.75 < accuracy[1] < 0.9
    assert accuracy[2] == 1.0
    found = probe.directions()[2, 1]
    assert found @ directions[2] / np.linalg.norm(found) > 0.9
    shuffled = probes.balanced_accuracy(control.scores(held_out) > 0, truth)
    assert shuffled.shape == (20, 3)
    assert abs(shuffled.mean() - 0.5) < 0.06


@pytest.mark.parametrize("l2", [1.0, 10.0])
def test_agrees_with_scikit_learn(l2):
    features, labels, _ = planted(2, 2, 500, 40, [0.5, 1.5])
    held_out, truth, _ = planted(3, 2, 2000, 40, [0.5, 1.5])
    probe, _ = probes.fit(features, labels, l2=l2)
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
        np.testing.assert_allclose(direction, reference.coef_[0], atol=2e-3)


def test_the_two_rows_oppose_each_other_whatever_the_labels():
    features, labels, _ = planted(4, 2, 300, 16, [0.0, 2.0])
    probe, control = probes.fit(features, labels, permutations=2)
    assert probe.cosine().shape == (2,) and (probe.cosine() < -0.95).all()
    assert control.cosine().shape == (2, 2) and (control.cosine() < -0.95).all()


def test_constant_features_do_no_harm():
    features = np.ones((1, 40, 8), np.float32)
    labels = np.arange(40) % 2 == 0
    probe, _ = probes.fit(features, labels)
    assert np.isfinite(probe.weights).all()
    assert probes.balanced_accuracy(probe.scores(features) > 0, labels)[0] == 0.5


def test_shuffling_repeats_with_its_seed():
    features, labels, _ = planted(5, 1, 100, 8, [1.0])
    first, second, third = (probes.fit(features, labels, permutations=3, seed=seed)[1] for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert not np.array_equal(first.weights, third.weights)


def test_refuses_what_it_cannot_fit():
    features = np.zeros((1, 4, 2), np.float32)
    with pytest.raises(ValueError, match="both classes"):
        probes.fit(features, np.ones(4, bool))
    with pytest.raises(ValueError, match=r"\[layer, n, embedding\]"):
        probes.fit(features, np.ones(5, bool))


def test_balanced_accuracy_ignores_how_common_a_class_is():
    labels = np.array([True] * 90 + [False] * 10)
    assert probes.balanced_accuracy(np.ones(100, bool), labels) == 0.5
    assert np.isnan(probes.balanced_accuracy(np.ones(5, bool), np.ones(5, bool)))

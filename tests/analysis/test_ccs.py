import numpy as np
import pytest

from jaxinterp.analysis.ccs import fit_ccs


def pairs(seed, strength, n=300, width=16):
    """Statements and opposites: truth lies along one direction, at layer 1 only; a strong one marks the opposites."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(50).normal(size=width)
    truth /= np.linalg.norm(truth)
    labels = rng.random(n) < 0.5
    sides = rng.normal(size=(2, 2, n, width))
    sign = np.where(labels, 1.0, -1.0)[:, None]
    sides[0, 1] += strength * sign * truth
    sides[1, 1] -= strength * sign * truth
    sides[1] += 8.0 * np.eye(width)[3]
    return (sides * np.linspace(1, 20, width) + 5).astype(np.float32), labels, truth


def test_finds_the_planted_contrast_without_labels_and_nothing_elsewhere():
    (positive, negative), labels, truth = pairs(0, 4.0)
    (held_positive, held_negative), held, _ = pairs(1, 4.0)
    found = fit_ccs(positive, negative).oriented(positive, negative, labels)
    right = ((found.probabilities(held_positive, held_negative) > 0.5) == held).mean(axis=1)
    assert right[1] > 0.97
    assert abs(right[0] - 0.5) < 0.12
    direction = found.weights[1] / found.scale.mean(axis=0)[1] * np.linspace(1, 20, 16)
    assert direction @ truth / np.linalg.norm(direction) > 0.9
    assert found.losses.shape == (10, 2) and found.losses[:, 1].min() < 0.05


def test_keeps_the_start_with_the_lowest_loss_and_never_looks_at_labels():
    (positive, negative), _, _ = pairs(2, 1.0, n=60)
    found = fit_ccs(positive, negative, steps=40)
    above, below = (
        1
        / (
            1
            + np.exp(
                -(((side - found.centre[i][:, None]) / found.scale[i][:, None]) @ found.weights[..., None])[..., 0]
                - found.bias[:, None]
            )
        )
        for i, side in enumerate((positive, negative))
    )
    loss = ((above + below - 1) ** 2 + np.minimum(above, below) ** 2).mean(axis=1)
    np.testing.assert_allclose(loss, found.losses.min(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found.probabilities(positive, negative), (above + 1 - below) / 2, atol=1e-4)
    assert (found.losses.std(axis=0) > 0).all()


def test_turning_a_probe_round_turns_its_probabilities():
    (positive, negative), labels, _ = pairs(3, 4.0, n=60)
    found = fit_ccs(positive, negative, steps=40)
    one, other = (found.oriented(positive, negative, marks) for marks in (labels, ~labels))
    np.testing.assert_allclose(
        one.probabilities(positive, negative)[1], 1 - other.probabilities(positive, negative)[1], atol=1e-5
    )


def test_refuses_what_is_no_pair():
    (positive, negative), _, _ = pairs(4, 1.0, n=10)
    with pytest.raises(ValueError, match="shapes"):
        fit_ccs(positive, negative[:, :5])
    with pytest.raises(ValueError, match="finite"):
        fit_ccs(positive, negative * np.inf)
    with pytest.raises(ValueError, match="at least one"):
        fit_ccs(positive, negative, starts=0)

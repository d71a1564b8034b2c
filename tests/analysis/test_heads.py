import numpy as np
import pytest

from jaxinterp.analysis import heads


def test_attention_to_finds_the_planted_head():
    layers, batch, count, length = 3, 4, 5, 9
    rng = np.random.default_rng(0)
    pattern = np.tril(rng.random((layers, batch, count, length, length)) + 0.1)
    query = np.array([8, 7, 8, 6])
    digits = np.array([2, 1, 4, 3])
    for example in range(batch):
        pattern[1, example, 3, query[example]] = 0
        pattern[1, example, 3, query[example], digits[example]] = 1
    pattern /= pattern.sum(-1, keepdims=True)
    groups = np.zeros((batch, 2, length), bool)
    groups[np.arange(batch), 0, digits] = True
    groups[np.arange(batch), 1, 0] = True
    mass = heads.attention_to(pattern, query, groups)
    assert mass.shape == (batch, layers, count, 2)
    expected = sum(pattern[2, example, 4, query[example], digits[example]] for example in range(batch)) / batch
    assert mass[:, 2, 4, 0].mean() == pytest.approx(expected)
    assert heads.above(mass.mean(0)[..., 0], 0.9) == [(1, 3)]
    assert mass[:, 1, 3, 1].max() == 0


def test_above_is_exclusive_and_ordered():
    scores = np.array([[0.1, 0.5], [0.2, 0.5]])
    assert heads.above(scores, 0.1) == [(0, 1), (1, 1), (1, 0)]
    assert heads.above(scores, 0.5) == []
    assert heads.ranked(scores)[-1] == (0, 0)


def test_random_sets_avoid_what_they_must_and_cover_the_rest():
    outside = [(0, 1), (2, 3)]
    sets = heads.draw_sets((4, 5), outside, size=6, draws=200, seed=0)
    assert len(sets) == 200 and all(len(set(drawn)) == 6 for drawn in sets)
    drawn = {head for one in sets for head in one}
    assert drawn == {(layer, head) for layer in range(4) for head in range(5)} - set(outside)
    assert sets == heads.draw_sets((4, 5), outside, size=6, draws=200, seed=0)
    with pytest.raises(ValueError, match="smaller set"):
        heads.draw_sets((2, 2), [(0, 0)], size=4, draws=1, seed=0)


def test_no_heads_have_an_empty_label():
    assert heads.label([]) == ""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.analysis import readout, statistics
from jaxinterp.analysis import units as glu
from jaxinterp.models.toy import toy

TEXTS = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_units_times_what_they_write_is_what_the_mlp_writes(family):
    model = toy(family)
    _, acts = ji.run(model, TEXTS, sites=[ji.mlp_post(...), ji.mlp_out(...)], logits=None)
    vectors = glu.value_vectors(model)
    bias = model.weights().get("blocks.1.b_out", np.zeros(()))
    written = acts["mlp_post", 1] @ vectors[1] + np.asarray(bias)
    np.testing.assert_allclose(written[acts.mask], acts["mlp_out", 1][acts.mask], atol=1e-5)


def test_a_gain_behind_the_mlp_is_part_of_what_its_units_write():
    model = toy("gemma3_text")
    _, acts = ji.run(model, TEXTS, sites=[ji.mlp_post(0), ji.mlp_out(0)], logits=None)
    written = (acts["mlp_post", 0] @ glu.value_vectors(model)[0])[acts.mask]
    out = acts["mlp_out", 0][acts.mask]
    ratio = np.linalg.norm(out, axis=1, keepdims=True) / np.linalg.norm(written, axis=1, keepdims=True)
    np.testing.assert_allclose(written * ratio, out, atol=1e-4)


def test_cosines_with_directions_of_any_shape():
    rng = np.random.default_rng(0)
    vectors, directions = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 2, 4))
    directions[0, 0] = 0
    found = glu.cosines(vectors, directions)
    assert found.shape == (5, 2, 2, 3) and not found[0, 0].any()
    expected = vectors[1, 2] @ directions[3, 1] / np.linalg.norm(vectors[1, 2]) / np.linalg.norm(directions[3, 1])
    assert found[3, 1, 1, 2] == pytest.approx(expected)


def test_the_pooled_ranking_takes_each_unit_once_and_no_layer_behind_its_probe():
    cosines = np.zeros((3, 3, 4))
    cosines[1, 0, 2], cosines[2, 0, 2] = 0.5, 0.7  # one unit, near two probes
    cosines[1, 2, 3] = 0.9  # lies behind the probe
    cosines[2, 2, 1] = 0.6
    cosines[0, 0, 0] = 0.8  # the probe does not count
    assert glu.pooled_ranking(cosines, 1, 2, first=1) == [(0, 2), (2, 1)]
    assert len(set(glu.pooled_ranking(cosines, 2, 99))) == len(glu.pooled_ranking(cosines, 2, 99))


def test_the_tokens_that_a_row_of_the_unembedding_raises_start_with_its_own():
    model = toy("qwen2", hidden_size=96)
    table = np.asarray(model.weights()["W_U"])
    ids, values = glu.top_tokens(model, table[[7, 50]], 3)
    assert ids[:, 0].tolist() == [7, 50] and (np.diff(values) <= 0).all()
    gain = np.asarray(model.weights()["ln_final.w"])
    scaled, _ = glu.top_tokens(model, table[[7]] / gain, 1, gain=True)
    assert scaled.tolist() == [[7]]


def test_units_are_zeroed_at_the_tokens_asked_for():
    model = toy("llama")
    off = glu.ablate_units(model, [(1, 3), (0, 2), (1, 5)], at=ji.last())
    _, acts = ji.run(off, TEXTS, sites=ji.mlp_post(...), logits=None)
    for layer, units in ((0, [2]), (1, [3, 5])):
        assert not acts["mlp_post", layer][:, -1, units].any()
        assert acts["mlp_post", layer][0, :-1, units].all()
    assert np.count_nonzero(acts["mlp_post", 1][:, -1] == 0) == 4
    assert glu.ablate_units(model, []) is model


def test_random_units_avoid_others():
    rng = np.random.default_rng(0)
    near = {(layer, unit) for layer in (1, 2) for unit in range(5)}
    drawn = glu.draw_units(8, [1, 2], 3, near, rng)
    assert sorted(drawn) == [(layer, unit) for layer in (1, 2) for unit in (5, 6, 7)]
    with pytest.raises(ValueError, match="3 of 8 units of layer 1 are left to draw 4"):
        glu.draw_units(8, [1], 4, near, rng)


def test_intervals_of_many_means_are_those_of_each(monkeypatch):
    values = np.random.default_rng(0).normal(size=(60, 3, 2))
    low, high = statistics.bootstrap_means(values, seed=0)
    assert low.shape == (3, 2)
    for place in np.ndindex(3, 2):
        alone = statistics.bootstrap(values[(slice(None), *place)], seed=1)
        assert (low[place], high[place]) == pytest.approx(alone, abs=0.05)
    with pytest.raises(ValueError, match="no examples"):
        statistics.bootstrap_means(values[:0], seed=0)


def test_mean_probabilities_are_those_of_the_model(monkeypatch):
    model = toy("qwen2")
    logits, acts = ji.run(model, TEXTS, sites=ji.resid_post(...))
    values = np.exp(logits[:, -1] - logits[:, -1].max(-1, keepdims=True))
    expected = (values / values.sum(-1, keepdims=True)).mean(0)
    streams = acts.stack("resid_post")[:, :, -1]
    np.testing.assert_allclose(readout.mean_probabilities(model, streams)[-1], expected, atol=1e-6)
    monkeypatch.setattr(readout, "_CHUNK_BYTES", 1)
    np.testing.assert_allclose(readout.mean_probabilities(model, streams)[-1], expected, atol=1e-6)

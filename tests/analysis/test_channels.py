import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.analysis import channels
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

TEXT = [[3, 1, 4, 1, 5]]


def silu(x):
    return x / (1 + np.exp(-x))


def edited(model, **changes):
    """The model with some weights replaced; dots in names are written as `__`."""
    weights = {name: np.asarray(array) for name, array in model.weights().items()}
    return with_weights(model, weights | {name.replace("__", "."): array for name, array in changes.items()})


@pytest.fixture(scope="module")
def wired():
    """Head L0.H2 writes onto the axis that unit (1, 5) reads with gate and linear branch; nothing else meets it.

    The head copies axis 3 through a single channel of its width to axis 7, with strengths 2 and 3.
    """
    model = toy("qwen2", num_hidden_layers=2)
    quiet = {
        name: np.zeros(array.shape, np.float32)
        for name, array in model.weights().items()
        if name.rsplit(".", 1)[-1] in ("W_V", "W_O", "W_gate", "W_in", "b_V")
    }
    quiet["blocks.0.W_V"][1, 0, 3] = 2.0
    quiet["blocks.0.W_O"][7, 2, 0] = 3.0
    quiet["blocks.1.W_gate"][5, 7] = 1.5
    quiet["blocks.1.W_in"][5, 7] = 0.5
    gains = {"blocks.0.ln_attn.w": np.ones(32, np.float32), "blocks.1.ln_mlp.w": np.full(32, 2.0, np.float32)}
    return edited(model, **quiet, **gains)


def test_fields_are_rows_of_the_gate_and_the_linear_branch(wired):
    plain = channels.receptive_fields(wired, [(1, 5), (0, 5)], norm=False)
    assert plain.shape == (2, 2, 32)
    np.testing.assert_allclose(plain[0, :, 7], [1.5, 0.5])
    assert np.abs(plain).sum() == 2.0
    folded = channels.receptive_fields(wired, [(1, 5)], scales={1: 4.0})
    np.testing.assert_allclose(folded[0, :, 7], [1.5 * 2 / 4, 0.5 * 2 / 4])


def test_the_drive_of_one_head_is_the_units_activation(wired):
    outputs = np.zeros((2, 4, 32), np.float32)
    outputs[0, 2, 7] = 2.0
    fields = channels.receptive_fields(wired, [(1, 5)], norm=False)
    score = channels.drive(wired, outputs, fields)
    assert score[0, 2] == pytest.approx(silu(3.0) * 1.0, abs=1e-6)
    assert np.count_nonzero(score) == 1
    against = channels.drive(wired, -outputs, fields)
    assert against[0, 2] == pytest.approx(silu(-3.0) * -1.0, abs=1e-6)


def test_heads_drive_units_behind_them_only_where_layers_are_given(wired):
    outputs = np.zeros((2, 4, 32), np.float32)
    outputs[:, 2, 7] = 2.0
    units = [(1, 5), (0, 5)]
    fields = channels.receptive_fields(wired, units, norm=False)
    alone = silu(3.0)
    np.testing.assert_allclose(channels.drive(wired, outputs, fields)[:, 2], [alone / 2, alone / 2], atol=1e-6)
    behind = channels.drive(wired, outputs, fields, [1, 0])
    np.testing.assert_allclose(behind[:, 2], [alone / 2, alone], atol=1e-6)
    before = channels.drive(wired, outputs, fields[:1], [0])
    np.testing.assert_allclose(before[:, 2], [alone, 0.0], atol=1e-6)


def test_the_drive_of_what_a_model_writes_is_the_activation_that_the_model_has():
    model = toy("qwen2", num_hidden_layers=1)
    still = {name: 0 * np.asarray(array) for name, array in model.weights().items() if name == "W_E"}
    model = edited(model, **still)
    sites = [ji.head_out(0), ji.z(0), ji.ln_scale_mlp(0), ji.mlp_post(0)]
    _, acts = ji.run(model, TEXT, sites=sites)
    outputs = acts["head_out", 0][0, -1]
    np.testing.assert_allclose(channels.written(model, acts["z", 0][:1, -1])[0], outputs, atol=1e-6)
    scale = float(acts["ln_scale_mlp", 0][0, -1])
    fields = channels.receptive_fields(model, [(0, 11)], scales={0: scale})
    together = channels.drive(model, outputs.sum(axis=0)[None, None], fields)
    assert together[0, 0] == pytest.approx(acts["mlp_post", 0][0, -1, 11], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_diagonals_are_those_of_the_products_under_grouped_queries(family):
    model = toy(family)
    weights = {name: np.asarray(array) for name, array in model.weights().items()}
    found = channels.weight_diagonals(model)
    assert found.shape == (3, 4, 32)
    for layer in range(3):
        for head in range(4):
            values, outputs = weights[f"blocks.{layer}.W_V"][head // 2], weights[f"blocks.{layer}.W_O"][:, head]
            np.testing.assert_allclose(found[layer, head], np.diagonal(values.T @ outputs.T), atol=1e-5)


def test_a_head_that_copies_one_axis_to_another_has_no_diagonal(wired):
    assert not channels.weight_diagonals(wired).any()


def test_the_overlap_is_1_where_a_head_can_write_just_what_a_unit_reads(wired):
    fields = channels.receptive_fields(wired, [(1, 5)])
    found = channels.overlap(wired, fields, [1])
    assert found[0, 2] == pytest.approx(1.0, abs=1e-6)
    assert np.count_nonzero(found) == 1


def test_the_overlap_agrees_with_the_whole_matrices():
    model = toy("qwen2", num_hidden_layers=2)
    units = [(0, 3), (1, 4), (1, 9)]
    fields = channels.receptive_fields(model, units)
    found = channels.overlap(model, fields)
    assert ((found > 0) & (found < 1)).all()
    for layer, head in ((0, 1), (1, 2)):
        circuit = ji.W_OV(model, layer, head)
        shares = [np.linalg.norm(rows @ circuit.matrix()) / np.linalg.norm(rows) / circuit.norm() for rows in fields]
        assert found[layer, head] == pytest.approx(np.mean(shares), rel=1e-4)


def test_random_directions_overlap_as_their_dimensions_say():
    model = toy("llama", num_hidden_layers=1)
    fields = np.asarray(jax.random.normal(jax.random.key(0), (400, 2, 32)))
    found = channels.overlap(model, fields)
    np.testing.assert_allclose(found, np.sqrt(1 / 32), atol=0.03)


def test_what_cannot_be_scored_is_refused_in_sentences(wired):
    with pytest.raises(ValueError, match="no unit 48 of layer 1"):
        channels.receptive_fields(wired, [(1, 48)])
    with pytest.raises(ValueError, match="no units"):
        channels.receptive_fields(wired, [])
    with pytest.raises(ValueError, match="without a gate"):
        channels.receptive_fields(toy("gpt2"), [(0, 0)])

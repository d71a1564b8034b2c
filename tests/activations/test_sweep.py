"""Sweeps: equal to one run a cell, compiled once."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import sweep as sweeping
from jaxinterp.models.toy import toy

MODEL = toy("llama", hidden_size=16, intermediate_size=24, num_hidden_layers=3)
TEXTS = [[3, 1, 4, 1, 5], [6, 5, 3]]
METRIC = ji.logit_diff(7, 9)


def difference(model):
    logits, _ = ji.run(model, TEXTS, logits="last")
    return logits[:, 7] - logits[:, 9]


def test_every_cell_is_what_a_run_of_it_gives():
    cells = ji.grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(3), head=range(4))
    before = sweeping._measure_many._cache_size()
    table = ji.sweep(MODEL, TEXTS, cells, METRIC, progress=False)
    assert sweeping._measure_many._cache_size() == before + 1
    assert table.columns == ["layer", "head", "prompt", "clean", "value", "effect"]
    assert table.height == 24
    for number, cell in enumerate(cells[:5] + cells[-1:]):
        number = number if number < 5 else len(cells) - 1
        rows = table[2 * number : 2 * number + 2]
        np.testing.assert_allclose(rows["value"], difference(cell.edit(MODEL)), atol=1e-5)
        np.testing.assert_allclose(rows["effect"], rows["value"] - difference(MODEL), atol=1e-5)


def test_a_planted_position_is_found():
    _, other = ji.run(MODEL, [[3, 1, 8, 1, 5], [6, 8, 3]], sites=[ji.resid_pre()])
    cells = ji.grid(
        lambda lm, layer, back: ji.patch(lm, ji.resid_pre(layer), other, positions=[(-back, -back)]),
        layer=[0],
        back=[1, 2, 3],
    )
    table = ji.sweep(MODEL, TEXTS, cells, METRIC, progress=False)
    effects = np.abs(table["effect"].to_numpy().reshape(3, 2))
    assert effects[0].max() < 1e-5, "the last token is the same in both texts"
    assert effects[2, 0] > 1e-3, "the third from the end differs in row 0"
    assert effects[1, 1] > 1e-3, "the second from the end differs in row 1"
    assert effects[1, 0] < 1e-5


def test_steering_scales_are_numbers_of_one_program():
    vector = np.random.default_rng(0).normal(size=16)
    cells = ji.grid(lambda lm, scale: ji.steer(lm, ji.resid_post(1), vector, scale), scale=[0.0, 1.0, -1.0])
    table = ji.sweep(MODEL, TEXTS, cells, ji.log_prob(7), progress=False)
    np.testing.assert_allclose(table["effect"][:2], 0, atol=1e-5)
    assert np.abs(table["effect"][2:]).min() > 1e-4


def test_cells_of_different_kinds_share_a_table():
    cells = [
        ji.Cell({"kind": "head"}, lambda lm: ji.ablate(lm, ji.head(0, 0))),
        ji.Cell({"kind": "mlp", "layer": 1}, lambda lm: ji.ablate(lm, ji.mlp_out(1))),
    ]
    table = ji.sweep(MODEL, TEXTS, cells, METRIC, progress=False)
    np.testing.assert_allclose(table["value"][2:], difference(cells[1].edit(MODEL)), atol=1e-5)
    assert table["layer"].to_list() == [None, None, 1, 1]


def test_no_cells_is_refused():
    with pytest.raises(ValueError, match="make some with"):
        ji.sweep(MODEL, TEXTS, [], METRIC)

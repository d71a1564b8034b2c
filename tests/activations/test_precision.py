"""The noise floor: exact where it says so, above what is nothing, below what is something."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.activations import precision
from jaxinterp.activations.precision import mark_noise, noise_floor
from jaxinterp.models.toy import toy

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
MODEL = toy("llama", **SIZES)
TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8], [1, 6, 1, 8, 0], [9, 9, 8, 7, 6, 5]]
METRIC = ji.logit_diff(5, 9)
HEADS = ji.grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(2), head=range(4))


@pytest.fixture(scope="module")
def floor():
    return noise_floor(MODEL, TEXTS, HEADS, METRIC)


def largest(floor, name, quantity="effect"):
    return floor.table.filter(precision=name, quantity=quantity)["max"].item()


def test_half_the_digits_are_half_as_good(floor):
    assert floor.effect == largest(floor, "float32") and floor.value == largest(floor, "float32", "value")
    assert 1e-8 < floor.effect < 1e-4
    assert largest(floor, "float32 highest") < 1e-4
    # 24 bits against 8: a factor of 65,536 but for luck.
    assert 1e3 < largest(floor, "bfloat16") / floor.effect < 1e7
    assert floor.table["n"].to_list() == [36] * 3 + [32] * 3
    rows = floor.samples.filter(pl.col("precision") == "float32", pl.col("cell") >= 0)
    assert (rows["effect"] - rows["exact_effect"]).abs().max() == floor.effect
    assert jnp.ones(1).dtype == np.float32, "the precision of the program around has changed"


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_the_exact_run_is_in_float64_throughout(family):
    """More padding changes the order of sums and nothing else: float32 rounds otherwise then, float64 does not."""
    model = toy(family, **({"n_embd": 16, "n_layer": 2} if family == "gpt2" else SIZES))
    measure = precision.bind_metric(METRIC, model, len(TEXTS))
    tokens, mask = precision.prepare(model, TEXTS)
    exact, usual = [], []
    for width in (8, 16):
        padded = precision.pad_rows(tokens, mask, len(tokens), width)
        ((values),) = precision._exactly([model.body], *padded, measure)
        exact.append(values)
        usual.append(np.asarray(precision._measure(model.body, *padded, measure)))
    assert exact[0].dtype == np.float64
    assert np.abs(exact[0] - exact[1]).max() < 1e-13
    assert 0 < np.abs(usual[0] - exact[0]).max() < 1e-5
    assert not np.array_equal(exact[0], exact[0].astype(np.float32))


def test_what_has_no_effect_lies_below_the_floor_and_what_has_one_above(floor):
    """The same vector added to all keys changes no pattern: what it does to the logits is rounding alone."""
    vector = np.random.default_rng(0).normal(size=8).astype(np.float32)
    planted = [
        ji.Cell({"edit": "all keys alike"}, lambda lm: ji.steer(lm, ji.k(1), vector)),
        ji.Cell({"edit": "nothing"}, lambda lm: ji.steer(lm, ji.resid_post(0), np.ones(16, np.float32), 0.0)),
        ji.Cell({"edit": "a head"}, lambda lm: ji.ablate(lm, ji.head(1, 2))),
    ]
    found = noise_floor(MODEL, TEXTS, planted, METRIC, precisions=["float32"]).samples
    assert found.filter(cell=0)["exact_effect"].abs().max() < 1e-13
    assert found.filter(cell=0)["effect"].abs().max() > 0, "the planted edit does not even round"
    marked = mark_noise(found.filter(pl.col("cell") >= 0), floor)
    assert marked.filter(cell=2)["resolved"].all()
    assert not marked.filter(pl.col("cell") < 2)["resolved"].any()
    assert marked["noise"].unique().to_list() == [floor.effect]


def test_of_many_cells_some_are_measured_from_end_to_end():
    few = noise_floor(MODEL, TEXTS[:1], HEADS, ji.log_prob(5), precisions=["float32"], most=3)
    assert few.samples["cell"].to_list() == [-1, 0, 4, 7]


def test_a_model_in_bfloat16_is_measured_with_its_own_weights():
    narrow = MODEL.with_body(jax.tree_util.tree_map(lambda leaf: leaf.astype(jnp.bfloat16), MODEL.body))
    measured = noise_floor(narrow, TEXTS, HEADS[:1], METRIC)
    assert measured.effect < 1e-4 < largest(measured, "bfloat16")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"edits": []}, "there are no edits"),
        ({"precisions": ["float8"]}, "there is no precision 'float8'"),
        ({"metric": ji.logit_diff(5, 500)}, "lies outside the vocabulary"),
    ],
)
def test_bad_input_is_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        noise_floor(**{"model": MODEL, "prompts": TEXTS, "edits": HEADS, "metric": METRIC} | change)
    with pytest.raises(ValueError, match="has no column effect"):
        mark_noise(pl.DataFrame({"value": [1.0]}), 1e-6)


def test_a_loop_in_a_metric_is_refused():
    def looping(logits):
        return jax.lax.fori_loop(0, 3, lambda _, total: total + logits[:, 0], jnp.zeros(len(logits)))

    with pytest.raises(ValueError, match="cannot be run in float64"):
        noise_floor(MODEL, TEXTS, HEADS[:1], looping)


def test_the_results_are_values(floor):
    with pytest.raises(dataclasses.FrozenInstanceError):
        floor.table = None

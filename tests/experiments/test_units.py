"""Units that write the verdict: found where they are planted, and not in a random model."""

import json

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, units
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy
from jaxinterp.tasks import verification
from tests.experiments import written_verdicts

TINY = units.Config(share=0.075, sweep=(1,), ranking=0.05, selection=4, evaluation=6, draws=3, random_units=150)
SMALL = units.Config(sweep=(1, 64), selection=8, evaluation=8, draws=2, random_units=50)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def verdicts():
    return written_verdicts.table(8)


def random_model(model):
    return toy(
        "qwen2",
        tokenizer=model.require_tokenizer(),
        vocab_size=76,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=4,
        max_position_embeddings=512,
    )


def probes_of(model, planted):
    """Directions from the rejecting words to the accepting ones, or random ones."""
    depth, width = model.architecture.layers + 1, model.architecture.embedding
    if not planted:
        directions = np.random.default_rng(0).normal(size=(depth, width))
    else:
        accepting, rejecting = verification.verdict_tokens(model.require_tokenizer())
        table = np.asarray(model.weights()["W_U"])
        directions = np.tile(table[accepting].sum(0) - table[rejecting].sum(0), (depth, 1))
    return {"verdict/directions": np.stack([-directions, directions], axis=1).astype(np.float32)}


@pytest.fixture(scope="module")
def planted(model, verdicts):
    """In the upper half, units 0-11 write the accepting words, units 12-23 the rejecting ones."""
    whole = random_model(model)
    weights = {name: np.array(array) for name, array in whole.weights().items()}
    words = verification.verdict_tokens(model.require_tokenizer())
    rng = np.random.default_rng(0)
    for layer in (2, 3):
        for unit in range(24):
            vector = weights["W_U"][words[unit >= 12]].sum(0)
            weights[f"blocks.{layer}.W_out"][:, unit] = 0.1 * vector + 0.1 * rng.normal(size=len(vector))
    whole = with_weights(whole, {name: jnp.asarray(array) for name, array in weights.items()})
    return units.run(TINY, {"model": whole}, {"verdicts": verdicts, "probes": probes_of(whole, True)})


@pytest.fixture(scope="module")
def random(model, verdicts):
    whole = random_model(model)
    return units.run(TINY, {"model": whole}, {"verdicts": verdicts, "probes": probes_of(whole, False)})


@pytest.fixture(scope="module")
def small(model, verdicts):
    """The shipped model with the directions of its own unembedding for probes, which serves to run the code."""
    return units.run(SMALL, {"model": model}, {"verdicts": verdicts, "probes": probes_of(model, True)})


def flips(**shares):
    """A table of an ablation with given shares of flips, on top of the lists of another."""
    rows = [
        {"part": "ablation", "measure": "flips", "list": "cosine", "polarity": polarity, "k": k, "value": value}
        for polarity, values in shares.items()
        if polarity != "random"
        for k, value in zip((1, 12), values, strict=True)
    ]
    rows += [
        {"part": "ablation", "measure": "flips", "list": "random", "k": k, "draw": draw, "value": value}
        for k, value in zip((1, 2, 12, 24), shares["random"], strict=True)
        for draw in range(3)
    ]
    numbers = {"low": 0.0, "high": 1.0, "n": 300}
    return pl.DataFrame([row | numbers for row in rows], schema=units._COLUMNS)


def with_flips(table, **shares):
    return pl.concat([table.filter(pl.col("part") != "ablation"), flips(**shares)])


def test_planted_units_are_listed_and_read(planted):
    found = units.found(planted)
    assert {layer for layer, _ in found["valid"]} == {2, 3} and len(found["valid"]) == len(found["invalid"]) == 24
    assert all(unit < 12 for _, unit in found["valid"]) and all(12 <= unit < 24 for _, unit in found["invalid"])
    assert all(layer >= 2 and unit < 12 for layer, unit in units.ranked(planted)[:20])
    read = planted.filter(part="readout", measure="v", list="ranking", polarity="valid", rank=0)
    assert read["place"].to_list() == list(range(8)) and read["word"].to_list().count("accepts") >= 3
    assert read["value"].is_sorted(descending=True)
    assert [claim.met for claim in units.check(planted)[:3]] == [True, True, True]


def test_a_random_model_has_no_readable_units(random):
    assert [claim.met for claim in units.check(random)[:3]] == [False, False, True]
    assert not units.check(random)[3].met


@pytest.mark.parametrize(
    ("shares", "met"),
    [
        ({"valid": (0.1, 0.2), "invalid": (0, 0), "both": (0.1, 0.5), "random": (0, 0, 0, 0.01)}, [True, True]),
        ({"valid": (0.1, 0.4), "invalid": (0, 0), "both": (0.1, 0.5), "random": (0, 0, 0, 0.05)}, [False, False]),
        ({"valid": (0, 0), "invalid": (0, 0), "both": (0, 0), "random": (0, 0, 0, 0)}, [False, True]),
    ],
)
def test_the_claims_on_ablation(planted, shares, met):
    held = units.check(with_flips(planted, **shares))[3:]
    assert [claim.met for claim in held] == met
    assert "as many random ones" in held[0].control


@pytest.mark.slow
def test_the_table_of_the_shipped_model(small):
    ablation = small.filter(part="ablation")
    clean = dict(ablation.filter(list="none").select("measure", "value").iter_rows())
    assert clean["flips"] == 0 and clean["rejections kept"] == 1 and clean["malformed, accepted"] == 0
    assert clean["margin, accepted"] > 3 and clean["margin, rejected"] < -3
    assert sorted(set(ablation["k"].drop_nulls())) == [1, 2, 4, 8, 64, 128]
    counts = ablation.filter(measure="flips").select("list", "polarity", "k", "units").unique()
    assert counts.filter(list="cosine", polarity="both", k=4)["units"].item() == 4 * 2 * 4
    assert counts.filter(list="random", k=8)["units"].item() == 4 * 8
    assert ablation.filter(list="random")["control"].all() and not ablation.filter(list="cosine")["control"].any()
    assert len(units.ranked(small)) == 31 and len(units.found(small)["valid"]) == 16
    assert not small["value"].is_nan().any()


@pytest.mark.slow
def test_activations_are_those_of_a_run(model, verdicts, small):
    layer, unit = units.found(small)["valid"][0]
    prefixes = verdicts.filter(pl.col("split") == "selection", pl.col("valid"))["prefix"].to_list()
    alone = []
    for prefix in prefixes:
        _, acts = ji.run(model, [prefix], sites=ji.mlp_post(layer), logits=None)
        alone.append(acts["mlp_post", layer][0, -1, unit])
    rows = small.filter(part="unit", list="cosine", polarity="valid", rank=0)
    found = dict(rows.select("measure", "value").iter_rows())
    assert found["activation at valid verdicts"] == pytest.approx(np.mean(alone), abs=1e-4)
    assert found["positive at valid verdicts"] == np.mean(np.array(alone) > 0)


@pytest.mark.slow
def test_the_records_can_be_written_as_json_and_the_figure_drawn(small):
    json.dumps(claims.records(units.check(small)), allow_nan=False)
    drawn = units.figure(small)
    assert sorted(axes.get_title(loc="left")[0] for axes in drawn.axes) == list("abcdef")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"probes": {}}, "no array 'verdict/directions'"),
        ({"probes": {"verdict/directions": np.zeros((9, 2, 5))}}, r"this model needs \[9, 2, 256\]"),
        ({"verdicts": written_verdicts.table(2).filter(pl.col("valid"))}, "no rejected attempts"),
    ],
)
def test_bad_input_is_one_sentence(model, verdicts, change, sentence):
    inputs = {"verdicts": verdicts, "probes": probes_of(model, True)} | change
    with pytest.raises(ValueError, match=sentence):
        units.run(SMALL, {"model": model}, inputs)


def test_more_units_than_leave_room_for_random_ones_are_refused(model, verdicts):
    with pytest.raises(ValueError, match="layers of 768 units allow 1 to 128"):
        units.run(
            units.Config(sweep=(256,)), {"model": model}, {"verdicts": verdicts, "probes": probes_of(model, True)}
        )


@pytest.mark.slow
def test_a_table_without_units_is_refused(small):
    with pytest.raises(ValueError, match="lists no valid units"):
        units.found(small.filter(part="ablation"))

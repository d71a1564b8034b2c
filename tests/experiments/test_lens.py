"""The lens on verdicts: what it reads is the model's own end, and its claims are met where synonyms are planted."""

import json

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import ablation, claims, lens, units
from jaxinterp.experiments.self_verification import cases
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy
from jaxinterp.tasks import verification
from tests.experiments import written_verdicts

SMALL = lens.Config(cases=6, ablated=4)
HEADS = {"paper": [], "target": [(4, 5), (4, 0)], "circuit": [(4, 5), (4, 7), (3, 4)]}
UNITS = {"valid": [(5, 3), (6, 4)], "invalid": [(5, 9), (6, 4)]}
FEW = {"valid": [(1, 3)], "invalid": [(1, 4)]}


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def verdicts():
    return written_verdicts.table(6, ("evaluation",))


def run(model, verdicts, sets, listed):
    """The experiment with stand-ins for what the tables of heads and units say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "found", lambda table: sets)
        patch.setattr(units, "found", lambda table: listed)
        inputs = {"verdicts": verdicts, "ablation": pl.DataFrame(), "units": pl.DataFrame()}
        return lens.run(SMALL, {"model": model}, inputs)


@pytest.fixture(scope="module")
def small(model, verdicts):
    return run(model, verdicts, HEADS, UNITS)


@pytest.mark.slow
def test_the_words_of_the_shipped_model(model, verdicts, small):
    last = small.filter(measure="word", layer=7, site="resid_post")
    final = {(row["condition"], row["verdict"], row["token"]): row["value"] for row in last.iter_rows(named=True)}
    assert final["clean", "valid", "this"] > 0.99 and final["clean", "invalid", "not "] > 0.99
    assert final["target heads", "valid", "this"] < 0.5 < final["target heads", "valid", "not "]
    assert final["random units", "valid", "this"] > 0.9
    accepting, rejecting = verification.verdict_tokens(model.require_tokenizer())
    assert last["word"].to_list()[:12] == ["accepts"] * len(accepting) + ["rejects"] * len(rejecting)
    removed = dict(small.select("condition", "removed").unique().iter_rows())
    assert removed["units"] == "3 units" and removed["random units"] == "3 random units"
    assert removed["target heads"] == "L4.H5 L4.H0" and removed["clean"] == ""
    assert set(small.filter(pl.col("condition") != "clean")["n"]) == {4} and set(small["n"]) == {4, 6}
    assert small["value"].is_between(0, 1 + 1e-6).all()


@pytest.mark.slow
def test_it_reads_what_the_logit_lens_reads(model, verdicts, small):
    chosen = cases.load(model, verdicts, "evaluation", valid=True)
    reading = ji.logit_lens(model, [list(case.ids) for case in chosen], tokens=["this", "success"], top=1)
    expected = reading.answers.group_by("layer", "text").agg(pl.col("log_prob").exp().mean())
    own = small.filter(condition="clean", verdict="valid", site="resid_post", measure="word")
    for layer, text, value in expected.iter_rows():
        assert own.filter(layer=layer, token=text)["value"].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.slow
def test_sums_and_likeliest_tokens_are_of_the_same_probabilities(small):
    here = small.filter(condition="clean", verdict="valid", site="resid_mid", layer=5)
    words = here.filter(measure="word")
    sums = dict(here.filter(measure="sum").select("token", "value").iter_rows())
    accepting = words.filter(word="accepts")["value"]
    assert sums["other accepting words"] == pytest.approx(accepting[1:].sum(), abs=1e-6)
    rest = 1 - words["value"].sum()
    assert sums["five other tokens"] == pytest.approx(5 * rest / 64, abs=1e-6)
    assert here.filter(measure="sum", control=True)["token"].to_list() == ["five other tokens"]
    top = here.filter(measure="top").sort("rank")
    assert top["value"].is_sorted(descending=True) and top["rank"].to_list() == [0, 1, 2, 3]
    assert top["value"][0] == pytest.approx(max(words["value"]), abs=1e-6)


def planted_peak(model, row):
    """A model of two blocks whose first block writes the synonyms of a verdict and whose second the word itself.

    One unit of each block reads a direction that every token has, and attention writes nothing.
    """
    words, width = verification.verdict_tokens(model.require_tokenizer()), 96
    sizes = {"vocab_size": 76, "hidden_size": width, "num_hidden_layers": 2, "max_position_embeddings": 512}
    whole = toy("qwen2", tokenizer=model.require_tokenizer(), **sizes)
    weights = {name: np.array(array) for name, array in whole.weights().items()}
    for name, array in weights.items():
        array[:] = name.endswith(".w")
        if name.endswith(("W_gate", "W_in")):
            array[0, -1] = width**-0.5
    weights["W_E"][:, -1] = 1
    weights["W_U"][:] = 2 * np.eye(76, width)
    weights["blocks.0.W_out"][words[row][1:], 0] = 1
    weights["blocks.1.W_out"][words[row][:1], 0] = 40
    return with_weights(whole, {name: jnp.asarray(array) for name, array in weights.items()})


@pytest.mark.parametrize(("row", "met"), [(0, [True, False, True, False]), (1, [False, True, False, True])])
def test_planted_synonyms_of_one_verdict_meet_half_of_the_claims(model, verdicts, row, met):
    """The model says the same at both verdicts, so that where the words do not belong they count as crosswise."""
    table = run(planted_peak(model, row), verdicts, {"target": [], "circuit": []}, FEW)
    assert [claim.met for claim in lens.check(table)] == met


def test_a_random_model_meets_no_claim_on_synonyms(model, verdicts):
    whole = toy("qwen2", tokenizer=model.require_tokenizer(), vocab_size=76, max_position_embeddings=512)
    faint = {name: array * (0.1 if name == "W_U" else 1) for name, array in whole.weights().items()}
    whole = with_weights(whole, faint)
    table = run(whole, verdicts, {"target": [], "circuit": [(1, 1)]}, FEW)
    assert not any(claim.met for claim in lens.check(table)[:2])


@pytest.mark.slow
def test_only_blocks_before_the_word_takes_over_count(small):
    late = small.with_columns(
        value=pl.when((pl.col("token") == "other accepting words") & (pl.col("layer") == 7))
        .then(0.9)
        .otherwise("value")
    )
    assert lens.check(late)[0].ours == lens.check(small)[0].ours
    sure = small.with_columns(value=pl.when(pl.col("token") == "this").then(1.0).otherwise("value"))
    assert lens.check(sure)[0].n == 0 and not lens.check(sure)[0].met


@pytest.mark.slow
def test_the_records_can_be_written_as_json_and_the_figure_drawn(small):
    json.dumps(claims.records(lens.check(small)), allow_nan=False)
    drawn = lens.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == list("abcdefgh")


def test_an_empty_split_is_one_sentence(model, verdicts):
    with pytest.raises(ValueError, match="no accepted attempts in its evaluation split"):
        run(model, verdicts.filter(~pl.col("valid")), HEADS, UNITS)

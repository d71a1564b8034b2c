import json

import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, regeneration
from jaxinterp.experiments.self_verification import missing_parts
from tests.experiments import planted_parts, verdict_table

SMALL = regeneration.Config(evaluation=6, max_new_tokens=32, curve=2, draws=2, recomputed=2, samples=1, batch_size=6)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def inputs():
    return {
        "verdicts": verdict_table.write(),
        "ablation": planted_parts.of_heads(),
        "units": planted_parts.of_units(),
    }


@pytest.fixture(scope="module")
def small(model, inputs):
    return regeneration.run(SMALL, {"model": model}, inputs)


def share(table, condition, outcome="success", rule="rule A", reads="text", **more):
    rows = table.filter(pl.col("draw").is_null()).filter(
        condition=condition, measure=rule, outcome=outcome, reads=reads, **more
    )
    return rows["value"].item()


def table_of(values, empty=("paper's definition",)):
    """A table as `run` would give it where so many of 300 traces turn to "not" and go on."""
    rows = []
    for (condition, reads, count), value in values.items():
        about = {"condition": condition, "reads": reads, "count": count, "removed": "L4.H5", "control": False}
        for rule in ("rule A", "rule B", "rule C"):
            for outcome, number in (("success", value), ("failure", 1 - value), ("partial", 0.0), ("unknown", 0.0)):
                known = {"value": number, "low": number, "high": number, "n": 300}
                known = {"n": 0} if condition in empty else known
                rows.append(about | {"measure": rule, "outcome": outcome} | known)
        if condition.startswith("random"):
            rows.append(about | {"measure": "rule A", "outcome": "success", "draw": 0, "value": value, "n": 15})
    rows.append({"measure": "same without cache", "condition": "attends to target", "value": 1.0, "n": 8})
    return pl.DataFrame(rows, schema=regeneration._COLUMNS)


PLANTED = {
    ("none", "token", 0): 0.0,
    ("valid units", "token", 16): 0.2,
    ("units of both polarities", "token", 32): 0.5,
    ("random units", "token", 32): 0.0,
    ("attends to target", "text", 7): 1.0,
    ("attends to target", "token", 7): 1.0,
    ("paper's definition", "text", 5): 0.99,
    ("largest effects", "text", 1): 0.95,
    ("largest effects", "text", 2): 1.0,
    ("random heads, all", "text", 7): 0.05,
    ("random heads, outside the circuit", "text", 7): 0.0,
}


def test_a_model_as_the_paper_describes_it_meets_every_claim():
    held = regeneration.check(table_of(PLANTED, empty=()))
    assert all(claim.met for claim in held), [claim for claim in held if not claim.met]


def test_an_empty_set_is_not_met_and_says_so():
    held = regeneration.check(table_of(PLANTED))
    (empty,) = (claim for claim in held if not claim.met)
    assert "own definition" in empty.criterion and empty.n == 0 and "empty" in empty.control


def test_a_model_in_which_nothing_matters_meets_only_the_controls():
    held = regeneration.check(table_of(dict.fromkeys(PLANTED, 0.0)))
    met = [claim.criterion for claim in held if claim.met]
    assert len(held) == 9 and len(met) == 4
    assert all("random" in criterion or "without a key-value cache" in criterion for criterion in met)


@pytest.mark.slow
def test_heads_that_read_the_target_turn_the_verdict_that_is_written(small):
    assert share(small, "none", "failure", reads="token") == share(small, "none", "failure", "rule C", "token") == 1.0
    for reads in ("text", "token"):
        assert share(small, "attends to target", reads=reads) == 1.0
        assert share(small, "attends to target", "failure", "rule C", reads) == 0.0
    assert share(small, "largest effects", count=1) == 1.0
    assert share(small, "random heads, outside the circuit") <= 0.5


@pytest.mark.slow
def test_shares_of_a_rule_add_up_and_have_intervals(small):
    rules = small.filter(pl.col("measure").str.starts_with("rule"), pl.col("draw").is_null(), pl.col("n") > 0)
    sums = rules.group_by("condition", "reads", "count", "measure").agg(pl.col("value").sum())
    assert ((sums["value"] - 1).abs() < 1e-9).all() and (rules["low"] <= rules["value"]).all()
    assert (rules["value"] <= rules["high"]).all() and (rules["n"] == 6).all()
    drawn = small.filter(pl.col("draw").is_not_null())
    assert drawn.height == 3 * 2 and (drawn["n"] == 3).all() and drawn["control"].all()


@pytest.mark.slow
def test_the_empty_set_of_the_paper_has_no_value(small):
    empty = small.filter(condition="paper's definition")
    assert empty.height == 12 and empty["value"].null_count() == 12 and (empty["n"] == 0).all()


@pytest.mark.slow
def test_texts_are_the_same_without_a_cache_and_samples_stand_beside_the_clean_ones(small):
    same = small.filter(measure="same without cache")
    assert same["value"].to_list() == [1.0, 1.0] and set(same["reads"]) == {"text", "token"}
    samples = small.filter(pl.col("text").is_not_null())
    assert samples.height == 4 and samples["before"].str.contains(r"\| \(this works\)").all()
    turned = samples.filter(condition="attends to target")
    assert turned["text"].str.contains(r"\| \(not ").all() and not turned["text"].str.contains("\n").any()


def test_random_sets_differ_from_text_to_text_and_avoid_what_was_found(model, inputs):
    found = {"paper": [], "target": [(4, 5), (4, 0)], "circuit": [(3, 4)]}
    chosen = {"valid": [(5, 3), (5, 9), (6, 1)], "invalid": [(5, 3), (7, 7)]}
    planned = missing_parts.plan(model, found, chosen, 6, curve=3, random=5, draws=3, seed=0)
    by_name = {missing.condition: missing for missing in planned}
    assert [len(missing.sites) for missing in planned] == [6, 6, 6, 5, 6, 6, 6, 6, 5, 5]
    random = by_name["random heads, outside the circuit"]
    assert random.draws is not None and random.draws.tolist() == [0, 1, 2, 0, 1] and random.labels["control"]
    assert random.sites[0] == random.sites[3] != random.sites[1]
    drawn = {(site.layers[0], index) for sites in random.sites for site in sites for index in site.indices}
    assert not drawn & {(4, 5), (4, 0), (3, 4)} and all(len(sites) == 2 for sites in random.sites)
    units = by_name["random units"]
    assert units.count == by_name["units of both polarities"].count == 4
    assert [site.layers[0] for site in units.sites[0]] == [5, 5, 6, 7]
    assert sum(missing.condition == "largest effects" for missing in planned) == 1


@pytest.mark.slow
def test_the_records_can_be_written_as_json(small):
    json.dumps(claims.records(regeneration.check(small)), allow_nan=False)


@pytest.mark.slow
def test_the_figure_has_two_panels(small):
    drawn = regeneration.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == ["a", "b"]
    assert len(drawn.legends) == 1


def test_no_accepted_attempts_is_one_sentence(model, inputs):
    none = inputs["verdicts"].filter(pl.col("split") != "evaluation")
    with pytest.raises(ValueError, match="no accepted attempts in its evaluation split"):
        regeneration.run(SMALL, {"model": model}, inputs | {"verdicts": none})

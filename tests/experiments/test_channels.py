"""Channel scores against planted heads, orders and activities."""

import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.experiments import ablation, channels, claims, units
from jaxinterp.experiments.self_verification import cases, head_orders, unit_activity
from jaxinterp.experiments.self_verification.head_removal import Removal
from jaxinterp.experiments.self_verification.unit_activity import UnitSet
from jaxinterp.models.toy import toy
from tests.experiments import verdict_table

SMALL = channels.Config(selection=6, curve=4, sizes=(1, 2), orders=1, activity=4, draws=2, sets=1)
TARGET, CIRCUIT = [(4, 5), (4, 0)], [(4, 5), (4, 7), (3, 4)]


def ablated(shape, effects, attention):
    """The rows of the ablation's table about single heads, and which were found."""
    rows = []
    for layer, head in np.ndindex(*shape):
        row = {"stage": "selection", "layer": layer, "head": head, "heads": heads.label([(layer, head)])}
        for measure, value in (("flips", effects[layer, head]), ("margin change", -10 * effects[layer, head])):
            rows += [row | {"measure": measure, "position": "all tokens", "value": value}]
            rows += [row | {"measure": measure, "position": "verdict", "value": 0.0}]
        rows.append(row | {"measure": "attention from verdict", "value": attention[layer, head]})
    for name, some in (("target", TARGET), ("circuit", CIRCUIT)):
        for rank, (layer, head) in enumerate(some):
            row = {"stage": "selection", "measure": "rank", "condition": name, "value": float(rank)}
            rows.append(row | {"layer": layer, "head": head})
    return pl.DataFrame(rows, schema=ablation._COLUMNS)


def listed(name, chosen):
    """The rows of the units' table that say which units were chosen."""
    row = {"part": "unit", "measure": "cosine", "list": name}
    return [
        row | {"polarity": polarity, "layer": layer, "unit": unit, "rank": rank, "value": 0.5}
        for polarity in ("valid", "invalid")
        for rank, (layer, unit) in enumerate(chosen)
    ]


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def inputs(model):
    effects, attention = np.zeros((8, 8)), np.zeros((8, 8))
    for rank, head in enumerate(CIRCUIT):
        effects[head] = 1 - 0.2 * rank
    attention[4, 5], attention[4, 0] = 0.9, 0.8
    rows = listed("ranking", [(5, 7), (6, 100), (7, 3)]) + listed("cosine", [(4, 1), (5, 2), (6, 3), (7, 4)])
    directions = np.random.default_rng(0).normal(size=(9, 2, 256)).astype(np.float32)
    return {
        "verdicts": verdict_table.write(),
        "ablation": ablated((8, 8), effects, attention),
        "units": pl.DataFrame(rows, schema=units._COLUMNS),
        "probes": {"verdict/directions": directions},
    }


@pytest.fixture(scope="module")
def small(model, inputs):
    return channels.run(SMALL, {"model": model}, inputs)


def table_of(*, needed, correlation, fall, own_fall=0.0, random_fall=0.0):
    """A table with given numbers of heads needed, rank correlations and falls of activity."""
    rows = [
        {"stage": "needed", "measure": "heads", "order": order, "pool": "attends to target", "value": value, "n": 60}
        for order, value in needed.items()
    ]
    for name in (*head_orders.SCORES, "attention"):
        for measure in ("Spearman with flips", "Spearman with margin lost"):
            row = {"stage": "correlation", "order": name, "measure": measure, "n": 64, "p": 0.001}
            value = {"value": correlation, "low": correlation - 0.2, "high": correlation + 0.2}
            rows += [row | {"units": "valid"} | value, row | {"units": "random", "value": 0.0, "draw": 0}]
    row = {"stage": "activity", "condition": channels.WITHOUT_TARGET, "n": 100, "low": 0.0, "high": 1.0}
    if fall is not None:
        rows.append(row | {"units": "ranking", "measure": "fall", "value": fall})
        name = "random, all draws"
        rows.append(row | {"units": name, "measure": "fall", "value": own_fall})
        rows.append(row | {"units": name, "measure": "fall over the gap of the first set", "value": random_fall})
    return pl.DataFrame(rows, schema=channels._SCHEMA)


def met(table):
    return [claim.met for claim in channels.check(table)]


def test_planted_channels_meet_all_that_one_seed_can_decide():
    table = table_of(needed={"diag": 1.0, "attention": 2.0}, correlation=0.6, fall=0.9)
    assert met(table) == [False] + [True] * 7
    assert channels.check(table)[0].ours == 1.0 and "one seed" in channels.check(table)[0].control


def test_scores_that_say_nothing_meet_none():
    table = table_of(needed={"diag": 3.0, "attention": 2.0}, correlation=0.1, fall=0.3, own_fall=0.5, random_fall=0.2)
    assert not any(met(table))
    assert channels.check(table)[0].ours == 0.0


def test_an_order_that_never_gets_there_does_not_hold():
    for needed in ({"diag": None, "attention": None}, {"diag": None, "attention": 2.0}, {}):
        claim = channels.check(table_of(needed=needed, correlation=0.6, fall=None))[0]
        assert claim.ours == 0.0 and "diag none" in claim.control
    alone = channels.check(table_of(needed={"diag": 2.0, "attention": None}, correlation=0.6, fall=None))
    assert alone[0].ours == 1.0
    assert [claim.n for claim in alone[-3:]] == [0, 0, 0] and not any(claim.met for claim in alone[-3:])
    json.dumps(claims.records(alone), allow_nan=False)


def test_scores_of_what_is_written_tell_accepted_from_rejected(model, inputs):
    selection = cases.load(model, inputs["verdicts"], "selection", most=4)
    z = cases.read(model, selection, [ji.z(), ji.head_out(4), ji.ln_scale_mlp()])
    assert z["ln_scale_mlp"].shape == (8, 8) and (z["ln_scale_mlp"] > 0).all()
    found = head_orders.difference(model, selection, z["z"])
    valid = np.array([case.valid for case in selection])
    expected = z["head_out"][0, valid].mean(axis=0) - z["head_out"][0, ~valid].mean(axis=0)
    np.testing.assert_allclose(found[4], expected, atol=1e-4)


def test_heads_go_in_the_order_of_a_score_until_verdicts_turn(model, inputs):
    accepted = cases.load(model, inputs["verdicts"], "evaluation", valid=True, most=4)
    first, last = np.zeros((8, 8)), np.zeros((8, 8))
    first[4, 5], last[4, 5] = 1, -1
    pool = [(0, 0), (0, 1), (4, 5)]
    rows = pl.DataFrame(
        head_orders.curves(
            model, accepted, {"first": first, "last": last}, {"three": pool}, {"three": (1, 2, 3, 9)}, 1, _rng()
        ),
        schema=channels._SCHEMA,
    )
    curve = rows.filter(stage="curve")
    assert curve.height == 9
    shares = {name: curve.filter(order=name).sort("n_heads")["value"].to_list() for name in ("first", "last")}
    assert shares == {"first": [1, 1, 1], "last": [0, 0, 1]}
    needed = dict(rows.filter(pl.col("order") != "random", stage="needed").select("order", "value").iter_rows())
    assert needed == {"first": 1, "last": 3}
    without = pl.DataFrame(
        head_orders.curves(model, accepted, {"first": first}, {"two": pool[:2]}, {"two": (1, 2)}, 0, _rng()),
        schema=channels._SCHEMA,
    )
    assert without.filter(stage="needed")["value"].to_list() == [None]


def _rng():
    return np.random.default_rng(0)


def test_a_fall_is_a_fraction_of_the_way_to_rejection(model, inputs):
    accepted, rejected = (
        cases.load(model, inputs["verdicts"], "evaluation", valid=valid, most=4) for valid in (True, False)
    )
    sets = [UnitSet("ranking", ((5, 7), (7, 3))), UnitSet("random", ((6, 1),), draw=0)]
    removals = [Removal("without all", tuple((layer, head) for layer in range(8) for head in range(8)))]
    rows = pl.DataFrame(unit_activity.measure(model, accepted, rejected, sets, removals, 0))
    mean = {
        condition: rows.filter(condition=condition, units="ranking", measure="activation")["value"].item()
        for condition in ("accepted", "rejected", "without all")
    }
    _, cache = ji.run(model, [list(accepted[0].ids)], sites=[ji.mlp_post(5, 7)], logits=None)
    own = [cache["mlp_post", layer][0, -1, unit] for layer, unit in sets[0].units]
    alone = pl.DataFrame(unit_activity.measure(model, accepted[:1], rejected[:1], sets, [], 0))
    assert alone["value"][0] == pytest.approx(np.mean(own), abs=1e-4)
    expected = (mean["accepted"] - mean["without all"]) / (mean["accepted"] - mean["rejected"])
    fall = rows.filter(units="ranking", measure="fall")
    assert fall["value"].item() == pytest.approx(expected, rel=1e-4)
    pooled = rows.filter(units="random, all draws")
    assert set(pooled["measure"]) == {"fall", "fall over the gap of the first set"}


@pytest.mark.slow
def test_the_table_of_a_real_model(small):
    assert small.filter(pl.col("stage") != "needed")["value"].is_not_null().all()
    assert small["value"].drop_nulls().is_not_nan().all()
    orders = [*head_orders.SCORES, *channels.BASELINES]
    assert small.filter(stage="score").group_by("order", maintain_order=True).len().rows() == [(o, 64) for o in orders]
    correlations = small.filter(stage="correlation")
    assert correlations["value"].is_between(-1, 1).all()
    assert correlations.filter(units="random").height == 2 * 4 * 2
    assert small.filter(stage="score", order="single effect")["heads"][0] == "L4.H5"
    curve = small.filter(stage="curve", pool="attends to target", order="attention")
    assert curve["heads"].to_list() == ["L4.H5", "L4.H5 L4.H0"]
    assert small.filter(stage="curve", pool="all heads", order="random")["control"].all()
    assert not small.filter(pool="paper's definition").height
    assert set(small.filter(stage="activity")["units"]) == {
        "ranking",
        "nearest in each layer",
        "random",
        "random, all draws",
    }


@pytest.mark.slow
def test_the_records_can_be_written_as_json(small):
    held = channels.check(small)
    json.dumps(claims.records(held), allow_nan=False)
    assert all(isinstance(claim.met, bool) and isinstance(claim.ours, float) for claim in held)


@pytest.mark.slow
def test_the_figure_has_four_panels(small):
    drawn = channels.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == ["a", "b", "c", "d"]
    assert len(drawn.legends) == 1


def test_inputs_that_do_not_fit_are_refused(model, inputs):
    narrow = {"verdict/directions": np.zeros((9, 2, 16), np.float32)}
    with pytest.raises(ValueError, match="the probes have 16 dimensions, the model 256"):
        channels.run(SMALL, {"model": model}, inputs | {"probes": narrow})
    partial = inputs["ablation"].filter(pl.col("layer") != 3)
    with pytest.raises(ValueError, match="lacks 'flips' of some heads"):
        channels.run(SMALL, {"model": model}, inputs | {"ablation": partial})
    plain = toy("gpt2", tokenizer=model.require_tokenizer(), vocab_size=76, n_positions=512, n_layer=8, n_head=8)
    with pytest.raises(ValueError, match="without a gate"):
        channels.run(SMALL, {"model": plain}, inputs)

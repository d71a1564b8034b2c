"""Patches between twins: exact where the answer is known, and judged on planted tables."""

import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.experiments import ablation, claims, sufficiency
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.sufficiency import Patch, Twins
from tests.experiments import verdict_table

SMALL = sufficiency.Config(pairs=5, draws=2)
FOUND = {"target": [(4, 5), (4, 0)], "circuit": [(4, 5), (4, 7), (3, 4), (4, 3), (4, 0), (3, 7)], "paper": []}


def ranks(found):
    """The rows of the ablation's table that say which heads were found."""
    rows = [
        {"stage": "selection", "measure": "rank", "condition": name, "value": float(rank), "layer": layer, "head": head}
        for name, some in found.items()
        for rank, (layer, head) in enumerate(some)
    ]
    return pl.DataFrame(rows, schema=ablation._COLUMNS)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def inputs():
    return {"verdicts": verdict_table.write(pairs=8), "ablation": ranks(FOUND)}


@pytest.fixture(scope="module")
def small(model, inputs):
    return sufficiency.run(SMALL, {"model": model}, inputs)


@pytest.fixture(scope="module")
def twins(model, inputs):
    return Twins.of(cases.load_pairs(model, inputs["verdicts"], 3), 0)


def margins(model, twins, *patches):
    """Margins of every patch [patch, member], and without one [member]."""
    read = cases.read(model, twins.members, [ji.z(), ji.resid_post()])
    table = cases.sweep(
        model,
        twins.members,
        lambda group: sufficiency._cells(model, patches, twins, read, group),
        cases.margin(model),
    )
    return cases.values(table, twins.members), cases.values(table, twins.members, "clean")[0]


def table_of(effects, *, n=200, random=0.0):
    """A table of a model in which patching a set turns a given share of verdicts, in both directions."""
    rows = []
    for name in ("three largest effects", "first three that attend to target", "attends to target"):
        if name not in effects:
            continue
        patch = Patch(name, ((4, 5),))
        for direction in sufficiency.DIRECTIONS:
            for donor, value in (("twin", effects[name]), ("another pair, same verdict", 0.0)):
                row = patch.labels() | {"donor": donor, "direction": direction, "differs": "all", "measure": "flips"}
                rows.append(row | {"value": value, "low": 0.0, "high": 1.0, "n": n})
    for name in ("random, outside the set", "random, outside the circuit"):
        for draw in range(3):
            for direction in sufficiency.DIRECTIONS:
                row = Patch(name, ((0, 0),), draw=draw).labels() | {"direction": direction, "differs": "all"}
                rows.append(row | {"measure": "flips", "value": random, "n": n})
    return pl.DataFrame(rows, schema=sufficiency._SCHEMA)


def test_sets_that_carry_the_verdict_meet_the_criterion():
    effects = {"three largest effects": 0.6, "first three that attend to target": 1.0, "attends to target": 0.5}
    assert all(claim.met for claim in sufficiency.check(table_of(effects)))


def test_sets_that_do_not_carry_it_are_reported_as_they_are():
    effects = {"three largest effects": 0.49, "first three that attend to target": 0.0, "attends to target": 1.0}
    held = sufficiency.check(table_of(effects, random=0.3))
    assert [claim.met for claim in held] == [False, False, True, True]
    assert [claim.ours for claim in held] == [0.49, 0.0, 1.0, 1.0]
    assert "0.300" in held[0].control


def test_without_heads_no_claim_is_met():
    held = sufficiency.check(table_of({}))
    assert not any(claim.met for claim in held) and {claim.n for claim in held} == {0}
    json.dumps(claims.records(held), allow_nan=False)


def test_twins_are_lined_up_and_other_donors_are_of_other_problems(twins):
    count = len(twins.members) // 2
    assert not any(member.valid for member in twins.members[:count])
    assert all(member.valid for member in twins.members[count:])
    members = np.arange(2 * count)
    assert (twins.donors["twin"] == np.roll(members, count)).all()
    for donor, donors in twins.donors.items():
        differ = [twins.members[i].valid != twins.members[j].valid for i, j in zip(members, donors, strict=True)]
        assert set(differ) == {"same" not in donor}
        if donor != "twin":
            assert all(twins.members[i].problem != twins.members[j].problem for i, j in enumerate(donors))


@pytest.mark.slow
def test_the_digits_that_differ_are_read_from_the_tokens(model, twins):
    tokenizer = model.require_tokenizer()
    for member, twin, differs in zip(twins.members, twins.donors["twin"], twins.differs, strict=True):
        targets = [
            tokenizer.decode([case.ids[token] for token in case.verdict.mentions[0]])
            for case in (member, twins.members[twin])
        ]
        same = [a == b for a, b in zip(*targets, strict=True)]
        assert differs == {(False, False): "both digits", (False, True): "tens", (True, False): "ones"}[tuple(same)]


@pytest.mark.slow
def test_all_that_a_twin_knows_at_the_last_token_makes_its_verdict(model, twins):
    found, clean = margins(model, twins, Patch("stream", what="stream", layer=7))
    np.testing.assert_allclose(found[0], clean[twins.donors["twin"]], atol=1e-3)
    other = Patch("stream", what="stream", layer=7, donor="another pair, same verdict")
    found, clean = margins(model, twins, other)
    np.testing.assert_allclose(found[0], clean[other_donors(twins)], atol=1e-3)


def other_donors(twins):
    return twins.donors["another pair, same verdict"]


@pytest.mark.slow
def test_where_all_heads_of_a_layer_look_and_what_they_read_make_what_they_write(model, twins):
    whole = tuple((4, head) for head in range(8))
    found, clean = margins(
        model,
        twins,
        Patch("layer", whole, "outputs", "all tokens"),
        Patch("layer", whole, "patterns and values", "all tokens"),
        Patch("layer", whole, "values", "all tokens"),
        Patch("layer", whole, "patterns", "all tokens"),
    )
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    assert np.abs(found[0] - clean).max() > 1 and np.abs(found[0] - found[3]).max() > 1


@pytest.mark.slow
def test_a_patch_of_outputs_is_the_twins_and_nothing_else(model, twins):
    patch = Patch("pair", ((4, 5), (3, 4)))
    read = cases.read(model, twins.members, [ji.z(), ji.resid_post()])
    group = next(cases.grouped(twins.members))
    (cell,) = sufficiency._cells(model, [patch], twins, read, group)
    _, own = ji.run(model, group.ids, group.mask, sites=[ji.z(3, 4)], logits=None)
    _, patched = ji.run(cell.edit(model), group.ids, group.mask, sites=[ji.z(3)], logits=None)
    np.testing.assert_array_equal(patched["z", 3][:, :-1], own["z", 3][:, :-1])
    expected = own["z", 3][:, -1].copy()
    expected[:, 4] = read["z"][3][twins.donors["twin"][group.order], 4]
    np.testing.assert_allclose(patched["z", 3][:, -1], expected, atol=1e-4)


@pytest.mark.slow
def test_the_table_of_a_real_model(small):
    assert small["value"].is_not_nan().all() and small["value"].is_not_null().all()
    flips = small.filter(measure="flips", differs="all")
    assert flips["value"].is_between(0, 1).all()
    assert set(flips["donor"]) == set(sufficiency.DONORS)
    assert flips.filter(condition="random, outside the circuit").height == 2 * 2
    assert not flips.filter(condition="paper's definition").height
    stream = flips.filter(condition="residual stream", donor="twin", layer=7)
    assert (stream["value"] == 1).all()
    recovered = small.filter(condition="residual stream", donor="twin", layer=7, measure="margin recovered")
    np.testing.assert_allclose(recovered["value"], 1, atol=1e-3)
    parts = small.filter(measure="flips", condition="single", heads="L4.H5", direction="into rejected")
    whole = parts.filter(differs="all")["n"].item()
    assert parts.filter(pl.col("differs") != "all")["n"].sum() == whole
    json.dumps(claims.records(sufficiency.check(small)), allow_nan=False)


@pytest.mark.slow
def test_the_heads_that_read_the_target_carry_it(small):
    flips = small.filter(measure="flips", differs="all", position="verdict", what="outputs", donor="twin")
    assert (flips.filter(condition="attends to target")["value"] >= 0.8).all()
    assert (flips.filter(condition="random, outside the circuit")["value"] == 0).all()


@pytest.mark.slow
def test_the_figure_has_three_panels(small):
    drawn = sufficiency.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes[:3]] == ["a", "b", "c"]
    assert len(drawn.legends) == 1


def test_sets_that_are_empty_are_left_out(model):
    patches = sufficiency.choose_patches(model, {"paper": [], "target": [], "circuit": []}, SMALL)
    assert {patch.condition for patch in patches} == {"all heads", "all heads of a layer", "residual stream"}


def test_pairs_of_one_problem_are_refused(model, inputs):
    pairs = cases.load_pairs(model, inputs["verdicts"], 1)[:1]
    with pytest.raises(ValueError, match="of one problem"):
        Twins.of(pairs * 2, 0)
    empty = {**inputs, "verdicts": inputs["verdicts"].filter(pl.col("split") == "selection")}
    with pytest.raises(ValueError, match="no minimal pairs"):
        sufficiency.run(SMALL, {"model": model}, empty)


def test_labels_name_the_heads():
    labels = Patch("single", ((4, 5),)).labels()
    assert labels["heads"] == heads.label([(4, 5)]) and labels["n_heads"] == 1 and labels["draw"] is None

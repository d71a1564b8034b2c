"""Verdicts as texts of their own: where their tokens are, how they are grouped, read and swept."""

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import verdicts
from jaxinterp.experiments.self_verification import cases
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

PROBLEM = countdown.Problem((31, 12, 71), 28)
RIGHT, WRONG = "71 - 31 - 12", "31 + 12 - 71"
SMALL = verdicts.Config(training=16, selection=6, evaluation=6, pairs=16, batch_size=16)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def table(model):
    return verdicts.run(SMALL, {"model": model})


def prefix(*expressions):
    text = countdown.write(PROBLEM, expressions)
    return text[: text.rindex(" (") + 2]


def test_a_case_ends_with_the_token_that_opens_its_verdict(model):
    case = cases.make(model, prefix(WRONG, RIGHT), True)
    tokenizer = model.require_tokenizer()
    assert tokenizer.decode(case.ids[-1:]) == " (" and case.verdict.open == len(case.ids) - 1
    assert tokenizer.decode([case.ids[case.token("result")]]) == "8"
    assert [tokenizer.decode([case.ids[token] for token in mention]) for mention in case.verdict.mentions] == ["28"] * 3
    with pytest.raises(ValueError, match="does not end with an attempt"):
        cases.make(model, PROBLEM.prompt, True)


def test_groups_are_padded_on_the_left_and_know_their_order(model):
    short, long = cases.make(model, prefix(RIGHT), True), cases.make(model, prefix(*[WRONG] * 5, RIGHT), True)
    groups = list(cases.grouped([long, short, short], most=1))
    assert [group.order.tolist() for group in groups] == [[1], [2], [0]]
    for group in groups:
        assert group.ids.shape[1] % 64 == 0
        assert group.ids[0, group.columns("verdict")[0]] == group.cases[0].ids[-1]
        assert group.mask.sum() == len(group.cases[0].ids)


def test_a_sweep_over_cases_of_different_lengths_keeps_their_order(model):
    some = [cases.make(model, prefix(*[WRONG] * count, RIGHT), True) for count in (4, 0, 2)]
    metric = cases.margin(model)
    cells = [ji.Cell({"name": "none"}, lambda lm: lm)]
    cells += [ji.Cell({"name": "off"}, lambda lm: ji.ablate(lm, ji.head(4, 5)))]
    swept = cases.sweep(model, some, lambda group: cells, metric)
    assert swept["case"].to_list() == [0, 1, 2] * 2 and swept["name"].to_list() == ["none"] * 3 + ["off"] * 3
    found = cases.values(swept, some)
    for row, lm in enumerate((model, ji.ablate(model, ji.head(4, 5)))):
        for column, case in enumerate(some):
            logits, _ = ji.run(lm, [list(case.ids)], logits="last")
            np.testing.assert_allclose(found[row, column], np.asarray(metric(logits))[0], atol=1e-3)
    assert (found[0] > 0).all() and (found[1] < 0).all()
    np.testing.assert_allclose(cases.values(swept, some, "clean")[0], found[0], atol=1e-4)


def test_reading_takes_one_token_of_each_case(model):
    some = [cases.make(model, prefix(*[WRONG] * count, RIGHT), True) for count in (3, 0)]
    read = cases.read(model, some, [ji.resid_post(...), ji.pattern(4)], "result")
    assert read["resid_post"].shape == (8, 2, 256)
    for index, case in enumerate(some):
        _, cache = ji.run(model, [list(case.ids)], sites=[ji.resid_post(...), ji.pattern(4)], logits=None)
        np.testing.assert_allclose(read["resid_post"][:, index], cache.stack("resid_post")[:, 0, -2], atol=1e-4)
        own = cache["pattern", 4][0, :, -2]
        np.testing.assert_allclose(read["pattern"][0, index][:, -own.shape[-1] :], own, atol=1e-5)
        assert not read["pattern"][0, index][:, : -own.shape[-1]].any()


def test_splits_share_no_problem_and_hold_both_verdicts(model, table):
    assert set(table["split"]) == set(verdicts.SPLITS)
    problems = [set(table.filter(pl.col("split") == split)["problem"]) for split in verdicts.SPLITS]
    assert sum(map(len, problems)) == len(set.union(*problems))
    for split in verdicts.SPLITS[:3]:
        found = cases.load(model, table, split)
        assert {case.valid for case in found} == {True, False}
    accepted = cases.load(model, table, "evaluation", valid=True)
    assert len(accepted) == 6 and len(cases.load(model, table, "evaluation", valid=True, most=2)) == 2
    metric = cases.margin(model)
    clean = cases.sweep(model, accepted, lambda group: [ji.Cell({}, lambda lm: lm)], metric)
    assert (clean["value"] > 0).all(), "the model accepts what it accepted while writing"
    texts = set(table.filter(pl.col("split") == "training")["prefix"].drop_nulls())
    assert not texts & set(table.filter(pl.col("split") == "evaluation")["prefix"].drop_nulls())


def test_twins_differ_in_the_target_alone(model, table):
    for valid, invalid in cases.load_pairs(model, table):
        assert valid.valid and not invalid.valid and len(valid.ids) == len(invalid.ids)
        differing = {index for index, pair in enumerate(zip(valid.ids, invalid.ids, strict=True)) if len(set(pair)) > 1}
        mentioned = {token for mention in valid.verdict.mentions for token in mention}
        assert differing and differing <= mentioned


def test_the_gates_are_met_by_this_model_and_not_by_one_that_errs(table):
    claims = verdicts.check(table)
    assert [claim.met for claim in claims][2:] == [True, True]
    wrong = table.with_columns(solved=pl.lit(value=False), finished=pl.lit(value=False), reached=~pl.col("reached"))
    assert not any(claim.met for claim in verdicts.check(wrong))


def test_a_figure_counts_cases_and_truth(table):
    drawn = verdicts.figure(table)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == ["a", "b"]


def test_a_model_that_never_accepts_is_refused(model):
    random = toy("qwen2", tokenizer=model.require_tokenizer(), vocab_size=76)
    config = verdicts.Config(training=1, selection=1, evaluation=1, pairs=1, batch_size=8, max_new_tokens=16)
    with pytest.raises(ValueError, match="this works"):
        verdicts.run(config, {"model": random})


def test_an_empty_split_is_said(model, table):
    with pytest.raises(ValueError, match="no accepted attempts in its evaluation split"):
        cases.load(model, table.filter(pl.col("split") == "pairs"), "evaluation", valid=True)
    with pytest.raises(ValueError, match="no minimal pairs"):
        cases.load_pairs(model, table.filter(pl.col("split") == "training"))

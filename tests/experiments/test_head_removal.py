"""Heads taken out as cells of a sweep do what whole forward passes with the same edits do."""

import dataclasses

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.experiments.self_verification import cases, head_attention, head_removal
from jaxinterp.experiments.self_verification.head_removal import Removal
from jaxinterp.tasks import countdown
from tests.experiments import verdict_table

PROBLEM = countdown.Problem((31, 12, 71), 28)
RIGHT, WRONG = "71 - 31 - 12", "31 + 12 - 71"
PAIR = ((4, 5), (4, 0), (3, 7))


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def some(model):
    return [made(model, *[WRONG] * count, RIGHT) for count in (2, 0)] + [made(model, WRONG)]


@pytest.fixture(scope="module")
def sources(model, some):
    others = cases.load(model, verdict_table.write(selection=3), "selection")
    return head_removal.read_sources(model, others, [3, 4])


def made(model, *expressions):
    text = countdown.write(PROBLEM, expressions)
    return cases.make(model, text[: text.rindex(" (") + 2], expressions[-1] == RIGHT)


def swept(model, some, removals, sources=None):
    cells = head_removal.removal_cells(removals, sources)
    return cases.values(cases.sweep(model, some, cells, cases.margin(model)), some)


def margin_of(model, edited, case):
    logits, _ = ji.run(edited, [list(case.ids)], logits="last")
    return float(np.asarray(cases.margin(model)(logits))[0])


def test_zeros_at_each_position(model, some):
    removals = [Removal("pair", PAIR, position=position) for position in head_removal.POSITIONS]
    removals.append(Removal("none", ()))
    where = {"all tokens": ji.everywhere(), "verdict": ji.last(), "result": ji.at(-2)}
    where["verdict and result"] = ji.at(-2, -1)
    found = swept(model, some, removals)
    for removal, values in zip(removals, found, strict=True):
        edited = model
        if removal.heads:
            edited = ji.ablate(model, ji.head(4, 5, 0), ji.head(3, 7), at=where[removal.position])
        expected = [margin_of(model, edited, case) for case in some]
        np.testing.assert_allclose(values, expected, atol=2e-3)


def test_means_are_those_of_the_tokens_that_they_replace(model, some, sources):
    others = cases.load(model, verdict_table.write(selection=3), "selection")
    at_verdicts = cases.read(model, others, [ji.z(4)])["z"][0].mean(axis=0)
    np.testing.assert_allclose(sources.means["verdict"]["z", 4][0, 0], at_verdicts, atol=1e-4)
    mean = ji.Cache({("z", 4): at_verdicts[None, None]}, np.zeros((1, 1), int), np.ones((1, 1), bool))
    edited = ji.ablate(model, ji.head(4, 5, 0), method="mean", cache=mean, at=ji.last())
    (found,) = swept(model, some, [Removal("pair", PAIR[:2], "mean", "verdict")], sources)
    np.testing.assert_allclose(found, [margin_of(model, edited, case) for case in some], atol=2e-3)
    everywhere = np.concatenate([ji.run(model, [list(one.ids)], sites=[ji.z(4)])[1]["z", 4][0] for one in others])
    np.testing.assert_allclose(sources.means["all tokens"]["z", 4][0, 0], everywhere.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("position", head_removal.POSITIONS)
def test_what_a_text_has_itself_changes_nothing(model, some, position):
    own = head_removal.read_sources(model, some[:1], [3, 4])
    removals = [Removal("pair", PAIR, "resample", position), Removal("none", ())]
    found = swept(model, some[:1], removals, own)
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_another_text_gives_what_it_has_as_far_from_its_end(model, some, sources):
    short, long = head_removal.read_sources(model, some[1:2], [4]), head_removal.read_sources(model, some[:1], [4])
    (group,) = cases.grouped(some[:1])
    _, cache = ji.run(model, [list(some[1].ids)], sites=[ji.z(4)], logits=None)
    own = cache["z", 4][0]
    given = short.of_others(group)["z", 4][0]
    np.testing.assert_allclose(given[-len(own) :], own, atol=1e-4)
    np.testing.assert_allclose(given[: -len(own)], np.broadcast_to(own[0], given[: -len(own)].shape), atol=1e-4)
    (group,) = cases.grouped(some[1:2])
    assert long.of_others(group)["z", 4].shape == (1, group.ids.shape[1], *own.shape[1:])
    assert (sources.of_others(group, 0)["z", 4] == sources.of_others(group, 0)["z", 4]).all()


def test_resampling_from_a_rejected_case_makes_the_verdict_flip(model, some):
    rejected = head_removal.read_sources(model, some[2:], [3, 4])
    removal = Removal("pair", ((4, 5), (4, 0)), "resample", "verdict")
    flipped, kept = swept(model, some[:2], [removal, dataclasses.replace(removal, heads=())], rejected)
    assert (flipped < 0).all() and (kept > 0).all()


def test_other_texts_are_needed_where_they_take_the_place_of_the_heads():
    with pytest.raises(ValueError, match="read_sources"):
        head_removal.removal_cells([Removal("pair", PAIR, "mean")])


def test_attention_is_measured_to_the_digits_of_the_target(model, some):
    (group,) = cases.grouped(some[:1])
    targets = head_attention._targets(group)
    columns = [np.flatnonzero(row) for row in targets["verdict"][0]]
    tokenizer = model.require_tokenizer()
    texts = [[tokenizer.decode([group.ids[0, column]]) for column in one] for one in columns]
    assert texts == [["8"] * 4, ["2"] * 4, []]
    assert targets["result"][0].sum() == 2
    _, cache = ji.run(model, [list(some[0].ids)], sites=[ji.pattern(4)], logits=None)
    tens = [mention[0] for mention in some[0].verdict.mentions]
    alone = cache["pattern", 4][0, 5, -1, tens].sum()
    assert head_attention.to_target(model, some[:1])["verdict"][4, 5] == pytest.approx(alone, abs=1e-5)
    assert alone > 0.9
    over = head_attention.over(model, some[0], [(4, 5), (3, 4)])
    assert over["verdict"].shape == over["result"].shape == (2, len(some[0].ids))
    np.testing.assert_allclose(over["verdict"][0, tens].sum(), alone, atol=1e-5)
    np.testing.assert_allclose(over["result"].sum(axis=1), 1, atol=1e-4)

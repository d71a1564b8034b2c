"""Interchange intervention accuracy finds where a planted variable is, and nothing in a random model."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.analysis.interchange import iia
from jaxinterp.analysis.pairs import make_pairs
from tests.analysis import moved_variable as planted

MODEL = planted.planted_model()
RANDOM = planted.random_model()
COUNT = 60
CLEAN, A, S = planted.prompts(COUNT, seed=1)
OTHER, B, T = planted.prompts(COUNT, seed=2)
GROUPS = {"value": [(-3, -3)], "last": [(-1, -1)], "filler": [(0, 0)]}
ANSWERS = (planted.answer(A, S), planted.answer(B, T))


def pairs_for(model=MODEL, answers=ANSWERS, **changes):
    settings = {"expected": planted.answer(B, S), "positions": GROUPS, "answers": answers} | changes
    return make_pairs(model, CLEAN, OTHER, **settings)


PAIRS = pairs_for()


@pytest.fixture(scope="module", autouse=True)
def few_at_a_time():
    """Twenty-five pairs at a time, so that the last block is not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxinterp.analysis.interchange._ROWS", 25)
        yield


def cell(table, layer, positions, source="pair", answer="expected"):
    chosen = table.filter(layer=layer, positions=positions, source=source, answer=answer)
    return chosen.row(0, named=True)


@pytest.fixture(scope="module")
def table():
    return iia(MODEL, PAIRS, progress=False)


def test_the_planted_model_does_its_task():
    assert PAIRS.counts == {"made": COUNT, "clean": COUNT, "counterfactual": COUNT, "both": COUNT}


def test_the_variable_is_found_where_it_is_before_and_after_it_moves(table):
    assert table.height == 2 * 3 * 2 * 3
    assert cell(table, 0, "value")["iia"] == 1.0
    same = np.mean(A == B)
    for layer, positions in ((1, "value"), (0, "filler"), (1, "filler")):
        assert cell(table, layer, positions)["iia"] == pytest.approx(same), "nothing moves, so only equal values hit"
        assert cell(table, layer, positions, answer="clean")["iia"] == 1.0
    whole = cell(table, 1, "last")
    assert whole["iia"] == pytest.approx(np.mean(S == T)), "the sign moves along"
    assert cell(table, 1, "last", answer="counterfactual")["iia"] == 1.0
    assert whole["low"] < whole["iia"] < whole["high"] and whole["n"] == COUNT


def test_another_pairs_source_says_what_that_pair_holds(table):
    assert cell(table, 0, "value", source="other pair")["iia"] < 0.5
    assert cell(table, 1, "value", source="other pair", answer="clean")["iia"] == 1.0


def test_the_planted_plane_moves_the_variable_without_the_sign():
    inside, outside = (
        iia(MODEL, PAIRS, ji.resid_post(1), "last", basis={1: basis}, progress=False)
        for basis in (planted.AT_LAST, planted.ROTATION[:, 4:6].T)
    )
    assert cell(inside, 1, "last")["iia"] == 1.0
    assert cell(outside, 1, "last")["iia"] == pytest.approx(np.mean((A == B) & (S == T)))


def test_a_leak_is_stopped_by_holding():
    """Block 0's value reaches the last token in block 1, unless the last token is held there at its clean values."""
    below = iia(MODEL, PAIRS, groups="value", up_to=True, held_up_to="last", progress=False)
    assert cell(below, 0, "value")["iia"] == 1.0, "block 1 still writes"
    assert cell(below, 1, "value", answer="clean")["iia"] == 1.0
    everywhere = iia(MODEL, PAIRS, groups="value", up_to=True, held="last", progress=False)
    assert [cell(everywhere, layer, "value", answer="clean")["iia"] for layer in (0, 1)] == [1.0, 1.0]


def test_a_random_model_shows_nothing():
    table = iia(RANDOM, pairs_for(RANDOM, answers=None), ji.resid_post(1), "last", progress=False)
    found = cell(table, 1, "last")
    assert found["low"] < 1 / planted.VOCABULARY and found["iia"] < 0.15


def test_pairs_that_the_model_gets_wrong_are_left_out():
    wrong = ANSWERS[0].copy()
    wrong[:7] = 0
    kept = pairs_for(answers=(wrong, ANSWERS[1]))
    assert kept.counts == {"made": COUNT, "clean": COUNT - 7, "counterfactual": COUNT, "both": COUNT - 7}
    np.testing.assert_array_equal(kept.expected, planted.answer(B, S)[7:])
    np.testing.assert_array_equal(kept.clean, PAIRS.clean[7:])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: pairs_for(expected=[1, 2]), "2 answer tokens for 60 texts"),
        (lambda: pairs_for(positions={"far": [(9, 0)]}), "position 9 lies outside text 0"),
        (lambda: pairs_for(answers=(0, 0)), "no pair's both"),
        (lambda: make_pairs(MODEL, CLEAN, OTHER[:3], 1), "pair them one to one"),
        (lambda: iia(MODEL, PAIRS, groups="middle", progress=False), "no group of positions 'middle'"),
        (lambda: iia(MODEL, PAIRS.take([0]), progress=False), "no other pair"),
        (lambda: PAIRS.take([0]).split(), "cannot be split"),
        (lambda: iia(MODEL, PAIRS, ji.resid_post(7), progress=False), "has no resid_post"),
    ],
)
def test_a_wrong_question_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

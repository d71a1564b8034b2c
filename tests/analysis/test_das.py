"""Distributed alignment search finds a planted plane; its controls, and a random model, show nothing."""

import numpy as np
import polars as pl
import pytest
from scipy.linalg import subspace_angles

import jaxinterp as ji
from jaxinterp.analysis import subspaces
from jaxinterp.analysis.das import fit_das
from jaxinterp.analysis.pairs import make_pairs
from tests.analysis import moved_variable as planted

MODEL = planted.planted_model()
CLEAN, A, S = planted.prompts(120, seed=1)
OTHER, B, T = planted.prompts(120, seed=2)
GROUPS = {"last": [(-1, -1)], "value": [(-3, -3)]}
PAIRS = make_pairs(MODEL, CLEAN, OTHER, planted.answer(B, S), GROUPS)
SETTINGS = {"rank": 2, "seeds": (0, 1), "steps": 120, "progress": False}


@pytest.fixture(scope="module")
def found():
    """Five cells at a time, so that the last block is not full."""
    before = subspaces._step._cache_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subspaces, "_cells_that_fit", lambda *_: 5)
        alignment = fit_das(MODEL, PAIRS, ji.resid_post(), group="last", **SETTINGS)
    assert subspaces._step._cache_size() == before + 1, "all layers, seeds and controls are one program"
    return alignment


def accuracies(alignment, subspace, layer, split="held out"):
    chosen = alignment.table.filter(subspace=subspace, layer=layer, split=split, answer="expected")
    return chosen["iia"].to_numpy()


def test_the_planted_plane_is_found_where_it_is(found):
    assert found.bases.shape == (2, 2, 2, planted.WIDTH)
    assert accuracies(found, "learned", 1).min() >= 0.95
    for basis in found.bases[1]:
        np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-5)
        assert np.degrees(subspace_angles(basis.T, planted.AT_LAST.T)).max() < 20


def test_in_front_of_it_nothing_is_found(found):
    """In block 0 the last token does not know the variable yet."""
    assert accuracies(found, "learned", 0).max() < 0.6


def test_controls_fail_and_the_whole_vector_takes_the_sign_along(found):
    assert accuracies(found, "random labels", 1).max() < 0.6
    assert accuracies(found, "random subspace", 1).max() < 0.6
    whole = found.table.filter(subspace="everything", layer=1, split="held out", answer="counterfactual")
    assert whole["iia"].to_list() == [1.0]
    assert 0.3 < accuracies(found, "everything", 1)[0] < 0.7


def test_splits_are_disjoint_and_have_intervals(found):
    sizes = found.table.group_by("split").agg(pl.col("n").unique())
    assert sizes["n"].explode().to_list() == [60, 60]
    assert ((found.table["low"] <= found.table["iia"]) & (found.table["iia"] <= found.table["high"])).all()
    train, test = PAIRS.split(0)
    assert not {text.tobytes() for text in train.clean} & {text.tobytes() for text in test.clean}


def test_losses_fall_where_there_is_something_to_learn(found):
    assert found.losses.shape == (2, 2, 120)
    early, late = found.losses[:, :, :10].mean(axis=2), found.losses[:, :, -10:].mean(axis=2)
    assert (late[1] < 0.3 * early[1]).all() and (late[0] > 0.5 * early[0]).all()


def test_a_random_model_shows_nothing(monkeypatch):
    monkeypatch.setattr(subspaces, "_cells_that_fit", lambda *_: 5)
    random = planted.random_model()
    expected = np.random.default_rng(0).integers(planted.ANSWER, planted.VOCABULARY, size=120)
    pairs = make_pairs(random, CLEAN, OTHER, expected, GROUPS)
    alignment = fit_das(random, pairs, ji.resid_post(), group="last", **SETTINGS | {"steps": 60})
    assert accuracies(alignment, "learned", 1).max() < 0.35


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: fit_das(MODEL, PAIRS, rank=33, group="last"), r"outside 1..32"),
        (lambda: fit_das(MODEL, PAIRS), "there is no group of positions None"),
        (lambda: fit_das(MODEL, PAIRS, ji.z(1), group="last"), "one vector for each token"),
        (lambda: fit_das(MODEL, PAIRS, ji.embed(), group="last"), "embed is no such site"),
        (lambda: fit_das(MODEL, PAIRS, group="last", held_out=1.0), "cannot be split"),
    ],
)
def test_a_wrong_search_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

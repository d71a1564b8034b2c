"""Component masking comes out with the planted rank; its controls, and too early a block, do not."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

import jaxinterp as ji
from jaxinterp.analysis import subspaces
from jaxinterp.analysis.dcm import fit_dcm, singular_vectors
from jaxinterp.analysis.pairs import make_pairs
from jaxinterp.analysis.subspaces import gather
from jaxinterp.interventions.interchange import interchange
from jaxinterp.models.toy import toy
from tests.analysis import moved_variable as planted

MODEL = planted.planted_model()
CLEAN, A, S = planted.prompts(80, seed=1)
OTHER, B, T = planted.prompts(80, seed=2)
GROUPS = {"last": [(-1, -1)], "value": [(-3, -3)]}
PAIRS = make_pairs(MODEL, CLEAN, OTHER, planted.answer(B, S), GROUPS)
SETTINGS = {"batch_size": 4, "epochs": 6, "progress": False}


def basis(count=400):
    prompts, _, _ = planted.prompts(count, seed=3)
    tokens, mask = np.zeros((count, 5), np.int32), np.zeros((count, 5), bool)
    for row, text in enumerate(prompts):
        tokens[row, -len(text) :], mask[row, -len(text) :] = text, True
    ends = mask.sum(axis=1, keepdims=True) - 1
    read = gather(MODEL, tokens, mask, ji.resid_post().addresses(MODEL.body), ends)
    return dict(enumerate(singular_vectors(read[:, :, 0])))


@pytest.fixture(scope="module")
def found():
    before = subspaces._step._cache_size()
    masks = fit_dcm(MODEL, PAIRS, group="last", basis=basis(), penalties=(1.0, 100.0), **SETTINGS)
    assert subspaces._step._cache_size() == before + 1, "all layers, penalties and controls are one program"
    return masks


def cell(masks, layer, subspace, penalty=1.0, split="held out", answer="expected"):
    chosen = masks.table.filter(layer=layer, subspace=subspace, penalty=penalty, split=split, answer=answer)
    return chosen.row(0, named=True)


def test_the_mask_has_the_planted_rank_and_plane(found):
    learned = cell(found, 1, "mask")
    assert learned["rank"] == 2 and learned["iia"] >= 0.95 and learned["n"] == 40
    kept = found.bases[1][np.rint(found.masks[1, 0]) == 1]
    assert np.degrees(subspace_angles(kept.T, planted.AT_LAST.T)).max() < 20
    assert found.masks.min() >= 0 and found.masks.max() <= 1


def test_controls_fail(found):
    random = cell(found, 1, "random mask")
    assert random["rank"] == 2 and random["iia"] < 0.6
    assert cell(found, 1, "shuffled targets")["iia"] < 0.7
    for whole in ("all components", "everything"):
        assert cell(found, 1, whole)["iia"] < 0.7, "the sign moves along"
        assert cell(found, 1, whole, answer="counterfactual")["iia"] == 1.0


def test_where_the_variable_is_not_yet_nothing_is_kept(found):
    assert cell(found, 0, "mask")["iia"] < 0.6


def test_a_high_penalty_leaves_nothing(found):
    assert cell(found, 1, "mask", penalty=100.0)["rank"] == 0
    assert cell(found, 1, "mask", penalty=100.0, answer="clean")["iia"] == 1.0


def test_up_to_a_layer_every_block_has_its_mask_and_held_tokens_stay():
    """The last token is held in block 0, where that changes nothing, or in both, where nothing reaches the answer."""
    settings = SETTINGS | {"up_to": True, "components": 12, "objective": "log_prob", "held_up_to": "last"}
    masks = fit_dcm(MODEL, PAIRS, group="value", **settings)
    assert masks.masks.shape == (2, 1, 2, 12)
    assert cell(masks, 0, "mask", penalty=0.1)["iia"] >= 0.9
    assert cell(masks, 1, "mask", penalty=0.1, answer="clean")["iia"] == 1.0
    assert (masks.masks[0, 0, 1] == 0).all(), "block 1 lies behind block 0"
    assert masks.losses[0, 0, -5:].mean() < 0.5 * masks.losses[1, 0, -5:].mean()


@pytest.mark.parametrize(("family", "size"), [("gemma2", {"num_hidden_layers": 2})])
def test_a_step_computes_what_an_interchange_does(family, size, monkeypatch):
    """A mask of ones in a basis of 5, by one pass of the last tokens alone and by a whole run of the edited model."""
    monkeypatch.setattr("jaxinterp.analysis.dcm.evaluate", lambda *_, **__: None)
    model = toy(family, **size)
    rng = np.random.default_rng(0)
    clean, other = ([rng.integers(100, size=size).tolist() for size in (9, 7, 9, 8)] for _ in range(2))
    pairs = make_pairs(model, clean, other, [3, 4, 5, 6], {"near the end": [(-2, -3)], "end": [(-1, -1)]})
    rows = np.linalg.qr(rng.normal(size=(32, 5)))[0].T
    settings = {"basis": {0: rows, 1: rows}, "epochs": 1, "batch_size": 2, "held_out": 0.5, "progress": False}
    masks = fit_dcm(model, pairs, ji.resid_post(0, 1), "near the end", held="end", **settings)
    train, _ = pairs.split(0, 0.5)
    _, source = ji.run(model, train.counterfactual, train.counterfactual_mask, sites=[ji.resid_post()])
    _, own = ji.run(model, train.clean, train.clean_mask, sites=[ji.resid_post()])
    for layer in (0, 1):
        edited = interchange(model, ji.resid_post(layer), source, rows, positions=[(-2, -3)])
        edited = interchange(edited, ji.resid_post(), own, positions=[(-1, -1)])
        logits, _ = ji.run(edited, train.clean, train.clean_mask, logits="last")
        expected = 0.1 * 5 - logits[[0, 1], train.expected].mean()
        np.testing.assert_allclose(masks.losses[layer, 0, 0], expected, atol=1e-4)


def test_singular_vectors_span_what_there_is():
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    activations = rng.normal(size=(40, 2)) @ plane + 5 * plane[0]
    rows = singular_vectors(activations, 2)
    np.testing.assert_allclose(rows.T @ rows, plane.T @ plane, atol=1e-5)
    assert abs(rows[0] @ plane[0]) > 0.99, "uncentred, the mean counts"
    stretched = activations + np.outer(3 * rng.normal(size=40), plane[1])
    assert abs(singular_vectors(stretched, 1, centred=True)[0] @ plane[1]) > 0.95
    with pytest.raises(ValueError, match="there are 6 singular vectors of 40"):
        singular_vectors(activations, 7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"penalties": ()}, "no penalty"),
        ({"basis": {0: np.eye(32)}}, "the basis lacks layer 1"),
        ({"basis": {0: np.eye(31), 1: np.eye(31)}}, r"give \[component, 32\]"),
        ({"held": "middle"}, "no group of positions 'middle'"),
        ({"site": ji.pattern(0)}, "one vector for each token"),
    ],
)
def test_a_wrong_search_is_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_dcm(MODEL, PAIRS, **{"group": "last", **SETTINGS, **changes})

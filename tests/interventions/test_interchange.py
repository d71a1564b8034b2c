"""Interchange in a subspace: what moves, what stays, at which tokens and layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import reading
from jaxinterp.activations.run import compiled_form, forward_pass
from jaxinterp.interventions.interchange import interchange
from jaxinterp.models.toy import toy

MODEL = toy("llama", hidden_size=16, intermediate_size=24)
WIDTH = 16
TEXTS = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]
OTHER_TEXTS = [[8, 8, 2, 6, 6], [1, 2, 3, 4, 5]]
SITES = [ji.resid_post(), ji.z(), ji.pattern(), ji.mlp_post()]
LOGITS, OWN = ji.run(MODEL, TEXTS, sites=SITES)
OTHER_LOGITS, OTHER = ji.run(MODEL, OTHER_TEXTS, sites=SITES)
_, SAME_LENGTHS = ji.run(MODEL, [[8, 8, 2, 6, 6, 7], [1, 2, 3, 4]], sites=SITES)
VALID = OWN.mask
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]
BASIS = ROTATION[:3]


def read(model, site=None, texts=TEXTS):
    """What passes a site, rows left-padded."""
    site = site or ji.resid_post(1)
    (address,) = site.addresses(model.body)
    return ji.run(model, texts, sites=[site])[1][address]


def test_a_subspace_moves_and_the_rest_stays():
    edited = interchange(MODEL, ji.resid_post(1), OTHER, BASIS, positions=[(-1, -1), (1, 3)])
    after, before, source = read(edited), OWN["resid_post", 1], OTHER["resid_post", 1]
    for row, length in enumerate((6, 4)):
        for target, taken in ((-1, -1), (-length + 1, 3)):
            moved, was, came = after[row, target], before[row, target], source[row, taken]
            np.testing.assert_allclose(BASIS @ moved, BASIS @ came, atol=1e-5)
            np.testing.assert_allclose(ROTATION[3:] @ moved, ROTATION[3:] @ was, atol=1e-5)
        np.testing.assert_allclose(after[row, -length], before[row, -length], atol=1e-6)


def test_positions_from_the_end_are_those_of_each_text_of_its_own():
    """The other texts are of other lengths; `-2` must not be counted with them."""
    after = read(interchange(MODEL, ji.resid_post(1), OTHER, positions=[(-2, 0)]))
    first = OTHER["resid_post", 1][:, 0]
    np.testing.assert_allclose(after[:, -2], first, atol=1e-6)
    assert np.abs(after[:, -1] - first).max() > 1e-2


def test_other_pairs_in_each_row():
    table = np.array([[[0, 2], [-1, 0]], [[2, -1], [2, -1]]])
    after = read(interchange(MODEL, ji.resid_post(1), OTHER, positions=table))
    source = OTHER["resid_post", 1]
    np.testing.assert_allclose(after[0, 0], source[0, 2], atol=1e-6)
    np.testing.assert_allclose(after[0, -1], source[0, 0], atol=1e-6)
    np.testing.assert_allclose(after[1, -2], source[1, -1], atol=1e-6)
    np.testing.assert_allclose(after[1, -1], OWN["resid_post", 1][1, -1], atol=1e-6)


@pytest.mark.parametrize("site", [ji.head(1, 2), ji.pattern(1)])
def test_the_whole_space_is_a_patch(site):
    by_hand, _ = ji.run(ji.patch(MODEL, site, SAME_LENGTHS), TEXTS)
    logits, _ = ji.run(interchange(MODEL, site, SAME_LENGTHS), TEXTS)
    np.testing.assert_allclose(logits[VALID], by_hand[VALID], atol=1e-5)
    assert np.abs(logits[VALID] - LOGITS[VALID]).max() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox"])
def test_a_subspace_moves_in_families_that_are_built_otherwise(family):
    """Post norms, learned positions, parallel blocks; rows of other lengths, so padded."""
    model = toy(family)
    (_, own), (_, other) = (ji.run(model, texts, sites=[ji.resid_post()]) for texts in (TEXTS, OTHER_TEXTS))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 4)))[0].T
    edited = interchange(model, ji.resid_post(1), other, basis, positions=[(2, 1)])
    _, acts = ji.run(edited, TEXTS, sites=[ji.resid_post()])
    for row, length in enumerate((6, 4)):
        was, came = own["resid_post", 1][row, 2 - length], other["resid_post", 1][row, -4]
        after = acts["resid_post", 1][row, 2 - length]
        np.testing.assert_allclose(after, was + (came - was) @ basis.T @ basis, atol=1e-4)
        np.testing.assert_allclose(
            acts["resid_post", 2][row, 1 - length], own["resid_post", 2][row, 1 - length], atol=1e-4
        )
        assert np.abs(acts["resid_post", 2][row, 3 - length] - own["resid_post", 2][row, 3 - length]).max() > 1e-4


def test_a_basis_need_not_be_orthonormal_but_spans_what_it_spans():
    mixed = np.random.default_rng(1).normal(size=(3, 3)) @ BASIS
    np.testing.assert_allclose(
        read(interchange(MODEL, ji.resid_post(1), OTHER, mixed, positions=[(-1, -1)])),
        read(interchange(MODEL, ji.resid_post(1), OTHER, BASIS, positions=[(-1, -1)])),
        atol=1e-5,
    )


def test_weights_act_by_their_square():
    weights = np.array([1.0, 0.5, 0.0])
    after = read(interchange(MODEL, ji.resid_post(1), OTHER, BASIS, positions=[(-1, -1)], weights=weights))
    step = OTHER["resid_post", 1][:, -1] - OWN["resid_post", 1][:, -1]
    expected = OWN["resid_post", 1][:, -1] + (step @ BASIS.T * [1.0, 0.25, 0.0]) @ BASIS
    np.testing.assert_allclose(after[:, -1], expected, atol=1e-5)


def test_up_to_a_layer_every_block_takes_its_own_values_and_held_tokens_stay():
    pairs, kept = [(1, 3)], [(2, 2)]
    upto = interchange(MODEL, ji.resid_post(0, 1), OTHER, positions=pairs)
    held = interchange(upto, ji.resid_post(), OWN, positions=kept)
    _, acts = ji.run(held, TEXTS, sites=[ji.resid_post()])
    _, free = ji.run(upto, TEXTS, sites=[ji.resid_post()])
    for row, length in enumerate((6, 4)):
        one, two = -length + 1, -length + 2
        for layer in (0, 1):
            moved = acts["resid_post", layer][row, one]
            np.testing.assert_allclose(moved, OTHER["resid_post", layer][row, 3], atol=1e-6)
        assert np.abs(acts["resid_post", 2][row, one] - OTHER["resid_post", 2][row, 3]).max() > 1e-3
        for layer in range(3):
            np.testing.assert_allclose(
                acts["resid_post", layer][row, two], OWN["resid_post", layer][row, two], atol=1e-5
            )
        assert np.abs(free["resid_post", 1][row, two] - OWN["resid_post", 1][row, two]).max() > 1e-3, "it leaks"


def test_active_layers_are_those_of_a_selector_and_one_program_serves_all():
    read_two = ji.Cache({k: x for k, x in OTHER.items() if k in (("resid_post", 0), ("resid_post", 1))}, *_ids(OTHER))
    bases = {0: BASIS, 1: ROTATION[3:6]}

    def upto(layer):
        model = interchange(MODEL, ji.resid_post(), read_two, bases, positions=[(1, 3)], active=range(layer + 1))
        return interchange(model, ji.resid_post(), OWN, positions=[(2, 2)])

    structures = set()
    for layer in (0, 1):
        plain = interchange(MODEL, ji.resid_post(*range(layer + 1)), OTHER, bases, positions=[(1, 3)])
        plain = interchange(plain, ji.resid_post(), OWN, positions=[(2, 2)])
        body = compiled_form(upto(layer).body)
        structures.add(jax.tree_util.tree_structure(body))
        np.testing.assert_allclose(ji.run(upto(layer), TEXTS)[0][VALID], ji.run(plain, TEXTS)[0][VALID], atol=1e-5)
    assert len(structures) == 1


def _ids(cache):
    return cache.tokens, cache.mask


def test_other_layers_bases_and_sources_compile_nothing():
    def run(layer, cache, basis):
        ji.run(interchange(MODEL, ji.resid_post(layer), cache, basis, positions=[(layer, 1)]), TEXTS)

    run(0, OTHER, BASIS)
    before = reading.programs()
    for layer in (1, 2):
        run(layer, SAME_LENGTHS, ROTATION[layer : layer + 3])
    assert reading.programs() == before


def test_its_own_values_change_nothing_and_neutral_selects_nothing():
    logits, _ = ji.run(interchange(MODEL, ji.resid_post(), OWN, BASIS), TEXTS)
    np.testing.assert_allclose(logits[VALID], LOGITS[VALID], atol=2e-5)
    logits, _ = ji.run(interchange(MODEL, ji.resid_post(), OTHER, active=()), TEXTS)
    np.testing.assert_allclose(logits[VALID], LOGITS[VALID], atol=1e-5)


def test_only_the_chosen_heads_tokens_and_rows_are_edited():
    edited = interchange(MODEL, ji.head(1, 2), OTHER, np.eye(8)[:2], at=ji.last(), positions=[(-1, 0), (0, 0)])
    after = read(edited, ji.z(1))
    np.testing.assert_allclose(after[:, -1, 2, :2], OTHER["z", 1][:, 0, 2, :2], atol=1e-6)
    np.testing.assert_allclose(after[:, -1, 2, 2:], OWN["z", 1][:, -1, 2, 2:], atol=1e-6)
    np.testing.assert_allclose(after[:, -1, [0, 1, 3]], OWN["z", 1][:, -1, [0, 1, 3]], atol=1e-6)
    np.testing.assert_allclose(after[:, :-1][VALID[:, :-1]], OWN["z", 1][:, :-1][VALID[:, :-1]], atol=1e-6)


def test_cached_generation_equals_recomputation():
    edited = interchange(MODEL, ji.resid_post(1), OTHER, BASIS, positions=[(1, 2), (-1, 0)])
    generation = ji.generate_tokens(edited, TEXTS, 2, keep_logits=True)
    logits, _ = ji.run(edited, TEXTS, logits="last")
    np.testing.assert_allclose(generation.logits[:, 0], logits, atol=1e-4)


def test_weights_can_be_mapped_and_differentiated():
    def logit(scale):
        edited = interchange(MODEL, ji.resid_post(1), OTHER, BASIS, positions=[(-1, -1)], weights=scale * jnp.ones(3))
        return forward_pass(edited.body, OWN.tokens, VALID, sites=(), logits="last")[0][0, 7]

    mapped = jax.vmap(logit)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(mapped[0], LOGITS[0, -1, 7], atol=1e-5)
    step = 1e-2
    slope = (logit(0.7 + step) - logit(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(logit)(0.7), slope, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: interchange(MODEL, ji.mlp_out(0), OTHER), "the cache has no mlp_out of layer 0"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, positions=[(0, 5)]), "position 5 lies outside text 0"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, positions=[0, 1]), r"positions have shape \[2\]"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, np.ones((2, WIDTH))), "linearly dependent"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, np.ones((2, 3))), r"basis has shape \[2, 3\]"),
        (lambda: interchange(MODEL, ji.pattern(0), OTHER, np.ones(3)), "no axis for a basis"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, weights=np.ones(3)), "pass basis too"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, BASIS, weights=np.ones(2)), "the basis has 3 rows"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, 2 * BASIS, weights=np.ones(3)), "orthonormal rows"),
        (lambda: interchange(MODEL, ji.resid_post(0), OTHER, {1: BASIS}), "for layer 0; there are for"),
    ],
)
def test_a_wrong_interchange_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

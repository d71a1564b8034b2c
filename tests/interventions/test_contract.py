"""What every intervention keeps, and what each of them does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxinterp as ji
from jaxinterp.activations import reading
from jaxinterp.activations.run import compiled_form, forward_pass
from jaxinterp.models.toy import toy

MODEL = toy("qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2)
TEXTS = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]
WIDTH = MODEL.architecture.embedding
VECTOR = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
LOGITS, _ = ji.run(MODEL, TEXTS)
_, CACHE = ji.run(MODEL, TEXTS, sites=[ji.resid_post(), ji.z(), ji.pattern(), ji.mlp_post()])
OTHER_LOGITS, OTHER = ji.run(MODEL, [[8, 8, 2, 6, 6, 7], [1, 2, 3, 4]], sites=[ji.resid_post(), ji.z(), ji.pattern()])
VALID = CACHE.mask

EDITS = {
    "zero heads": lambda lm, at: ji.ablate(lm, ji.head(0, 1, 3), at=at),
    "zero units": lambda lm, at: ji.ablate(lm, ji.unit(1, 0, 5, 7), at=at),
    "zero by row": lambda lm, at: ji.ablate_by_row(lm, [[ji.head(0, 1, 3), ji.head(1, 0)], [ji.head(1, 2)]], at=at),
    "mean": lambda lm, at: ji.ablate(lm, ji.z(1), method="mean", cache=CACHE, at=at),
    "resample": lambda lm, at: ji.ablate(lm, ji.z(1), method="resample", cache=CACHE, key=jax.random.key(1), at=at),
    "steer": lambda lm, at: ji.steer(lm, ji.resid_post(0), VECTOR, 2.0, at=at),
    "patch": lambda lm, at: ji.patch(lm, ji.resid_post(0), OTHER, at=at),
    "patch heads": lambda lm, at: ji.patch(lm, ji.head(1, 2), OTHER, at=at),
    "patch pattern": lambda lm, at: ji.patch(lm, ji.pattern(1), OTHER, at=at),
    "project": lambda lm, at: ji.project(lm, ji.resid_post(0), VECTOR, at=at),
    "interchange": lambda lm, at: ji.interchange(lm, ji.resid_post(0), OTHER, np.eye(WIDTH)[:3], at=at),
    "project onto": lambda lm, at: ji.project(lm, ji.resid_post(0), np.eye(WIDTH)[:3], onto=True, at=at),
}
NOTHING = {
    "scale 0": lambda: ji.steer(MODEL, ji.resid_post(), VECTOR, 0.0),
    "own activations": lambda: ji.patch(MODEL, ji.resid_post(0), CACHE),
    "own patterns": lambda: ji.patch(MODEL, ji.pattern(1), CACHE),
    "whole space": lambda: ji.project(MODEL, ji.resid_post(0), np.eye(WIDTH), onto=True),
    "no such token": lambda: ji.ablate(MODEL, ji.resid_post(0), at=ji.where_token(100)),
}


def real(logits):
    """Logits at tokens only."""
    return logits[VALID]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_logits_and_leaves_its_input_alone(name):
    before = [np.asarray(leaf).copy() for leaf in jax.tree_util.tree_leaves(MODEL.body)]
    edited = EDITS[name](MODEL, None)
    logits, _ = ji.run(edited, TEXTS)
    assert np.abs(real(logits) - real(LOGITS)).max() > 1e-3
    again, _ = ji.run(MODEL, TEXTS)
    np.testing.assert_array_equal(again, LOGITS)
    for leaf, old in zip(jax.tree_util.tree_leaves(MODEL.body), before, strict=True):
        np.testing.assert_array_equal(leaf, old)


@pytest.mark.parametrize("name", NOTHING)
def test_identity_settings_change_nothing(name):
    logits, _ = ji.run(NOTHING[name](), TEXTS)
    np.testing.assert_allclose(real(logits), real(LOGITS), atol=2e-5)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_at_the_last_token_leaves_earlier_ones_alone(name):
    logits, _ = ji.run(EDITS[name](MODEL, ji.last()), TEXTS)
    np.testing.assert_allclose(logits[:, :-1][VALID[:, :-1]], LOGITS[:, :-1][VALID[:, :-1]], atol=1e-5)
    assert np.abs(logits[:, -1] - LOGITS[:, -1]).max() > 1e-4


@pytest.mark.parametrize("name", EDITS)
def test_jit_equals_eager(name):
    body = EDITS[name](MODEL, ji.at(1) | ji.last()).body
    tokens, valid = CACHE.tokens, VALID
    compiled, _ = forward_pass(body, tokens, valid, sites=(), logits="all")
    with jax.disable_jit():
        eager, _ = forward_pass(body, tokens, valid, sites=(), logits="all")
    np.testing.assert_allclose(np.asarray(compiled)[valid], np.asarray(eager)[valid], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("zero heads", "everywhere"),
        ("zero heads", "steps"),
        ("mean", "generated"),
        ("steer", "last"),
        ("steer", "steps"),
        ("steer", "generated"),
        ("patch", "prompt"),
        ("patch pattern", "prompt"),
        ("project", "everywhere"),
    ],
)
def test_cached_generation_equals_recomputation(name, at):
    positions = {"last": ji.last, "prompt": ji.prompt, "generated": ji.generated, "everywhere": ji.everywhere}
    where = ji.steps(1, 3) if at == "steps" else positions[at]()
    edited = EDITS[name](MODEL, where)
    generation = ji.generate_tokens(edited, TEXTS, 5, keep_logits=True)
    rows = [text + generation.tokens[row, :-1].tolist() for row, text in enumerate(TEXTS)]
    prompt_lengths = np.array([len(text) for text in TEXTS])
    recomputed = forward_with_prompt(edited, rows, prompt_lengths)
    for row, text in enumerate(TEXTS):
        last = recomputed[row, recomputed.shape[1] - 5 :]
        np.testing.assert_allclose(generation.logits[row], last, atol=1e-4, err_msg=f"row {row} of {text}")


def forward_with_prompt(model, rows, prompt_lengths):
    """One uncached pass in which the prompt ends where it did in generation."""
    from penzai import pz

    from jaxinterp.activations.run import prepare
    from jaxinterp.models.decoder import side_inputs

    tokens, valid = prepare(model, rows)
    inputs = side_inputs(jnp.asarray(tokens), jnp.asarray(valid), jnp.asarray(prompt_lengths, jnp.int32))
    named = jax.jit(lambda body: body(pz.nx.wrap(jnp.asarray(tokens), "batch", "seq"), **inputs))(model.body)
    return np.asarray(named.unwrap("batch", "seq", "vocabulary"))


def test_an_edit_can_be_mapped_and_differentiated_over_its_numbers():
    def loss(scale):
        edited = ji.steer(MODEL, ji.resid_post(0), VECTOR, scale)
        logits, _ = forward_pass(edited.body, CACHE.tokens, VALID, sites=(), logits="last")
        return logits[0, 7]

    mapped = jax.vmap(loss)(jnp.array([0.0, 1.0]))
    single = ji.run(ji.steer(MODEL, ji.resid_post(0), VECTOR, 1.0), TEXTS)[0][0, -1, 7]
    np.testing.assert_allclose(mapped, [LOGITS[0, -1, 7], single], atol=1e-4)
    slope = jax.grad(loss)(1.0)
    step = 1e-2
    np.testing.assert_allclose(slope, (loss(1 + step) - loss(1 - step)) / (2 * step), rtol=2e-2, atol=1e-3)


def test_changing_heads_layers_vectors_and_scales_compiles_nothing():
    def compiled_by(*models):
        ji.run(models[0], TEXTS)
        before = reading.programs()
        for model in models[1:]:
            ji.run(model, TEXTS)
        return reading.programs() - before

    assert compiled_by(*(ji.ablate(MODEL, ji.head(layer, head)) for layer in (0, 1) for head in range(4))) == 0
    assert compiled_by(*(ji.steer(MODEL, ji.resid_post(n), VECTOR * n, s) for n, s in ((0, 1.0), (1, 3.0)))) == 0
    assert compiled_by(*(ji.patch(MODEL, ji.resid_post(n), OTHER, positions=[(n, 2)]) for n in (0, 1))) == 0


def test_zeroing_heads_removes_what_they_write():
    _, acts = ji.run(MODEL, TEXTS, sites=[ji.head_out(1), ji.attn_out(1)])
    _, edited = ji.run(ji.ablate(MODEL, ji.head(1, 0, 2)), TEXTS, sites=[ji.attn_out(1)])
    removed = acts["head_out", 1][:, :, [0, 2]].sum(axis=2)
    np.testing.assert_allclose(real(edited["attn_out", 1]), real(acts["attn_out", 1] - removed), atol=1e-5)


def test_mean_ablation_puts_the_mean_of_the_cache_everywhere():
    edited = ji.ablate(MODEL, ji.head(1, 2), method="mean", cache=CACHE)
    _, acts = ji.run(edited, TEXTS, sites=[ji.z(1)])
    np.testing.assert_allclose(
        real(acts["z", 1])[:, 2], np.broadcast_to(CACHE.mean("z", 1)[2], (10, acts["z", 1].shape[-1])), atol=1e-6
    )
    np.testing.assert_allclose(real(acts["z", 1])[:, 1], real(CACHE["z", 1])[:, 1], atol=1e-5)


def test_resampling_gives_every_row_another_rows_activation():
    edited = ji.ablate(MODEL, ji.z(1), method="resample", cache=CACHE, key=jax.random.key(0))
    _, acts = ji.run(edited, TEXTS, sites=[ji.z(1)])
    np.testing.assert_allclose(acts["z", 1][1, -4:], CACHE["z", 1][0, :4], atol=1e-6)
    np.testing.assert_allclose(acts["z", 1][0, :4], CACHE["z", 1][1, -4:], atol=1e-6)


def test_a_patch_takes_the_position_it_is_told():
    edited = ji.patch(MODEL, ji.resid_post(0), OTHER, positions=[(0, -1), (-1, 1)])
    _, acts = ji.run(edited, TEXTS, sites=[ji.resid_post(0)])
    for row, length in enumerate((6, 4)):
        first = acts["resid_post", 0].shape[1] - length
        np.testing.assert_allclose(acts["resid_post", 0][row, first], OTHER["resid_post", 0][row, -1], atol=1e-6)
        np.testing.assert_allclose(acts["resid_post", 0][row, -1], OTHER["resid_post", 0][row, first + 1], atol=1e-6)
        np.testing.assert_allclose(
            acts["resid_post", 0][row, first + 1], CACHE["resid_post", 0][row, first + 1], atol=1e-5
        )


def test_patching_all_of_the_last_residual_gives_the_other_runs_logits():
    logits, _ = ji.run(ji.patch(MODEL, ji.resid_post(1), OTHER), TEXTS)
    np.testing.assert_allclose(real(logits), real(OTHER_LOGITS), atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_what_was_projected_out_is_gone_and_projecting_twice_is_once(seed):
    basis = np.random.default_rng(seed).normal(size=(3, WIDTH))
    once = ji.project(MODEL, ji.resid_post(0), basis)
    _, acts = ji.run(once, TEXTS, sites=[ji.resid_post(0)])
    assert np.abs(real(acts["resid_post", 0]) @ basis.T).max() < 1e-3
    _, again = ji.run(ji.project(once, ji.resid_post(0), basis), TEXTS, sites=[ji.resid_post(0)])
    np.testing.assert_allclose(real(again["resid_post", 0]), real(acts["resid_post", 0]), atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32), st.integers(0, 1))
def test_steering_adds_up_and_commutes(first, second, layer):
    site = ji.resid_post(layer)
    twice = ji.steer(ji.steer(MODEL, site, VECTOR, first), site, VECTOR, second)
    swapped = ji.steer(ji.steer(MODEL, site, VECTOR, second), site, VECTOR, first)
    both = ji.steer(ji.steer(MODEL, site, VECTOR, first + second), site, VECTOR, 0.0)
    logits = [ji.run(model, TEXTS)[0][VALID] for model in (twice, swapped, both)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)
    np.testing.assert_allclose(logits[0], logits[2], atol=1e-3)


@settings(deadline=None, max_examples=10)
@given(st.sets(st.integers(0, 3), min_size=1), st.integers(0, 1), st.integers(0, 1))
def test_ablating_heads_one_by_one_is_ablating_them_together(heads, layer, seed):
    together = ji.ablate(MODEL, ji.head(layer, *heads))
    sites = [ji.head(layer, head) for head in heads]
    np.testing.assert_array_equal(ji.run(together, TEXTS)[0][VALID], ji.run(ji.ablate(MODEL, *sites), TEXTS)[0][VALID])


def test_steering_each_row_by_its_own_vector_and_scale():
    vectors = np.stack([VECTOR, -VECTOR])
    rows = ji.steer(MODEL, ji.resid_post(0), vectors, np.array([1.0, 2.0]))
    logits, _ = ji.run(rows, TEXTS)
    for row, (vector, scale) in enumerate(((VECTOR, 1.0), (-VECTOR, 2.0))):
        single, _ = ji.run(ji.steer(MODEL, ji.resid_post(0), vector, scale), TEXTS)
        np.testing.assert_allclose(logits[row][VALID[row]], single[row][VALID[row]], atol=1e-5)


def test_ablating_other_heads_and_units_in_each_row():
    sites = [[ji.head(0, 1, 3), ji.unit(1, 4)], []]
    logits, _ = ji.run(ji.ablate_by_row(MODEL, sites), TEXTS)
    alone, _ = ji.run(ji.ablate(MODEL, *sites[0]), TEXTS)
    np.testing.assert_allclose(logits[0][VALID[0]], alone[0][VALID[0]], atol=1e-5)
    np.testing.assert_allclose(logits[1][VALID[1]], LOGITS[1][VALID[1]], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ji.steer(MODEL, ji.resid_post(0), np.ones(7)), r"vector has shape \[7\]"),
        (lambda: ji.project(MODEL, ji.resid_post(0), np.ones((2, WIDTH))), "linearly dependent"),
        (lambda: ji.project(MODEL, ji.resid_post(0), np.ones(3)), r"basis has shape \[3\]"),
        (lambda: ji.patch(MODEL, ji.mlp_out(0), OTHER), "the cache has no mlp_out of layer 0"),
        (
            lambda: ji.patch(MODEL, ji.resid_post(0), OTHER, positions=[(0, 9)]),
            "lies outside text 0, which has 6 tokens",
        ),
        (lambda: ji.ablate(MODEL), "no site was given"),
        (lambda: ji.ablate(MODEL, ji.z(0), method="mean"), "needs a cache"),
        (lambda: ji.ablate(MODEL, ji.z(0), method="resample", cache=CACHE), "needs a key"),
        (lambda: ji.ablate(MODEL, ji.z(0), method="median"), "no ablation method 'median'"),
        (lambda: ji.ablate_by_row(MODEL, [[], []]), "no site was given for any row"),
        (lambda: ji.ablate_by_row(MODEL, [[ji.head(0, 9)], []]), "there is no 9"),
        (lambda: ji.head(3), "at least one head index"),
    ],
)
def test_a_wrong_edit_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_tree_with_edits_compiles_like_one_without_them_elsewhere():
    edited = ji.ablate(MODEL, ji.head(1, 2))
    direct, _ = forward_pass(edited.body, CACHE.tokens, VALID, sites=(), logits="all")
    aligned, _ = forward_pass(compiled_form(edited.body), CACHE.tokens, VALID, sites=(), logits="all")
    np.testing.assert_allclose(np.asarray(direct)[VALID], np.asarray(aligned)[VALID], atol=1e-5)

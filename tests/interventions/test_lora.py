"""Low-rank edits: that they change what they should, compose with other edits, and can be merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope

import jaxinterp as ji
from jaxinterp.activations import reading
from jaxinterp.activations.run import compiled_form, forward_pass
from jaxinterp.interventions.lora import Factors, add_factors, lora, lora_numbers, merge_lora, sides, with_lora_numbers
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.low_rank import MATRICES
from jaxinterp.models.toy import toy
from tests.interventions.moved_weights import moved

KEY = jax.random.key(0)
MODEL = toy("qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2)
SMALL = toy("qwen2", num_hidden_layers=1)
TEXTS = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]
LOGITS, CACHE = ji.run(MODEL, TEXTS, sites=[ji.resid_post()])
VALID = CACHE.mask


def merged_by_hand(model, edited, scale):
    """The model with each weight moved by the product of its factors, written out with NumPy."""
    weights = {name: np.asarray(weight) for name, weight in model.weights().items()}
    for name, own in lora_numbers(edited).items():
        up, down = np.asarray(own["B"], np.float64), np.asarray(own["A"], np.float64)
        weights[name] = weights[name] + scale * np.tensordot(up, down, axes=1)
    return with_weights(model, weights)


MOVED = moved(MODEL)
MERGED = merge_lora(MOVED)
MOVED_LOGITS = ji.run(MOVED, TEXTS)[0]


def test_an_untrained_edit_changes_nothing_and_leaves_the_model_alone():
    before = {name: np.asarray(weight) for name, weight in MODEL.weights().items()}
    edited = lora(MODEL, MATRICES, rank=3, key=KEY)
    np.testing.assert_allclose(ji.run(edited, TEXTS)[0][VALID], LOGITS[VALID], atol=1e-6)
    for model in (MODEL, edited):
        assert all(np.array_equal(weight, before[name]) for name, weight in model.weights().items())
    assert all(np.any(own["A"]) and not np.any(own["B"]) for own in lora_numbers(edited).values())


def test_the_first_numbers_of_a_weight_depend_on_the_key_alone():
    few, many = (lora_numbers(lora(MODEL, targets, rank=2, key=KEY)) for targets in ("W_V", MATRICES))
    other = lora_numbers(lora(MODEL, "W_V", rank=2, key=jax.random.key(1)))
    for name, own in few.items():
        np.testing.assert_array_equal(own["A"], many[name]["A"])
        assert not np.array_equal(own["A"], other[name]["A"])
        assert 0.1 < np.abs(own["A"]).max() <= 16**-0.5


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox"])
def test_edited_and_merged_are_the_weights_moved_by_hand(family):
    model = toy(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    edited = moved(model)
    expected, _ = ji.run(merged_by_hand(model, edited, 3.0 / 2), TEXTS)
    assert np.abs(expected[VALID] - ji.run(model, TEXTS)[0][VALID]).max() > 0.1
    for changed in (edited, merge_lora(edited)):
        np.testing.assert_allclose(ji.run(changed, TEXTS)[0][VALID], expected[VALID], atol=2e-5, rtol=1e-5)


def test_merged_weights_are_plain_and_the_model_says_that_it_is_another():
    assert jax.tree.structure(MERGED.body) == jax.tree.structure(MODEL.body)
    np.testing.assert_allclose(ji.run(MERGED, TEXTS)[0][VALID], MOVED_LOGITS[VALID], atol=1e-5)
    assert MERGED.source != MODEL.source


def test_keys_and_values_have_their_own_smaller_factors():
    shapes = {
        name: own["B"].shape for name, own in lora_numbers(lora(MODEL, ["W_Q", "W_K"], [1], rank=2, key=KEY)).items()
    }
    assert shapes == {"blocks.1.W_Q": (4, 8, 2), "blocks.1.W_K": (2, 8, 2)}


def test_edits_of_one_weight_add_up():
    first, second = moved(MODEL, "W_in", seed=1), moved(MODEL, "W_in", seed=2)
    both = add_factors(first, {name: Factors(own["A"], own["B"], 1.5) for name, own in lora_numbers(second).items()})
    expected = merged_by_hand(merge_lora(first), second, 1.5)
    for model in (both, merge_lora(both)):
        np.testing.assert_allclose(ji.run(model, TEXTS)[0][VALID], ji.run(expected, TEXTS)[0][VALID], atol=1e-5)


WRITTEN_BY_HEAD = dataclasses.replace(ji.head_out(1), axis="head", indices=(2,))
OTHER_EDITS = {
    "ablate a head": lambda lm: ji.ablate(lm, ji.head(0, 1, 3)),
    "ablate what a head writes": lambda lm: ji.ablate(
        lm, dataclasses.replace(ji.head_out(1), axis="head", indices=(2,))
    ),
    "patch and steer": lambda lm: ji.steer(
        ji.patch(lm, ji.resid_post(0), CACHE, positions=[(0, 1)]), ji.resid_post(0), np.ones(16), 2.0, at=ji.last()
    ),
}


@pytest.mark.parametrize("name", OTHER_EDITS)
def test_other_edits_act_on_it_as_on_the_merged_model(name):
    before, after = OTHER_EDITS[name](MODEL), OTHER_EDITS[name](MOVED)
    expected, _ = ji.run(OTHER_EDITS[name](MERGED), TEXTS)
    np.testing.assert_allclose(ji.run(after, TEXTS)[0][VALID], expected[VALID], atol=1e-5)
    assert np.abs(expected[VALID] - MOVED_LOGITS[VALID]).max() > 1e-3
    other_order = add_factors(before, {n: Factors(own["A"], own["B"], 1.5) for n, own in lora_numbers(MOVED).items()})
    np.testing.assert_allclose(ji.run(other_order, TEXTS)[0][VALID], expected[VALID], atol=1e-5)


def test_what_heads_write_adds_up_to_what_attention_writes():
    _, acts = ji.run(MOVED, TEXTS, sites=[ji.head_out(1), ji.attn_out(1)])
    np.testing.assert_allclose(acts["head_out", 1].sum(axis=2)[VALID], acts["attn_out", 1][VALID], atol=1e-5)


def test_generation_with_a_cache_is_that_of_the_merged_model():
    edited = moved(SMALL)
    generation = ji.generate_tokens(edited, TEXTS, 4, keep_logits=True)
    rows = [text + new.tolist() for text, new in zip(TEXTS, generation.tokens, strict=True)]
    logits, _ = ji.run(merge_lora(edited), rows)
    np.testing.assert_allclose(generation.logits, logits[:, -5:-1], atol=1e-4)
    np.testing.assert_array_equal(generation.tokens, logits[:, -5:-1].argmax(-1))


def test_a_sweep_over_its_layers_and_over_heads_of_a_model_that_has_one():
    def metric(logits):
        return logits[:, 7] - logits[:, 3]

    base = moved(MODEL, "W_Q", "W_V")
    cells = ji.grid(lambda lm, layer: moved(lm, "W_O", layers=[layer]), layer=range(2))
    cells += ji.grid(lambda lm, head: ji.ablate(lm, ji.head(1, head)), head=range(4))
    table = ji.sweep(base, TEXTS, cells, metric, progress=False)
    expected = [metric(ji.run(merge_lora(cell.edit(base)), TEXTS)[0][:, -1]) for cell in cells]
    np.testing.assert_allclose(table["value"], np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(table["clean"][:2], metric(ji.run(merge_lora(base), TEXTS)[0][:, -1]), atol=1e-5)
    assert (np.abs(table["effect"]) > 1e-3).all()


def test_moving_it_to_another_layer_compiles_nothing_new():
    bodies = [moved(MODEL, "W_V", "W_out", layers=[layer]).body for layer in range(2)]
    assert jax.tree.structure(bodies[0]) != jax.tree.structure(bodies[1])
    assert len({jax.tree.structure(compiled_form(body)) for body in bodies}) == 1
    plain, aligned = (
        forward_pass(body, CACHE.tokens, VALID, sites=(), logits="all")[0]
        for body in (bodies[0], compiled_form(bodies[0]))
    )
    np.testing.assert_allclose(np.asarray(plain)[VALID], np.asarray(aligned)[VALID], atol=1e-6)
    ji.run(moved(MODEL, "W_V", layers=[0]), TEXTS)
    before = reading.programs()
    ji.run(moved(MODEL, "W_V", layers=[1], seed=8, alpha=1.0), TEXTS)
    assert reading.programs() == before


def test_layers_of_other_ranks_stay_as_they_are():
    body = moved(moved(MODEL, "W_V", layers=[0]), "W_V", layers=[1], rank=3).body
    assert compiled_form(body) is body
    assert compiled_form(MODEL.body) is MODEL.body


def test_it_can_be_mapped_and_differentiated_over_its_numbers():
    edited = moved(SMALL)
    numbers = lora_numbers(edited)

    def logit(factor):
        scaled = {name: {"A": own["A"], "B": factor * own["B"]} for name, own in numbers.items()}
        logits, _ = forward_pass(with_lora_numbers(edited, scaled).body, CACHE.tokens, VALID, sites=(), logits="last")
        return logits[0, 7]

    mapped, slopes = jax.jit(jax.vmap(jax.value_and_grad(logit)))(jnp.array([0.0, 0.49, 0.5, 0.51, 1.0]))
    expected = [ji.run(model, TEXTS)[0][0, -1, 7] for model in (SMALL, edited)]
    np.testing.assert_allclose(mapped[jnp.array([0, 4])], expected, atol=1e-4)
    np.testing.assert_allclose(slopes[2], (mapped[3] - mapped[1]) / 0.02, rtol=2e-2)


def test_a_model_in_bfloat16_keeps_its_dtype_and_float32_factors():
    narrow = with_weights(SMALL, {name: weight.astype(jnp.bfloat16) for name, weight in SMALL.weights().items()})
    edited = moved(narrow, "W_Q", "W_O")
    assert {array.dtype for own in lora_numbers(edited).values() for array in own.values()} == {jnp.dtype("float32")}
    assert merge_lora(edited).weights()["blocks.0.W_Q"].dtype == jnp.bfloat16
    assert ji.run(edited, TEXTS, sites=[ji.resid_post(0)], logits=None)[1]["resid_post", 0].dtype == jnp.bfloat16


def test_it_shows_in_treescope_and_on_the_page_of_a_model():
    from jaxinterp.analysis.pages import model_page

    with treescope.active_autovisualizer.set_scoped(None):
        text = treescope.render_to_text(MOVED.body)
    assert "LowRankLinear" in text and "LowRank(" in text
    assert "blocks.1.W_O" in model_page(moved(MODEL, "W_O", layers=[1]))


def test_sides_of_a_matrix():
    architecture = MODEL.architecture
    assert sides(architecture, "W_out") == ({"embedding": 16}, {"neurons": 24})
    assert sides(architecture, "W_V") == ({"kv_head": 2, "projection": 8}, {"embedding": 16})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lora(MODEL, ["W_E"], key=KEY), "'W_E' cannot have a low-rank edit; choose among .* W_Q, W_K"),
        (lambda: lora(toy("gpt2"), ["W_gate"], key=KEY), "'W_gate' cannot"),
        (lambda: lora(MODEL, [], key=KEY), "no weight was chosen"),
        (lambda: lora(MODEL, layers=[2], key=KEY), r"there is no layer 2; the model has layers 0..1"),
        (lambda: lora(MODEL, layers=[], key=KEY), "no layer was chosen"),
        (lambda: lora(MODEL, ["W_K"], rank=17, key=KEY), "maps 16 numbers to 16; choose 1 to 16"),
        (lambda: lora(MODEL, rank=0, key=KEY), "a rank of 0 does not fit W_Q of layer 0"),
        (lambda: merge_lora(MODEL), "has no low-rank edit; make one with ji.lora"),
        (lambda: lora_numbers(MODEL), "has no low-rank edit"),
        (lambda: with_lora_numbers(MOVED, {"blocks.7.W_Q": {}}), "blocks.7.W_Q has no low-rank edit"),
        (
            lambda: with_lora_numbers(MOVED, {"blocks.0.W_in": {"A": np.ones((2, 16)), "B": np.ones(3)}}),
            r"B of blocks.0.W_in has shape \[3\] instead of \[24, 2\]",
        ),
    ],
)
def test_a_wrong_edit_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

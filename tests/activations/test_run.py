"""Forward passes: padding, batching, readouts, and what is refused."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import run as forward
from jaxinterp.models.toy import toy

MODEL = toy("llama", hidden_size=16, intermediate_size=24, num_hidden_layers=2)
TEXTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]
LOGITS, CACHE = ji.run(MODEL, TEXTS, sites=[ji.resid_post(), ji.pattern(0), ji.head(1, 2)])


def test_rows_of_a_batch_equal_single_runs():
    for row, text in enumerate(TEXTS):
        single, acts = ji.run(MODEL, [text], sites=[ji.resid_post(), ji.pattern(0)])
        np.testing.assert_allclose(LOGITS[row, -len(text) :], single[0], atol=1e-5)
        np.testing.assert_allclose(CACHE["resid_post", 1][row, -len(text) :], acts["resid_post", 1][0], atol=1e-5)
        own = CACHE["pattern", 0][row, :, -len(text) :, -len(text) :]
        np.testing.assert_allclose(own, acts["pattern", 0][0], atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text"])
def test_left_padded_rows_equal_single_runs_for_every_kind_of_position(family):
    model = toy(family, **({"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}))
    logits, _ = ji.run(model, TEXTS)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(logits[row, -len(text) :], ji.logits(model, [text])[0], atol=2e-5)


def test_small_batches_equal_one_batch():
    logits, acts = ji.run(MODEL, TEXTS, sites=[ji.resid_post(1)], batch_size=2)
    np.testing.assert_allclose(logits[CACHE.mask], LOGITS[CACHE.mask], atol=1e-5)
    assert acts["resid_post", 1].shape == CACHE["resid_post", 1].shape


def test_last_logits_are_the_last_of_all():
    last, _ = ji.run(MODEL, TEXTS, logits="last")
    np.testing.assert_allclose(last, LOGITS[:, -1], atol=1e-5)
    assert ji.run(MODEL, TEXTS, logits=None)[0] is None


def test_logits_take_padding_on_either_side():
    ids = np.array([[6, 5, 0, 0]])
    right = ji.logits(MODEL, ids, np.array([[1, 1, 0, 0]]))
    left = ji.logits(MODEL, np.roll(ids, 2), np.array([[0, 0, 1, 1]]))
    np.testing.assert_allclose(right[:, :2], left[:, 2:], atol=1e-5)


def test_a_read_of_one_head_is_that_head():
    _, acts = ji.run(MODEL, TEXTS, sites=[ji.z(1)])
    # Where patterns are read as well, as they are here, they are made whole, which rounds differently.
    np.testing.assert_allclose(CACHE["z", 1][:, :, 0], acts["z", 1][:, :, 2], atol=1e-6)


def test_patterns_are_causal_probabilities():
    pattern = CACHE["pattern", 0][0]
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    assert (np.triu(pattern, 1) == 0).all()


def test_cache_stacks_layers_and_says_what_it_lacks():
    assert CACHE.stack("resid_post").shape == (2, 3, 7, 16)
    with pytest.raises(KeyError, match="mlp_out"):
        CACHE["mlp_out", 0]


def test_by_position_moves_rows_left():
    moved = CACHE.by_position("resid_post", 0)
    np.testing.assert_array_equal(moved[1, :2], CACHE["resid_post", 0][1, -2:])


def test_reading_more_than_memory_allows_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(forward, "available", lambda: 1000)
    with pytest.raises(ValueError, match="read fewer layers"):
        ji.run(MODEL, TEXTS, sites=[ji.resid_post()])


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "no inputs"),
        ([[1, 200]], "the vocabulary is 0..100"),
        (np.array([[1.5]]), "whole numbers"),
        (["text"], "has no tokenizer"),
    ],
)
def test_wrong_inputs_are_one_sentence(inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        ji.run(MODEL, inputs)


def test_padding_on_the_right_is_refused():
    with pytest.raises(ValueError, match="padding must stand on the left"):
        ji.run(MODEL, np.array([[1, 2, 0]]), np.array([[1, 1, 0]]))


def test_too_long_for_learned_positions_is_refused():
    with pytest.raises(ValueError, match="65 tokens exceed the 64 learned positions"):
        ji.logits(toy("gpt2", n_layer=1), np.zeros((1, 65), int))

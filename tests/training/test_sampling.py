import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import jaxinterp as ji
from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.nnx import Decoder
from jaxinterp.tasks import countdown
from jaxinterp.training import sampling, sampling_speed
from jaxinterp.training.sampling import pad_left, sample

SIZES: dict[str, Any] = {
    "vocabulary": 13,
    "embedding": 16,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "projection": 4,
    "neurons": 32,
}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 4]]


@pytest.fixture(scope="module")
def decoder():
    """A random one whose predictions are far from uniform."""
    rope = Rope(theta=100.0, rotary=4)
    architecture = Architecture(family="llama", context=64, ropes=(rope,) * 2, eos=(3,), **SIZES)
    graph, weights = nnx.split(Decoder(architecture, nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda array: array * (8 if array.shape[0] == 13 else 2), weights))


@pytest.fixture(scope="module")
def scores(decoder):
    """Log-probabilities of what follows each token of padded prompts and responses, by one pass over the whole text."""
    graph, weights = nnx.split(decoder)

    @jax.jit
    def one_pass(tokens, mask, temperature):
        return jax.nn.log_softmax(nnx.merge(graph, weights)(tokens, mask) / temperature)

    def scored(drawn, tokens, mask, temperature=1.0):
        written = np.arange(drawn.tokens.shape[1]) < drawn.lengths[:, None]
        text, seen = np.concatenate([tokens, drawn.tokens], axis=1), np.concatenate([mask, written], axis=1)
        return np.asarray(one_pass(text, seen, temperature))[:, tokens.shape[1] - 1 : -1], written

    return scored


def test_log_probabilities_are_those_of_a_pass_over_the_whole_text(decoder, scores):
    rows = pad_left(PROMPTS, 6, 0)
    drawn = sample(decoder, *rows, 20, key=jax.random.key(2), temperature=0.7)
    assert drawn.ended.any()
    found, written = scores(drawn, *rows, temperature=0.7)
    expected = np.take_along_axis(found, drawn.tokens[..., None], axis=-1)[..., 0] * written
    np.testing.assert_allclose(drawn.log_probabilities, expected, atol=1e-5)
    for row, response in enumerate(drawn.responses()):
        assert (3 in response) == drawn.ended[row] and 3 not in response[:-1]
        assert not drawn.tokens[row, len(response) :].any()


def test_a_greedy_response_takes_the_most_probable_token(decoder, scores):
    rows = pad_left(PROMPTS, 6, 0)
    drawn = sample(decoder, *rows, 20, key=jax.random.key(0), temperature=0.0)
    found, written = scores(drawn, *rows)
    np.testing.assert_array_equal(drawn.tokens, found.argmax(axis=-1) * written)
    np.testing.assert_allclose(drawn.log_probabilities, found.max(axis=-1) * written, atol=1e-5)


def test_tokens_are_drawn_as_often_as_they_are_probable(decoder):
    tokens, mask = pad_left([[5, 6]] * 4000, 2, 0)
    drawn = sample(decoder, tokens, mask, 1, key=jax.random.key(0))
    share = np.bincount(drawn.tokens[:, 0], minlength=13) / 4000
    chance = (
        np.bincount(drawn.tokens[:, 0], np.exp(drawn.log_probabilities[:, 0]), minlength=13)
        / np.maximum(share, 1e-9)
        / 4000
    )
    np.testing.assert_allclose(share, chance, atol=0.03)
    assert chance.sum() == pytest.approx(1, abs=0.02) and share.max() < 0.9


def test_a_key_decides_and_the_loop_ends_with_the_last_row(decoder):
    rows = pad_left(PROMPTS, 6, 0)
    first, again, other = (sample(decoder, *rows, 20, key=jax.random.key(key), pad=0) for key in (0, 0, 1))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.log_probabilities, again.log_probabilities)
    assert (first.tokens != other.tokens).any()
    eager = dataclasses.replace(decoder.architecture, eos=tuple(range(13)))
    ending = nnx.merge(nnx.graphdef(Decoder(eager, nnx.Rngs(0))), nnx.state(decoder))
    drawn = sample(ending, *rows, 20, key=jax.random.key(0))
    assert drawn.lengths.tolist() == [1, 1, 1] and drawn.ended.all()


def test_neither_weights_nor_memory_are_copied_within_the_loop(decoder):
    graph, weights = nnx.split(decoder)
    rows = pad_left(PROMPTS, 6, 0)
    program = sampling._sample.lower(graph, weights, *rows, jax.random.key(0), new=8, temperature=1.0, pad=0)
    text = program.compile().as_text() or ""
    bodies = [text.split(f"\n%{name} ")[1].split("\n}")[0] for name in re.findall(r"body=%([\w.]+)", text)]
    loop = max(bodies, key=len)
    assert loop.count("dot") > 2 * 7
    moved = re.findall(r"%\w*(?:copy|transpose)[\w.]* = f32\[([\d,]+)\]", loop)
    smallest = SIZES["kv_heads"] * SIZES["projection"] * SIZES["embedding"]
    assert all(np.prod([int(size) for size in shape.split(",")]) < smallest for shape in moved), moved


def test_bad_settings_are_sentences(decoder):
    rows = pad_left(PROMPTS, 6, 0)
    with pytest.raises(ValueError, match="at least 1"):
        sample(decoder, *rows, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="negative"):
        sample(decoder, *rows, 4, key=jax.random.key(0), temperature=-1.0)
    with pytest.raises(ValueError, match="from 1 to 4"):
        pad_left(PROMPTS, 4, 0)
    with pytest.raises(ValueError, match="from 1 to 4"):
        pad_left([[]], 4, 0)


def test_a_loop_that_recomputes_draws_the_same(decoder):
    rows = pad_left(PROMPTS, 6, 0)
    fast, slow = (way(decoder, *rows, 20, key=jax.random.key(2)) for way in (sample, sampling_speed.recompute))
    np.testing.assert_array_equal(fast.tokens, slow.tokens)
    np.testing.assert_array_equal(fast.ended, slow.ended)
    np.testing.assert_allclose(fast.log_probabilities, slow.log_probabilities, atol=1e-5)
    table = sampling_speed.measure(decoder, *rows, 4, repeats=1)
    assert table["way"].to_list() == ["sampler", "recomputing"] and (table["tokens_per_second"] > 0).all()


@pytest.mark.slow
def test_the_memory_is_worth_it():
    model = ji.load("builtin:countdown-6m-sft")
    prompts = [model.require_tokenizer().encode(problem.prompt) for problem in countdown.eval_problems()[:16]]
    decoder = Decoder.from_weights(model.architecture, model.weights())
    table = sampling_speed.measure(decoder, *pad_left(prompts, 48, 0), 48, repeats=1)
    quick, slow = table["tokens_per_second"]
    assert quick > 5 * slow

"""Generation: greedy, sampled, stopped, and equal to recomputation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models.toy import toy

PROMPT = "Using the numbers [7, 19, 64, 7], create an equation that equals 59.\n<think>"
SHORT = "Using the numbers [31, 12, 71], create an equation that equals 28.\n<think>"


@pytest.fixture(scope="module")
def countdown():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def texts(countdown):
    return ji.generate(countdown, [PROMPT, SHORT], 160)


def test_the_countdown_model_solves_and_ends(texts):
    assert texts[0].endswith("</answer>")
    assert "(this works)" in texts[1]


def test_batched_prompts_of_different_lengths_continue_as_single_ones(countdown, texts):
    assert ji.generate(countdown, SHORT, 160) == [texts[1]]


def test_stop_strings_cut_the_text(countdown, texts):
    stopped = ji.generate(countdown, [PROMPT, SHORT], 160, stop=["(this works)"])
    assert stopped == [text[: text.index("(this works)")] for text in texts]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "qwen3"])
def test_the_cache_changes_nothing(family):
    model = toy(family, **({"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}))
    model = dataclasses.replace(model, architecture=dataclasses.replace(model.architecture, eos=()))
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6, 5]]
    generation = ji.generate_tokens(model, prompts, 6, keep_logits=True)
    for row, prompt in enumerate(prompts):
        whole = ji.logits(model, [prompt + generation.tokens[row, :-1].tolist()])
        np.testing.assert_allclose(generation.logits[row], whole[0, len(prompt) - 1 :], atol=1e-4)
        np.testing.assert_array_equal(generation.tokens[row], whole[0, len(prompt) - 1 :].argmax(-1))


def test_sampling_is_a_function_of_its_key(countdown):
    sample = [ji.generate(countdown, PROMPT, 24, temperature=2.0, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert sample[0] == sample[1] != sample[2]


def test_top_k_and_top_p_keep_the_most_probable():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    rows = jnp.tile(logits, (4000, 1))

    def drawn(**settings):
        return set(np.unique(ji.Sampler(temperature=1.0, **settings).draw(rows, jax.random.key(0))).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.79) == {0, 1}
    assert drawn(top_p=0.81) == {0, 1, 2}
    assert drawn(top_p=0.01) == {0}
    assert (ji.Sampler().draw(rows, jax.random.key(0)) == 0).all()


def test_sampled_frequencies_are_the_probabilities():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    rows = jnp.tile(jnp.log(jnp.asarray(probabilities)), (20_000, 1))
    drawn = np.asarray(ji.Sampler(temperature=1.0).draw(rows, jax.random.key(3)))
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), probabilities, atol=0.015)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": 1.0}, "needs a key"),
        ({"temperature": -1.0}, "is negative"),
        ({"top_k": 0}, "leaves no token"),
        ({"top_p": 1.5}, "outside"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_one_sentence(countdown, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ji.generate(countdown, PROMPT, **settings)


@pytest.mark.parametrize("row_by_row", [False, True])
def test_rows_that_have_ended_make_room_and_change_no_other(row_by_row):
    model = toy("llama", num_hidden_layers=2)
    model = dataclasses.replace(model, architecture=dataclasses.replace(model.architecture, eos=()))
    count, most = 20, 150
    random = np.random.default_rng(0)
    prompts = random.integers(3, model.architecture.vocabulary, (count, 5))
    if row_by_row:
        cache = ji.run(model, prompts[::-1].copy(), sites=ji.resid_post(0), logits=None)[1]
        model = ji.patch(model, ji.resid_post(0), cache, at=ji.prompt())
    whole = ji.generate_tokens(model, prompts, most)
    wanted = np.linspace(1, most, count).astype(int)
    prefixes = {tuple(row[:24]): length for row, length in zip(whole.tokens, wanted, strict=True)}
    assert len(prefixes) == count
    sizes = []

    def ended(tokens):
        sizes.append(len(tokens))
        known = [prefixes.get(tuple(row[:24])) for row in tokens]
        return np.array([length is not None and length <= tokens.shape[1] for length in known])

    cut = ji.generate_tokens(model, prompts, most, ended=ended)
    assert sizes[0] == count and sizes[-1] <= count // 2
    assert (cut.lengths >= wanted).all() and (cut.lengths < most).any()
    for row, length in enumerate(cut.lengths):
        np.testing.assert_array_equal(cut.tokens[row, :length], whole.tokens[row, :length])

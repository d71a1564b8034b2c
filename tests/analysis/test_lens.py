import dataclasses

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import readout
from jaxinterp.analysis.lens import logit_lens
from jaxinterp.analysis.tuned_lens import TunedLens, fit_tuned_lens
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

TEXTS = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_the_lens_of_a_layer_is_the_model_that_ends_there(family):
    """The last layer is the model; an earlier one is the model whose later blocks are patched away."""
    model = toy(family, num_hidden_layers=2)
    reading = logit_lens(model, TEXTS, tokens=[7, 50], at=ji.at(-1, 1), top=3, batch_size=1)
    assert reading.divergence.shape == (2 * 2 * 2, 4) and reading.top.height == 24 and reading.answers.height == 16
    assert list(reading.divergence.select("prompt", "position").unique(maintain_order=True).iter_rows()) == [
        (0, 1), (0, 5), (1, 1), (1, 3)
    ]  # fmt: skip
    logits, acts = ji.run(model, TEXTS, sites=ji.resid_post())
    for layer in range(2):
        ends_here, _ = ji.run(ji.patch(model, ji.resid_post(1), moved(acts, layer)), TEXTS)
        predicted, final = log_softmax(ends_here), log_softmax(logits)
        for row, position, slot in ((0, 1, 1), (0, 5, 5), (1, 1, 3), (1, 3, 5)):
            here = {"prompt": row, "position": position, "layer": layer}
            expected, true = predicted[row, slot], final[row, slot]
            kl = reading.divergence.filter(**here)["kl"][0]
            assert kl == pytest.approx((np.exp(true) * (true - expected)).sum(), abs=1e-4)
            assert abs(kl) < 1e-5 if layer == 1 else kl > 1e-3, (here, kl)
            top = reading.top.filter(**here)
            np.testing.assert_allclose(top["log_prob"], np.sort(expected)[::-1][:3], atol=1e-4)
            np.testing.assert_array_equal(np.sort(top["token"]), np.sort(np.argsort(-expected)[:3]))
            told = reading.answers.filter(**here)
            np.testing.assert_allclose(told["log_prob"], expected[[7, 50]], atol=1e-4)
            np.testing.assert_array_equal(told["rank"], (expected[:, None] > expected[[7, 50]]).sum(0))


def moved(acts, layer):
    """A cache that says that the last residual stream is that of another layer."""
    return dataclasses.replace(acts, arrays={("resid_post", 1): acts["resid_post", layer]}, _by_position={})


def test_chunks_and_identity_translators_change_nothing(monkeypatch):
    model = toy("llama", num_hidden_layers=2)
    whole = logit_lens(model, TEXTS, tokens=[3], at=ji.everywhere())
    same = logit_lens(model, TEXTS, tokens=[3], at=ji.everywhere(), lens=TunedLens.identity(model))
    for name in ("divergence", "top", "answers"):
        assert getattr(whole, name).equals(getattr(same, name))
    monkeypatch.setattr(readout, "_CHUNK_BYTES", 4 * 6 * 101 * 3)
    parts = logit_lens(model, TEXTS, tokens=[3], at=ji.everywhere())
    np.testing.assert_allclose(parts.divergence["kl"], whole.divergence["kl"], atol=1e-5)
    np.testing.assert_array_equal(parts.top["token"], whole.top["token"])


def test_a_planted_translator_is_learned_and_kept(tmp_path):
    """Block 1 of 2 adds the same vector everywhere, which a translator can say exactly and the logit lens cannot."""
    model = toy("gpt2", n_layer=2, vocab_size=40, n_embd=16, n_head=2)
    rng = np.random.default_rng(0)
    weights = {name: np.array(array) for name, array in model.weights().items()}
    for name in ("W_O", "W_out", "b_O"):
        weights[f"blocks.1.{name}"][:] = 0
    weights["blocks.1.b_out"][:] = rng.normal(size=16)
    model = with_weights(model, {name: jnp.asarray(array) for name, array in weights.items()})
    texts = rng.integers(0, 40, (24, 12))
    settings = {"steps": 300, "learning_rate": 2e-2, "tokens_per_step": 32}
    tuned, measured = fit_tuned_lens(model, texts, **settings)
    table = measured.pivot("lens", index="layer", values="kl")
    assert table["logit"][0] > 0.5 and table["tuned"][0] < 0.04 * table["logit"][0]
    assert np.abs(table.row(1)[1:]).max() < 1e-5
    likeness = np.corrcoef(tuned.biases[0], weights["blocks.1.b_out"])[0, 1]
    assert likeness > 0.9
    assert set(measured["texts"]) == {6} and set(measured["tokens"]) == {72}
    tuned.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    np.testing.assert_array_equal(again.changes, tuned.changes)
    assert again.provenance["models"] == ["toy:gpt2:0"] and again.provenance["config"]["steps"] == 300
    reading = logit_lens(model, texts, at=ji.everywhere(), lens=again)
    assert reading.divergence.filter(layer=0)["kl"].mean() < 0.04 * table["logit"][0]
    repeated, _ = fit_tuned_lens(model, texts, **settings)
    np.testing.assert_array_equal(repeated.changes, tuned.changes)


def test_the_tuned_lens_beats_the_logit_lens_on_countdown():
    model = ji.load("builtin:countdown-6m-grpo")
    rng = np.random.default_rng(0)
    texts = []
    for problem in countdown.eval_problems()[:28]:
        tries = [rng.permutation(problem.numbers) for _ in range(3)]
        texts.append(countdown.write(problem, [" - ".join(map(str, numbers)) for numbers in tries])[:170])
    _, measured = fit_tuned_lens(model, texts, steps=50, tokens=1000, tokens_per_step=96)
    early = measured.filter(pl.col("layer") < 4)
    for layer in range(4):
        logit, tuned, difference = (early.filter(layer=layer, lens=name).row(0, named=True) for name in
                                    ("logit", "tuned", "difference"))  # fmt: skip
        assert tuned["high"] < logit["low"] and difference["high"] < 0
        assert tuned["kl"] < 0.7 * logit["kl"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda lm: logit_lens(lm, TEXTS, tokens=[101]), "outside the vocabulary of 101"),
        (lambda lm: logit_lens(lm, TEXTS, top=0), "top is 0"),
        (lambda lm: logit_lens(lm, TEXTS, at=ji.at(30)), "choose no token"),
        (lambda lm: logit_lens(lm, TEXTS, lens=TunedLens.identity(toy("gpt2"))), r"this model needs \[2, 32, 32\]"),
        (lambda lm: logit_lens(ji.ablate(lm, ji.ln_final()), TEXTS), "the edit at ln_final"),
        (lambda lm: fit_tuned_lens(lm, TEXTS[:1]), "leaves no text on one side"),
        (lambda lm: fit_tuned_lens(lm, TEXTS, steps=0), "must be positive"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(toy("llama", num_hidden_layers=2))

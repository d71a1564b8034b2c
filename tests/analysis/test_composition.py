import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis.composition import W_OV, W_QK, Circuit, composition_scores, copying_scores
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

TEXT = [[3, 1, 4, 1, 5]]
UNBIASED = ("llama", "qwen3", "gemma2", "gpt2")


def unbiased(family):
    """A toy of two layers without biases of queries, keys, values and norms, and without score caps."""
    free = {"attn_logit_softcapping": None, "num_hidden_layers": 2} if family == "gemma2" else {"num_hidden_layers": 2}
    model = toy(family, **({"n_layer": 2} if family == "gpt2" else free))
    silent = {"b_Q", "b_K", "b_V", "b_O", "ln_attn.b"}
    weights = model.weights()
    return with_weights(
        model, {name: 0 * array if name.split(".", 2)[-1] in silent else array for name, array in weights.items()}
    )


def over_denominator(model, residual):
    if model.architecture.norm == "layer":
        centred = residual - residual.mean(-1, keepdims=True)
        return residual / np.sqrt((centred**2).mean(-1, keepdims=True) + model.architecture.norm_eps)
    return residual / np.sqrt((residual**2).mean(-1, keepdims=True) + model.architecture.norm_eps)


@pytest.mark.parametrize("family", UNBIASED)
def test_circuits_say_what_the_model_does(family):
    model = unbiased(family)
    sites = [ji.resid_pre(1), ji.attn_scores(1), ji.head_out(1), ji.attn_out(1), ji.q(1), ji.k(1)]
    _, acts = ji.run(model, TEXT, sites=sites)
    x = over_denominator(model, acts["resid_pre", 1][0])
    post = model.architecture.post_norms
    q, k = acts["q", 1][0], np.repeat(acts["k", 1][0], 4 // model.architecture.kv_heads, axis=1)
    written = np.zeros(32)
    for head in range(4):
        # A token that looks at itself: there rotary positions cancel.
        circuit = W_QK(model, 1, head)
        scores = np.einsum("ti,ij,tj->t", x, circuit.matrix(), x)
        if model.architecture.qk_norm:
            before_gain = [np.asarray(model.weights()[f"blocks.1.W_{name}"]) for name in "QK"]
            normed = x * np.asarray(model.weights()["blocks.1.ln_attn.w"])
            spread = [
                np.sqrt((np.einsum("te,pe->tp", normed, w[i]) ** 2).mean(-1) + model.architecture.norm_eps)
                for w, i in zip(before_gain, (head, head // 2), strict=True)
            ]
            scores = scores / spread[0] / spread[1]
        seen = np.diagonal(acts["attn_scores", 1][0, head])
        np.testing.assert_allclose(scores, seen, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose((q * k)[:, head].sum(-1) * model.architecture.attention_scale, seen, atol=1e-4)
        # The first token can only look at itself, so that its head writes W_OV x.
        first = W_OV(model, -1, head).matrix() @ x[0]
        written += first
        if not post:
            np.testing.assert_allclose(first, acts["head_out", 1][0, 0, head], rtol=1e-3, atol=1e-4)
    if post:
        total = acts["head_out", 1][0, 0].sum(0)
        denominator = np.sqrt((total**2).mean() + model.architecture.norm_eps)
        np.testing.assert_allclose(written / denominator, acts["attn_out", 1][0, 0], rtol=1e-3, atol=1e-4)


def test_numbers_from_the_factors_are_those_of_the_matrix():
    rng = np.random.default_rng(0)
    circuit = Circuit(rng.normal(size=(12, 4)), rng.normal(size=(4, 12)))
    matrix = circuit.matrix()
    np.testing.assert_allclose(circuit.norm(), np.linalg.norm(matrix))
    np.testing.assert_allclose(circuit.singular_values(), np.linalg.svd(matrix, compute_uv=False)[:4])
    expected = sorted(np.abs(np.linalg.eigvals(matrix)), reverse=True)[:4]
    np.testing.assert_allclose(np.abs(circuit.eigenvalues()), expected, rtol=1e-6)


def test_scores_are_those_of_the_whole_matrices():
    model = toy("llama")
    table = composition_scores(model, draws=1)
    assert table.height == 3 * 3 * 16
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    ov, qk = ({at: circuit(model, *at).matrix() for at in heads} for circuit in (W_OV, W_QK))
    for kind, writer_layer, writer_head, reader_layer, reader_head, score in table.select(pl.nth(range(6))).iter_rows():
        assert writer_layer < reader_layer
        writer, at = ov[writer_layer, writer_head], (reader_layer, reader_head)
        reader = {"Q": qk[at].T, "K": qk[at], "V": ov[at]}[kind]
        expected = np.linalg.norm(reader @ writer) / np.linalg.norm(reader) / np.linalg.norm(writer)
        assert score == pytest.approx(expected, rel=1e-4)


def test_random_weights_score_as_their_rotations():
    table = composition_scores(toy("llama", num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=4), draws=4)
    for _, rows in table.group_by("kind"):
        assert np.sqrt((rows["baseline"] ** 2).mean()) == pytest.approx(32**-0.5, rel=0.05)
        assert rows["score"].mean() == pytest.approx(rows["baseline"].mean(), rel=0.05)
        assert (rows["p"] < 0.05).mean() == pytest.approx(0.05, abs=0.04)


def test_planted_composition_is_found_in_its_kind_and_pair():
    model = toy("qwen2", num_key_value_heads=4)
    weights = {name: np.array(array) for name, array in model.weights().items()}
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 8)))[0]
    weights["blocks.0.W_O"][:, 2] = basis  # L0.H2 writes in a subspace that L2.H1 reads with its keys
    weights["blocks.2.W_K"][1] = basis.T / weights["blocks.2.ln_attn.w"]
    planted = with_weights(model, {name: jnp.asarray(array) for name, array in weights.items()})
    table = composition_scores(planted).sort("score", descending=True)
    best = table.row(0, named=True)
    assert (best["kind"], best["writer_layer"], best["writer_head"]) == ("K", 0, 2)
    assert (best["reader_layer"], best["reader_head"]) == (2, 1)
    assert best["p"] == pytest.approx(1 / 97) and best["score"] > 1.5 * table["score"][1]
    assert best["score"] > 1.6 * best["baseline"]


def test_a_head_that_copies_and_one_that_forbids():
    model = toy("llama", num_key_value_heads=4, tie_word_embeddings=True)
    weights = {name: np.array(array) for name, array in model.weights().items()}
    weights |= {name: np.ones_like(array) for name, array in weights.items() if name.endswith(".w")}
    for head, sign in ((0, 1), (3, -1)):
        weights["blocks.1.W_O"][:, head] = sign * weights["blocks.1.W_V"][head].T
    table = copying_scores(with_weights(model, {name: jnp.asarray(array) for name, array in weights.items()}))
    scores = table["score"].to_numpy().reshape(3, 4)
    assert scores[1, 0] > 0.95 and scores[1, 3] < -0.95
    others = np.delete(scores.reshape(-1), [4, 7])
    assert np.abs(others).max() < 0.8 and abs(table["baseline"][0]) < 0.2
    assert np.std(others) < 2 * table["baseline_sd"][0]


def test_what_does_not_exist_is_one_sentence():
    model = toy("llama", num_hidden_layers=1)
    with pytest.raises(ValueError, match="no head 4 of layer 0"):
        W_OV(model, 0, 4)
    with pytest.raises(ValueError, match="needs two layers"):
        composition_scores(model)
    with pytest.raises(ValueError, match="at least one rotated draw"):
        copying_scores(model, draws=0)

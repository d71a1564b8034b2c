"""Edges: circuits against runs and patches, attribution against derivatives of circuits, and a planted path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.activations.plan import Base
from jaxinterp.activations.run import compiled_form
from jaxinterp.activations.stages import Texts
from jaxinterp.analysis import circuit
from jaxinterp.analysis.agreement import compare_with_exact
from jaxinterp.analysis.aligned_pairs import align_pairs, padded_length
from jaxinterp.analysis.circuit import graph_of, read_senders, run_circuit
from jaxinterp.analysis.edges import attribute_edges, exact_edges
from jaxinterp.analysis.faithfulness import faithfulness
from jaxinterp.analysis.graph import list_edges
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES = {"gpt2": {"n_embd": 16, "n_layer": 2}}
FAMILIES = ["qwen2", "gemma2", "gpt2", "gpt_neox"]
CLEAN = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]
CORRUPTED = [[3, 8, 4, 1, 5, 9], [2, 7, 6, 8]]
METRIC = ji.logit_diff(7, 9)


@functools.cache
def small(family):
    """A toy of two layers; that of gpt2 has edits inside its components, which must go on acting."""
    model = toy(family, **SIZES.get(family, SMALL))
    return ji.ablate(model, ji.head(0, 1), ji.unit(1, 3)) if family == "gpt2" else model


def reading(model, texts):
    return ji.run(model, texts, sites=[ji.mlp_out(0), ji.z(0), ji.q(1), ji.k(1), ji.v(1)], logits="last")


def listening(model, others):
    """The model with some components patched, and the edges that lead into or out of these."""
    kv = model.architecture.kv_heads - 1
    patches = {"L1.H2.q": ji.Site("q", (1,), "head", (2,)), "L0.mlp": ji.mlp_out(0)}
    patches |= {f"L1.KV{kv}.{part}": ji.Site(part, (1,), "kv_head", (kv,)) for part in ("k", "v")}
    if not model.architecture.post_norms:
        patches["L0.H3"] = ji.head(0, 3)
    patched, edges = model, list_edges(model)
    for site in patches.values():
        patched = ji.patch(patched, site, others)
    senders = [name for name in patches if name in ("L0.mlp", "L0.H3")]
    receivers = [name for name in patches if name not in senders]
    lost = edges.select(pl.col("sender").is_in(senders) | pl.col("receiver").is_in(receivers)).to_series()
    return patched, lost.to_numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_circuits_are_what_runs_and_patches_give(family):
    model = small(family)
    clean, _ = reading(model, CLEAN)
    corrupted, others = reading(model, CORRUPTED)
    patched, lost = listening(model, others)
    got = run_circuit(model, CLEAN, CORRUPTED, np.array([lost | True, lost & False, ~lost]))
    np.testing.assert_allclose(got[0], clean, atol=1e-4)
    np.testing.assert_allclose(got[1], corrupted, atol=1e-4)
    expected, _ = ji.run(patched, CLEAN, logits="last")
    np.testing.assert_allclose(got[2], expected, atol=1e-4)
    assert min(np.abs(expected - clean).max(), np.abs(expected - corrupted).max()) > 1e-2


def lose_softly(model, weights):
    """Metric of circuits [circuit, pair] whose edges are lost in part, [circuit, edge]."""
    graph, body = graph_of(model), compiled_form(model.body)
    pairs = align_pairs(model, CLEAN, CORRUPTED)
    ((batch, _),) = pairs.batches(2, padded_length(model, pairs))
    _, written = read_senders(
        Base.of(model.body), Texts(jnp.asarray(batch.corrupted), jnp.asarray(batch.valid)), graph=graph
    )
    lost = jnp.zeros((len(weights), *graph.is_edge().shape)).at[:, graph.is_edge()].set(weights)
    logits = circuit._run_circuits(body, batch.clean, batch.valid, written, lost, None, graph=graph)
    return logits[:, :, 7] - logits[:, :, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_the_derivative_of_losing_edges(family):
    model = small(family)
    table = attribute_edges(model, CLEAN, CORRUPTED, METRIC)
    effects = table["effect"].to_numpy().reshape(-1, 2)
    generator, step = np.random.default_rng(0), 3e-3
    for _ in range(4):
        direction = generator.normal(size=len(effects)).astype(np.float32)
        forth, back, nowhere = lose_softly(model, np.stack([step * direction, -step * direction, 0 * direction]))
        slope, size = (forth - back) / (2 * step), np.linalg.norm(effects)
        np.testing.assert_allclose(direction @ effects, slope, atol=0.01 * size)
        np.testing.assert_allclose(table["clean"][:2], nowhere, atol=1e-4)
    ablated = table.filter(sender="L0.H1")["effect"].abs().max()
    assert (ablated < 1e-5) == (family == "gpt2")


def test_attribution_is_the_derivative_edge_by_edge():
    model = small("gemma2")
    slopes = jax.grad(lambda lost: lose_softly(model, lost[None]).sum())(jnp.zeros(list_edges(model).height))
    table = attribute_edges(model, CLEAN, CORRUPTED, METRIC)
    effects = table["effect"].to_numpy().reshape(-1, 2).sum(axis=1)
    np.testing.assert_allclose(effects, slopes, rtol=1e-4, atol=1e-5 * np.abs(slopes).max())
    corrupted, _ = reading(model, CORRUPTED)
    np.testing.assert_allclose(table["corrupted"][:2], corrupted[:, 7] - corrupted[:, 9], atol=1e-4)


def planted():
    """Only head 1 of layer 0 writes anything that differs, and nobody but the logits reads it."""
    model = small("qwen2")
    weights = {name: np.array(value) for name, value in model.weights().items()}
    for layer in range(2):
        weights[f"blocks.{layer}.W_out"][:] = 0
        weights[f"blocks.{layer}.W_O"][:, [head for head in range(4) if (layer, head) != (0, 1)]] = 0
    return with_weights(model, weights)


PATH = {("embed", "L0.KV0.k"), ("embed", "L0.KV0.v"), ("L0.H1", "logits")}


def other_pairs(count, seed):
    """Texts that differ in their second token, signed so that the planted model prefers the clean one's answer."""
    generator = np.random.default_rng(seed)
    clean = generator.integers(10, 100, (count, 6))
    corrupted = clean.copy()
    corrupted[:, 1] = generator.integers(10, 100, count)
    before, after = (ji.run(planted(), texts, logits="last")[0] for texts in (clean, corrupted))
    swap = (before - after)[:, 7] < (before - after)[:, 9]
    clean[swap], corrupted[swap] = corrupted[swap], clean[swap]
    return clean, corrupted


def test_a_planted_path_comes_out_on_top_and_does_everything_on_other_texts():
    model = planted()
    chosen_on, judged_on = other_pairs(8, seed=0), other_pairs(8, seed=1)
    scores = {method: attribute_edges(model, *chosen_on, METRIC, method) for method in ("gradient", "integrated")}
    scores["exact"] = exact_edges(model, *chosen_on, METRIC)
    for name, table in scores.items():
        found = table.group_by("sender", "receiver").agg(pl.col("effect").mean()).sort(pl.col("effect").abs())
        found = found.filter(pl.col("effect").abs() > 1e-5).select("sender", "receiver").rows()
        assert set(found) == PATH, name
    last = scores["exact"].filter(sender="L0.H1", receiver="logits")
    np.testing.assert_allclose(last["normalised"], 1, atol=1e-3)
    curve = faithfulness(model, *judged_on, METRIC, scores, counts=[0, 2, 3, 40], random_draws=3)
    for name in scores:
        points = curve.filter(selection=name)
        np.testing.assert_allclose(points["faithfulness"][[0, 2, 3]], [0, 1, 1], atol=1e-3)
        np.testing.assert_allclose(points["low"][2], 1, atol=1e-3)
        assert points["prompts"].to_list() == [8] * 4
    random = curve.filter(selection="random")
    assert random["draw"].unique().sort().to_list() == [0, 1, 2]
    assert random.filter(pl.col("edges") < 40)["faithfulness"].abs().max() < 0.1


def test_attribution_agrees_with_losing_each_edge():
    model, texts = small("qwen2"), other_pairs(8, seed=2)
    exact = exact_edges(model, *texts, METRIC)
    rows = {
        method: compare_with_exact(attribute_edges(model, *texts, METRIC, method), exact, n=50)
        for method in ("gradient", "integrated")
    }
    assert rows["integrated"]["cells"].item() == 8 * list_edges(model).height
    for row in rows.values():
        assert row["pearson"].item() > 0.85
        assert row["pearson_low"].item() > 0.75
    some = exact_edges(model, *texts, METRIC, edges=np.array([5, 2, *range(20, 60)]))
    assert some["receiver"][0] == exact.filter(edge=5)["receiver"][0]
    np.testing.assert_allclose(some["effect"][:8], exact.filter(edge=5)["effect"], atol=1e-5)


def test_equal_texts_move_nothing():
    model = small("qwen2")
    table = attribute_edges(model, CLEAN, CLEAN, METRIC)
    assert table["effect"].abs().max() < 1e-5
    assert table["normalised"].null_count() == table.height


def test_rows_do_not_depend_on_the_batch_they_are_in():
    model = small("gpt2")
    texts, others = [*CLEAN, [5, 5, 5, 2, 6]], [*CORRUPTED, [5, 4, 5, 2, 6]]
    batched = attribute_edges(model, texts, others, METRIC, batch_size=2)
    twice = attribute_edges(model, [texts[1]] * 2, [others[1]] * 2, METRIC)
    pairs = attribute_edges(model, CLEAN, CORRUPTED, METRIC)
    np.testing.assert_allclose(batched.filter(pl.col("prompt") < 2)["effect"], pairs["effect"], atol=1e-5)
    for prompt in (0, 1):
        np.testing.assert_allclose(batched.filter(prompt=1)["effect"], twice.filter(prompt=prompt)["effect"], atol=1e-5)
    kept = np.random.default_rng(0).random((3, list_edges(model).height)) < 0.5
    logits = run_circuit(model, texts, others, kept, batch_size=2)
    assert logits.shape == (3, 3, 101)
    before = circuit._run_circuits._cache_size()
    for number, text in enumerate(texts):
        alone = run_circuit(model, [text] * 2, [others[number]] * 2, kept)
        np.testing.assert_allclose(logits[:, number], alone[:, 1], atol=1e-4)
    run_circuit(model, CLEAN, CORRUPTED, ~kept)
    assert circuit._run_circuits._cache_size() == before, "another circuit is another number"


def test_edits_of_the_stream_are_refused():
    steered = ji.steer(small("qwen2"), ji.resid_post(0), np.ones(16))
    with pytest.raises(ValueError, match=r"edited at resid_post \(layer 0\)"):
        attribute_edges(steered, CLEAN, CORRUPTED, METRIC)


def test_edges_are_those_of_the_architecture():
    sequential, parallel = list_edges(small("qwen2")), list_edges(small("gpt_neox"))
    assert sequential["edge"].to_list() == list(range(sequential.height))
    assert sequential.height == 8 * (1 + 6) + (5 + 10) + 11
    assert parallel.height == 12 * (1 + 6) + (1 + 6) + 11
    same_layer = pl.col("sender_layer") == pl.col("receiver_layer")
    assert set(sequential.filter(same_layer)["receiver"]) == {"L0.mlp", "L1.mlp"}
    assert parallel.filter(same_layer).is_empty()
    assert sequential.filter(pl.col("sender_layer") > pl.col("receiver_layer")).is_empty()
    assert sequential.filter(sender="L0.mlp", receiver="L1.KV1.v").height == 1
    assert sequential.filter(receiver="logits").height == 11


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model: run_circuit(model, CLEAN, CORRUPTED, np.ones(5, bool)), "one entry for each of the 82 edges"),
        (lambda model: run_circuit(model, CLEAN, CORRUPTED, np.ones(82)), "must be boolean"),
        (lambda model: run_circuit(model, CLEAN, CORRUPTED[:1], np.ones(82, bool)), "2 clean and 1 corrupted"),
        (lambda model: attribute_edges(model, CLEAN, CORRUPTED, METRIC, "exact"), "no method 'exact'"),
        (lambda model: attribute_edges(model, CLEAN, CORRUPTED, METRIC, steps=0), "at least 1"),
        (lambda model: exact_edges(model, CLEAN, CORRUPTED, METRIC, np.array([82])), "numbers from 0 to 81"),
        (lambda model: faithfulness(model, CLEAN, CORRUPTED, METRIC, {}, counts=[99]), "99 edges asked for"),
        (
            lambda model: faithfulness(
                model, CLEAN, CORRUPTED, METRIC, pl.DataFrame({"edge": [90], "effect": [1.0]}), counts=[1]
            ),
            "numbered from 0 to 81",
        ),
        (
            lambda model: faithfulness(
                model, *[[CLEAN[0]] * 8] * 2, METRIC, pl.DataFrame({"edge": [9], "effect": [1.0]}), random_draws=2
            ),
            "same on clean and corrupted",
        ),
    ],
)
def test_a_wrong_call_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(small("qwen2"))

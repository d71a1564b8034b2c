import dataclasses

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import paths
from jaxinterp.analysis.paths import head_input, path_patch
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

SMALL = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
FAMILIES = {
    "llama": SMALL,
    "gemma2": {**SMALL, "query_pre_attn_scalar": 4},
    "gpt2": {"n_embd": 16},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 24},
}
CLEAN = [[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8]]
CORRUPTED = [[3, 1, 7, 1, 5, 9, 6], [2, 9, 1, 8]]
METRIC = ji.logit_diff(5, 11)
TWO = ji.at(2)


def difference(logits):
    return logits[:, -1, 5] - logits[:, -1, 11]


def three_runs(model, senders, receivers, freeze_mlps=False, sender_at=None, receiver_at=None):
    """Path patching by separate runs and plain patches; also the metric in the clean and the corrupted run."""
    layers = range(model.architecture.layers)
    held = ["z", "mlp_out"] if freeze_mlps else ["z"]
    sites = [ji.Site(name) for name in dict.fromkeys([*held, *(site.name for site in senders)])]
    clean_logits, clean = ji.run(model, CLEAN, sites=sites)
    corrupted_logits, corrupted = ji.run(model, CORRUPTED, sites=sites)
    path = model
    for site in held:
        for layer in layers:
            path = ji.patch(path, ji.Site(site, (layer,)), clean)
    for sender in senders:
        path = ji.patch(path, sender, corrupted, at=sender_at)
    _, along = ji.run(path, CLEAN, sites=[dataclasses.replace(site, axis=None, indices=()) for site in receivers])
    final = model
    for receiver in receivers:
        final = ji.patch(final, receiver, along, at=receiver_at)
    return difference(ji.run(final, CLEAN)[0]), difference(clean_logits), difference(corrupted_logits)


@pytest.mark.parametrize(
    ("family", "freeze_mlps", "senders", "receivers", "where"),
    [
        ("llama", False, [ji.head(1, 0), ji.head(0, 1, 3)], [head_input("q", 2, 1), head_input("k", 2, 0)], {}),
        ("gemma2", False, [ji.mlp_out(0), ji.head(-2, 2)], [ji.mlp_gate(2), ji.mlp_pre(2), ji.q(1)], {}),
        ("gpt2", True, [ji.head(0, 2), ji.mlp_out(1)], [ji.ln_final()], {}),
        ("gpt_neox", False, [ji.head(0, 2), ji.embed()], [ji.v(1)], {"sender_at": ji.at(1, 2), "receiver_at": TWO}),
    ],
)
def test_one_program_equals_three_runs(family, freeze_mlps, senders, receivers, where):
    model = toy(family, **FAMILIES[family])
    table = path_patch(model, CLEAN, CORRUPTED, METRIC, [senders], [receivers], freeze_mlps=freeze_mlps, **where)
    value, clean, corrupted = three_runs(model, senders, receivers, freeze_mlps, **where)
    assert np.abs(value - clean).max() > 1e-3
    np.testing.assert_allclose(table["clean"], clean, atol=1e-4)
    np.testing.assert_allclose(table["corrupted"], corrupted, atol=1e-4)
    np.testing.assert_allclose(table["value"], value, atol=1e-4)
    np.testing.assert_allclose(table["normalised"], (value - clean) / (corrupted - clean), rtol=1e-2, atol=1e-3)


def test_blocks_of_any_size_and_an_edited_model_give_the_same_numbers():
    model = ji.ablate(toy("llama", **SMALL), ji.head(0, 1))
    receivers = [head_input("q", 2, 0), head_input("q", 1, 3), ji.resid_post(-1)]
    whole = path_patch(model, CLEAN, CORRUPTED, METRIC, receivers=receivers, rows_at_once=512)
    parts = path_patch(model, CLEAN, CORRUPTED, METRIC, receivers=receivers, rows_at_once=10)
    assert whole.height == 12 * 3 * 2
    assert whole["receiver"].unique(maintain_order=True).to_list() == ["L2.H0.q", "L1.H3.q", "L2.resid_post"]
    assert whole.drop("value", "effect", "normalised", "clean", "corrupted").equals(
        parts.drop("value", "effect", "normalised", "clean", "corrupted")
    )
    np.testing.assert_allclose(whole["value"], parts["value"], atol=1e-4)
    ablated = whole.filter((pl.col("sender_layer") == 0) & (pl.col("sender_head") == 1))
    np.testing.assert_allclose(ablated["effect"], 0, atol=1e-5)


def test_a_path_that_does_not_exist_has_no_effect():
    model = toy("llama", **SMALL)
    later = path_patch(model, CLEAN, CORRUPTED, METRIC, [ji.head(2, 0)], [head_input("q", 1, 0)])
    np.testing.assert_allclose(later["effect"], 0, atol=1e-5)
    same = path_patch(model, CLEAN, CLEAN, METRIC, [ji.head(0, 0)], [head_input("q", 1, 0)])
    np.testing.assert_allclose(same["effect"], 0, atol=1e-5)
    assert same["normalised"].null_count() == 2


def test_a_planted_path_is_found_and_only_it():
    """Only one head writes where a head of the last layer reads its values, so only that path carries anything."""
    model = toy("gpt2", seed=3)
    weights = {name: np.array(array) for name, array in model.weights().items()}
    for layer in range(3):
        for name in ("W_O", "b_O", "W_out", "b_out"):
            weights[f"blocks.{layer}.{name}"][:] = 0
    width = model.architecture.embedding
    rng = np.random.default_rng(0)
    weights["blocks.0.W_O"][: width // 2, 1] = rng.normal(size=(width // 2, 8))
    weights["blocks.1.W_O"][: width // 2, 2] = rng.normal(size=(width // 2, 8))
    weights["blocks.2.W_O"][width // 2 :, 3] = rng.normal(size=(width // 2, 8))
    weights["blocks.1.W_V"][:] = 0  # the head of layer 1 writes its bias, whatever it reads
    model = with_weights(model, {name: jnp.asarray(array) for name, array in weights.items()})
    receivers = [head_input("v", 2, index) for index in range(4)]
    table = path_patch(model, CLEAN, CORRUPTED, METRIC, receivers=receivers)
    loud = table.filter(pl.col("effect").abs() > 1e-3)
    assert set(loud["sender"]) == {"L0.H1"}
    assert set(loud["receiver"]) == {"L2.v[kv_head 3]"}


def test_other_senders_and_receivers_compile_nothing():
    model = toy("llama", **SMALL)
    path_patch(model, CLEAN, CORRUPTED, METRIC, [ji.head(0, 0)], [head_input("q", 2, 0)])
    before = paths._measure_worlds._cache_size()
    path_patch(model, CLEAN, CORRUPTED, METRIC, [ji.head(1, 3)], [head_input("q", 1, 2)])
    path_patch(model, CORRUPTED, CLEAN, METRIC, [[ji.head(1, 3), ji.head(0, 1)]], [ji.q(2)])
    assert paths._measure_worlds._cache_size() == before


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda lm: path_patch(lm, CLEAN, CORRUPTED[:1], METRIC), "2 clean and 1 corrupted"),
        (lambda lm: path_patch(lm, CLEAN, [[1, 2], [2, 7, 1, 8]], METRIC), "pair 0 has 7 clean and 2 corrupted tokens"),
        (lambda lm: path_patch(lm, CLEAN, CORRUPTED, METRIC, [ji.pattern(0)]), "a sender writes to"),
        (lambda lm: path_patch(lm, CLEAN, CORRUPTED, METRIC, None, [ji.head(2, 0)]), "a receiver reads from"),
        (lambda lm: path_patch(lm, CLEAN, CORRUPTED, METRIC, [ji.head(7, 0)]), "this model has no z"),
        (lambda lm: path_patch(lm, CLEAN, CORRUPTED, METRIC, None, [head_input("k", 0, 3)]), "there is no 3"),
        (lambda lm: head_input("z", 0, 1), "reads its 'q', 'k' or 'v'"),
    ],
)
def test_what_cannot_be_patched_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(toy("llama", **SMALL))

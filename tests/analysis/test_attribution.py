"""Attribution patching against exact patching, and on models in which one head does everything."""

import functools

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import attribution
from jaxinterp.analysis.agreement import compare_with_exact
from jaxinterp.analysis.attribution import attribute
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES = {"gpt2": {"n_embd": 16, "n_layer": 2}}
CLEAN = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8]]
CORRUPTED = [[3, 8, 4, 1, 5, 9], [2, 7, 6, 8]]
METRIC = ji.logit_diff(7, 9)


@functools.cache
def small(family):
    return toy(family, **SIZES.get(family, SMALL))


def nearby(model):
    """The model with tokens that differ between the texts embedded almost alike."""
    table = np.array(model.weights()["W_E"])
    noise = np.random.default_rng(0).normal(size=(2, table.shape[1])).astype(np.float32)
    table[8], table[6] = table[1] + 0.01 * noise[0], table[1] + 0.01 * noise[1]
    return with_weights(model, model.weights() | {"W_E": table})


@pytest.mark.parametrize(
    ("family", "site"), [("llama", ji.k(1)), ("gemma2", ji.pattern(0)), ("gpt2", ji.mlp_post(1)), ("gpt_neox", ji.z(1))]
)
def test_integrated_effects_of_a_tap_add_up_to_patching_it(family, site):
    model = small(family)
    table = attribute(model, CLEAN, CORRUPTED, METRIC, [site, ji.resid_pre()], "integrated", steps=24)
    sums = table.group_by("site", "layer", "prompt", maintain_order=True).agg(pl.col("effect").sum())
    read = [site, ji.resid_pre(0), ji.resid_pre(1)]
    corrupted, other = ji.run(model, CORRUPTED, sites=read, logits="last")
    clean, _ = ji.run(model, CLEAN, sites=read, logits="last")
    patched, _ = ji.run(ji.patch(model, site, other), CLEAN, logits="last")
    clean, corrupted, patched = (logits[:, 7] - logits[:, 9] for logits in (clean, corrupted, patched))
    stream = sums.filter(site="resid_pre")["effect"].to_numpy().reshape(2, 2)
    np.testing.assert_allclose(stream, [corrupted - clean] * 2, rtol=5e-3, atol=2e-3)
    np.testing.assert_allclose(sums.filter(site=site.name)["effect"], patched - clean, rtol=5e-3, atol=2e-3)
    assert np.abs(patched - clean).min() > 1e-3


def exact_heads(model):
    _, other = ji.run(model, CORRUPTED, sites=[ji.z(0), ji.z(1)], logits="last")
    cells = ji.grid(
        lambda lm, layer, head, position: ji.patch(lm, ji.head(layer, head), other, positions=[(position, position)]),
        layer=range(2),
        head=range(4),
        position=range(4),
    )
    return ji.sweep(model, CLEAN, cells, METRIC, progress=False)


def test_for_small_changes_attribution_is_exact_patching_head_by_head():
    model = nearby(small("qwen2"))
    estimates, exact = attribute(model, CLEAN, CORRUPTED, METRIC, ji.z()), exact_heads(model)
    both = estimates.join(exact, on=["layer", "head", "position", "prompt"], suffix="_exact")
    assert both.height == 64
    assert (both["effect"] - both["effect_exact"]).abs().max() < 0.02 * both["effect_exact"].abs().max()
    np.testing.assert_allclose(both["clean"], both["clean_exact"], atol=1e-5)
    agreement = compare_with_exact(estimates, exact, n=20)
    assert agreement["cells"].item() == 64
    assert agreement["pearson"].item() > 0.999
    assert agreement["pearson_low"].item() > 0.99


def test_integrating_along_the_inputs_gives_all_of_the_difference_at_the_token_that_differs():
    table = attribute(small("qwen2"), CLEAN, CORRUPTED, METRIC, [ji.embed(), ji.z()], "integrated", 24, "inputs")
    start = table.filter(site="embed")
    differing = start.filter(pl.col("effect") != 0)
    assert differing.select("prompt", "position").rows() == [(0, 1), (1, 2)]
    np.testing.assert_allclose(differing["normalised"], 1, atol=5e-3)
    agreement = compare_with_exact(table.filter(site="z"), exact_heads(small("qwen2")), n=20)
    assert agreement["pearson"].item() > 0.6


def test_a_planted_head_is_the_only_one_that_counts():
    model = small("qwen2")
    weights = {name: np.array(value) for name, value in model.weights().items()}
    for layer in range(2):
        weights[f"blocks.{layer}.W_out"][:] = 0
        weights[f"blocks.{layer}.W_O"][:, [head for head in range(4) if (layer, head) != (1, 2)]] = 0
    table = attribute(with_weights(model, weights), CLEAN, CORRUPTED, METRIC, [ji.z(), ji.resid_pre(1)])
    heads = table.filter(site="z")
    planted = heads.filter((pl.col("layer") == 1) & (pl.col("head") == 2))
    last = planted.filter(pl.col("position") == pl.col("position").max().over("prompt"))
    assert (last["effect"].abs() > 1e-3).all()
    assert heads["effect"].abs().sum() == pytest.approx(last["effect"].abs().sum())
    changed = {(0, 1), (1, 2)}
    stream = table.filter(site="resid_pre").filter(pl.col("effect") != 0)
    assert set(stream.select("prompt", "position").rows()) == changed


def test_equal_texts_have_no_effects():
    table = attribute(small("gpt2"), CLEAN, CLEAN, METRIC, [ji.mlp_post(1), ji.resid_pre()])
    assert table["effect"].abs().max() < 1e-5
    assert table["normalised"].null_count() == table.height


def test_rows_do_not_depend_on_the_batch_they_are_in():
    model = small("gpt2")
    texts, others = [*CLEAN, [5, 5, 5, 2, 6]], [*CORRUPTED, [5, 4, 5, 2, 6]]
    sites = [ji.embed(), ji.resid_pre(1), ji.head(0, 3, 1), ji.ln_final()]
    together = attribute(model, texts, others, METRIC, sites)
    batched = attribute(model, texts, others, METRIC, sites, batch_size=2)
    single = attribute(model, texts[1:2], others[1:2], METRIC, sites)
    for name in ("effect", "clean", "corrupted"):
        np.testing.assert_allclose(together[name], batched[name], atol=1e-5)
        np.testing.assert_allclose(together.filter(prompt=1)[name], single[name], atol=1e-5)
    assert together["head"].unique().sort().to_list() == [None, 1, 3]
    assert together.filter(site="embed", prompt=1)["position"].to_list() == [0, 1, 2, 3]
    assert together.columns[-4:] == ["clean", "corrupted", "effect", "normalised"]
    np.testing.assert_allclose(
        together["normalised"], together["effect"] / (together["corrupted"] - together["clean"]), rtol=1e-6
    )


def test_other_texts_and_steps_compile_nothing():
    model = small("qwen2")
    attribute(model, CLEAN, CORRUPTED, METRIC, ji.z())
    before = attribution._slopes._cache_size()
    attribute(model, CORRUPTED, CLEAN, ji.logit_diff(1, 2), ji.z())
    attribute(model, CLEAN, CORRUPTED, METRIC, ji.z(), "integrated", steps=3)
    assert attribution._slopes._cache_size() <= before + 1, (
        "python numbers and arrays of the mask may differ in type once"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"corrupted": [[3, 8, 4, 1, 5, 9], [2, 7, 6]]}, "pair 1 has 4 clean and 3 corrupted tokens"),
        ({"corrupted": CORRUPTED[:1]}, "2 clean and 1 corrupted texts"),
        ({"method": "exact"}, "no method 'exact'"),
        ({"path": "weights"}, "no path 'weights'"),
        ({"steps": 0}, "at least 1"),
        ({"sites": [ji.z(), ji.head(1, 2)]}, "z of layer 1 is chosen twice"),
        ({"sites": [ji.resid_pre(7)]}, "no resid_pre"),
        ({"sites": [ji.Site("z", None, "projection", (1,))]}, "by head or unit"),
    ],
)
def test_a_wrong_call_is_one_sentence(change, sentence):
    call = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": METRIC} | change
    with pytest.raises(ValueError, match=sentence):
        attribute(small("llama"), **call)


def test_agreement_is_by_cell_with_prompts_drawn_together():
    generator = np.random.default_rng(0)
    table = pl.DataFrame(
        {"prompt": np.repeat(np.arange(20), 6), "layer": np.tile([0, 0, 0, 1, 1, 1], 20), "head": [0, 1, None] * 40}
    ).with_columns(effect=pl.Series(generator.normal(size=120)))
    noisy = table["effect"] + np.where(table["layer"] == 1, 3.0, 0.1) * generator.normal(size=120)
    exact = table.with_columns(effect=noisy).sample(fraction=1.0, shuffle=True, seed=1)
    rows = compare_with_exact(table, exact, by=["layer"], n=200)
    assert rows["cells"].to_list() == [60, 60]
    assert rows["pearson"][0] > 0.98 > 0.7 > rows["pearson"][1]
    assert (rows["pearson_low"] < rows["pearson"]).all()
    assert (rows["spearman"] < rows["spearman_high"]).all()
    constant = compare_with_exact(table, exact.with_columns(effect=pl.lit(0.0)), n=20)
    assert constant["pearson"].item() is None
    with pytest.raises(ValueError, match="several exact effects have the same prompt, layer"):
        compare_with_exact(table.drop("head").unique(["prompt", "layer"]), exact)
    with pytest.raises(ValueError, match="no cell in common"):
        compare_with_exact(table, exact.with_columns(prompt=pl.col("prompt") + 50))

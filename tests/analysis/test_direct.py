import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis.direct import direct_logit_attribution
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

TEXTS = [[3, 1, 4, 1, 5, 9], [2, 7, 1, 8], [6]]
RIGHT, WRONG = [5, 8, 1], [11, 3, 4]
METRIC = ji.logit_diff(RIGHT, WRONG)
SMALL = {"num_hidden_layers": 2}
FAMILIES = {
    "llama": SMALL,
    "qwen2": SMALL,
    "gemma2": {**SMALL, "final_logit_softcapping": 30.0},
    "gpt2": {"n_layer": 2},
    "gpt_neox": SMALL,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_sum_to_the_logit_difference(family):
    model = toy(family, **FAMILIES[family])
    table = direct_logit_attribution(model, TEXTS, METRIC, batch_size=2)
    sums = table.group_by("prompt", maintain_order=True).agg(pl.col("contribution").sum(), pl.first("logit_diff"))
    assert table["component"].unique(maintain_order=True)[0] == "embed"
    assert table.filter(component="head").height == 3 * 2 * 4
    assert table["contribution"].abs().max() > 0.05
    size = sums["logit_diff"].abs().max()
    np.testing.assert_allclose(sums["contribution"], sums["logit_diff"], atol=1e-4 * size)
    np.testing.assert_allclose(table["residual"], 0, atol=1e-4 * size)
    cap = model.architecture.logit_softcap
    assert set(table["of"]) == {"logit_diff" if cap is None else "logit_diff_before_softcap"}
    if family not in ("gemma2", "gpt2"):
        return
    logits = ji.run(model, TEXTS, logits="last")[0].astype(np.float64)
    logits = logits if cap is None else cap * np.arctanh(logits / cap)
    rows = np.arange(3)
    np.testing.assert_allclose(sums["logit_diff"], logits[rows, RIGHT] - logits[rows, WRONG], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
def test_a_planted_head_gets_all_that_heads_write(family):
    model = toy(family, **SMALL)
    weights = {name: np.array(array) for name, array in model.weights().items()}
    for layer in range(2):
        kept = weights[f"blocks.{layer}.W_O"][:, 3].copy()
        weights[f"blocks.{layer}.W_O"][:] = 0
        if layer == 1:
            weights[f"blocks.{layer}.W_O"][:, 3] = kept
    model = with_weights(model, {name: jnp.asarray(array) for name, array in weights.items()})
    table = direct_logit_attribution(model, TEXTS, METRIC)
    heads = table.filter(component="head")
    loud = heads.filter(pl.col("contribution").abs() > 1e-6)
    assert set(loud.select("layer", "head").iter_rows()) == {(1, 3)}
    _, acts = ji.run(model, TEXTS, sites=[ji.attn_out(1), ji.resid_post(1)])
    # What attention wrote, seen through the final norm, is that head and the bias.
    bias = table.filter(component="attn_bias", layer=1)["contribution"].to_numpy()
    expected = through_final_norm(model, acts["attn_out", 1][:, -1], acts["resid_post", 1][:, -1])
    own = loud["contribution"].to_numpy() + (bias if len(bias) else 0)
    np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4)


def through_final_norm(model, term, last):
    weights, architecture = model.weights(), model.architecture
    unembed = np.asarray(weights["W_E" if architecture.tied else "W_U"])
    if architecture.norm == "layer":
        term, last = (x - x.mean(-1, keepdims=True) for x in (term, last))
    scale = np.sqrt((last**2).mean(-1, keepdims=True) + architecture.norm_eps)
    seen = term / scale * (np.asarray(weights["ln_final.w"]) + architecture.norm_offset)
    return ((unembed[RIGHT] - unembed[WRONG]) * seen).sum(-1)


def test_edits_in_front_of_the_terms_count_and_those_behind_are_refused():
    model = toy("llama", **SMALL)
    table = direct_logit_attribution(ji.ablate(model, ji.head(1, 2)), TEXTS, METRIC)
    np.testing.assert_allclose(table.filter(component="head", layer=1, head=2)["contribution"], 0)
    np.testing.assert_allclose(table["residual"], 0, atol=1e-4)
    steered = ji.steer(model, ji.resid_post(0), np.ones(32, np.float32))
    with pytest.raises(ValueError, match=r"the edit at resid_post \(layer 0\)"):
        direct_logit_attribution(steered, TEXTS, METRIC)
    with pytest.raises(ValueError, match=r"pass ji\.logit_diff"):
        direct_logit_attribution(model, TEXTS, ji.log_prob(3))

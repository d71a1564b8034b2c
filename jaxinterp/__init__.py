"""Mechanistic interpretability in JAX: models as trees, edits as data.

Examples:
    >>> import jaxinterp as ji
    >>> lm = ji.load("builtin:countdown-6m-grpo")
    >>> blind = ji.ablate(lm, ji.head(4, 5))
    >>> logits, acts = ji.run(blind, ["Using the numbers [3, 4], "], sites=[ji.resid_post(2)])
    >>> acts["resid_post", 2].shape
    (1, 10, 256)
"""

from jaxinterp.activations.generate import Generation, Sampler, generate, generate_tokens
from jaxinterp.activations.run import run
from jaxinterp.activations.sweep import Cell, grid, log_prob, logit_diff, sweep
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.patch import patch
from jaxinterp.interventions.project import project
from jaxinterp.interventions.steer import steer
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel, load, logits, restore_tree, save, save_tree
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import at, everywhere, generated, last, mask, prompt, rows_at, steps, where_token
from jaxinterp.sites.selectors import (
    Site,
    attn_out,
    attn_scores,
    embed,
    head,
    head_out,
    k,
    ln_final,
    ln_scale,
    ln_scale_mlp,
    logits_site,
    mlp_gate,
    mlp_out,
    mlp_post,
    mlp_pre,
    pattern,
    q,
    resid_mid,
    resid_post,
    resid_pre,
    unit,
    v,
    z,
)

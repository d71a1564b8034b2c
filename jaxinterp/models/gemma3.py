"""Gemma 3 text checkpoints: Gemma 2 with normalised queries and keys, and other rotary bases in local blocks."""

from __future__ import annotations

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.families import Family
from jaxinterp.models.gemma2 import read_gemma
from jaxinterp.models.llama import GEMMA_RULES


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a Gemma 3 text checkpoint."""
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    settings, kinds = read_gemma(config, pattern)
    projection = settings["projection"]
    config.expect("attn_logit_softcapping", None)
    local = Rope(theta=float(config.get("rope_local_base_freq", 10000.0)), rotary=projection)
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        local = config.rope(projection, "sliding_attention")
    ropes = {"sliding_attention": local, "full_attention": config.rope(projection, "full_attention", theta=1e6)}
    return Architecture(
        **settings,
        qk_norm=True,
        ropes=tuple(ropes[kind] for kind in kinds),
        logit_softcap=config.get("final_logit_softcapping"),
    )


FAMILY = Family(read=read, rules=GEMMA_RULES, prefix="model.")

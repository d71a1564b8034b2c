"""Gemma 2 checkpoints: post-norms, soft caps, every other block with a sliding window."""

from __future__ import annotations

from typing import Any

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.families import Family
from jaxinterp.models.llama import GEMMA_RULES, read_sizes


def read_gemma(config: ConfigReader, pattern: int) -> tuple[dict[str, Any], list[str]]:
    """The settings that Gemma 2 and 3 share.

    Args:
        config: The config.
        pattern: Every so many blocks one has full attention, unless the config lists the blocks.

    Returns:
        Keyword arguments for `Architecture`, and the kind of attention in each block.
    """
    sizes = read_sizes(config, projection=256)
    layers = sizes["layers"]
    kinds = config.layer_types(
        layers, ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)]
    )
    window = config.number("sliding_window", 4096)
    config.expect("use_bidirectional_attention", False, None)
    config.get("hidden_act")
    bias = config.flag("attention_bias", False)
    settings = sizes | {
        "norm_offset": 1.0,
        "activation": config.activation("hidden_activation", "gelu_pytorch_tanh"),
        "post_norms": True,
        "qkv_bias": bias,
        "output_bias": bias,
        "tied": config.flag("tie_word_embeddings", True),
        "embedding_scale": sizes["embedding"] ** 0.5,
        "attention_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "windows": tuple(window if kind == "sliding_attention" else None for kind in kinds),
    }
    return settings, kinds


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a Gemma 2 checkpoint."""
    settings, _ = read_gemma(config, pattern=2)
    return Architecture(
        **settings,
        ropes=(config.rope(settings["projection"]),) * settings["layers"],
        attention_softcap=config.optional("attn_logit_softcapping", 50.0),
        logit_softcap=config.optional("final_logit_softcapping", 30.0),
    )


FAMILY = Family(read=read, rules=GEMMA_RULES, prefix="model.")

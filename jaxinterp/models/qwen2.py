"""Qwen 2 and 2.5 checkpoints: Llama's layout with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.families import Family
from jaxinterp.models.llama import RULES, read_sizes


def read_qwen(config: ConfigReader, projection: int | None = None) -> dict[str, Any]:
    """The settings that Qwen 2 and 3 share, sliding windows among them.

    Args:
        config: The config.
        projection: Width of one head if the config does not say.

    Returns:
        Keyword arguments for `Architecture`.
    """
    sizes = read_sizes(config, projection)
    layers = sizes["layers"]
    window = config.get("sliding_window")
    window = window if config.flag("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)
    slides = ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers)]
    kinds = config.layer_types(layers, slides)
    return sizes | {
        "activation": config.activation("hidden_act", "silu"),
        "tied": config.flag("tie_word_embeddings", False),
        "attention_scale": sizes["projection"] ** -0.5,
        "ropes": (config.rope(sizes["projection"]),) * layers,
        "windows": tuple(window if kind == "sliding_attention" else None for kind in kinds),
    }


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a Qwen 2 checkpoint."""
    return Architecture(**read_qwen(config), qkv_bias=True)


FAMILY = Family(read=read, rules=RULES, prefix="model.")

"""Tiny random models, for tests and for trying things out in seconds."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.models import decoder, families
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks.tokenizer import Tokenizer

_SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "mistral": {**_SIZES, "sliding_window": 4},
    "qwen2": {**_SIZES, "tie_word_embeddings": False},
    "qwen3": _SIZES,
    "gemma2": {
        **_SIZES,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {**_SIZES, "sliding_window": 4, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "gpt2": {"vocab_size": 101, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64},
    "gpt_neox": {
        **{key: value for key, value in _SIZES.items() if key not in ("num_key_value_heads", "head_dim")},
        "rotary_pct": 0.5,
    },
}
"""Model type -> a small Hugging Face config of it."""


def toy(family: str = "llama", seed: int = 0, tokenizer: Tokenizer | None = None, **overrides: Any) -> LanguageModel:
    """A tiny model with random weights.

    Args:
        family: Hugging Face model type, a key of `CONFIGS`.
        seed: Seed of the weights.
        tokenizer: Its tokenizer, if it shall have one.
        **overrides: Config keys to set.

    Returns:
        The model; float32, biases and norm weights random too, so that nothing hides behind a default.

    Raises:
        ValueError: There is no such family.

    Examples:
        >>> toy("gpt2").architecture.layers
        3
    """
    if family not in CONFIGS:
        raise ValueError(f"there is no toy {family!r}; the families are {', '.join(CONFIGS)}")
    config = {"model_type": family, **CONFIGS[family], **overrides}
    _, architecture = families.read_architecture(config, f"toy {family}")
    body = decoder.build(architecture, random_weights(architecture, seed))
    return LanguageModel(body, architecture, json.dumps(config, sort_keys=True), tokenizer, f"toy:{family}:{seed}")


def random_weights(architecture: Architecture, seed: int) -> dict[str, jax.Array]:
    """Random canonical weights: norms near 1 (or near 0 where an offset is added), biases small, matrices normal.

    Args:
        architecture: What the model is made of.
        seed: Seed.

    Returns:
        Weight name -> float32 array.
    """
    generator = np.random.default_rng(seed)
    weights = {}
    for name, sizes in architecture.weights().items():
        shape = tuple(sizes.values())
        values = generator.normal(size=shape).astype(np.float32)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "w":
            values = 1.0 - architecture.norm_offset + 0.1 * values
        elif leaf.startswith("b"):
            values = 0.1 * values
        elif leaf not in ("W_E", "W_U"):
            inputs = architecture.heads * architecture.projection if leaf == "W_O" else shape[-1]
            values = values / np.sqrt(inputs)
        weights[name] = jnp.asarray(values, jnp.float32)
    return weights

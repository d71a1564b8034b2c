"""Llama-like checkpoints: Llama, SmolLM2, Mistral; the key table is shared by Qwen and Gemma."""

from __future__ import annotations

from typing import Any

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.convert import by_heads, from_heads, plain
from jaxinterp.models.families import Family

_BLOCK = "model.layers.{layer}."
_TO = "blocks.{layer}."

COMMON_RULES = (
    plain("model.embed_tokens.weight", "W_E"),
    plain(f"{_BLOCK}input_layernorm.weight", f"{_TO}ln_attn.w"),
    by_heads(f"{_BLOCK}self_attn.q_proj.weight", f"{_TO}W_Q"),
    by_heads(f"{_BLOCK}self_attn.k_proj.weight", f"{_TO}W_K"),
    by_heads(f"{_BLOCK}self_attn.v_proj.weight", f"{_TO}W_V"),
    from_heads(f"{_BLOCK}self_attn.o_proj.weight", f"{_TO}W_O"),
    by_heads(f"{_BLOCK}self_attn.q_proj.bias", f"{_TO}b_Q"),
    by_heads(f"{_BLOCK}self_attn.k_proj.bias", f"{_TO}b_K"),
    by_heads(f"{_BLOCK}self_attn.v_proj.bias", f"{_TO}b_V"),
    plain(f"{_BLOCK}self_attn.o_proj.bias", f"{_TO}b_O"),
    plain(f"{_BLOCK}self_attn.q_norm.weight", f"{_TO}q_norm.w"),
    plain(f"{_BLOCK}self_attn.k_norm.weight", f"{_TO}k_norm.w"),
    plain(f"{_BLOCK}mlp.gate_proj.weight", f"{_TO}W_gate"),
    plain(f"{_BLOCK}mlp.up_proj.weight", f"{_TO}W_in"),
    plain(f"{_BLOCK}mlp.down_proj.weight", f"{_TO}W_out"),
    plain(f"{_BLOCK}mlp.gate_proj.bias", f"{_TO}b_gate"),
    plain(f"{_BLOCK}mlp.up_proj.bias", f"{_TO}b_in"),
    plain(f"{_BLOCK}mlp.down_proj.bias", f"{_TO}b_out"),
    plain("model.norm.weight", "ln_final.w"),
    plain("lm_head.weight", "W_U"),
)
"""All but the norms around the MLP, whose names differ between the families that share this layout."""

RULES = (*COMMON_RULES, plain(f"{_BLOCK}post_attention_layernorm.weight", f"{_TO}ln_mlp.w"))

GEMMA_RULES = (
    *COMMON_RULES,
    plain(f"{_BLOCK}post_attention_layernorm.weight", f"{_TO}ln_attn_post.w"),
    plain(f"{_BLOCK}pre_feedforward_layernorm.weight", f"{_TO}ln_mlp.w"),
    plain(f"{_BLOCK}post_feedforward_layernorm.weight", f"{_TO}ln_mlp_post.w"),
)


def read_sizes(config: ConfigReader, projection: int | None = None, kv_heads: int | None = None) -> dict[str, Any]:
    """The settings whose keys Llama, Qwen and Gemma share.

    Args:
        config: The config.
        projection: Width of one head if the config does not say; by default the embedding divided among the heads.
        kv_heads: Key-value heads if the config does not say; by default as many as query heads.

    Returns:
        Keyword arguments for `Architecture`.
    """
    embedding = config.number("hidden_size")
    heads = config.number("num_attention_heads")
    return {
        "family": "",
        "vocabulary": config.number("vocab_size"),
        "embedding": embedding,
        "layers": config.number("num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.number("num_key_value_heads", kv_heads or heads),
        "projection": config.number("head_dim", projection or embedding // heads),
        "neurons": config.number("intermediate_size"),
        "context": config.number("max_position_embeddings", 2048),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
    }


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a Llama or Mistral checkpoint."""
    mistral = config.get("model_type") == "mistral"
    sizes = read_sizes(config, kv_heads=8 if mistral else None)
    bias = config.flag("attention_bias", False)
    window = config.optional("sliding_window", 4096 if mistral else None)
    config.expect("rope_interleaved", False)
    return Architecture(
        **sizes,
        activation=config.activation("hidden_act", "silu"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
        tied=config.flag("tie_word_embeddings", False),
        attention_scale=sizes["projection"] ** -0.5,
        ropes=(config.rope(sizes["projection"]),) * sizes["layers"],
        windows=(window,) * sizes["layers"],
    )


FAMILY = Family(read=read, rules=RULES, prefix="model.")

"""GPT-2 checkpoints: learned positions, layer norms, one fused projection stored [inputs, outputs]."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.convert import Rule, plain, transposed
from jaxinterp.models.families import Family

_BLOCK = "transformer.h.{layer}."
_TO = "blocks.{layer}."
_QKV = tuple(f"{_TO}W_{name}" for name in "QKV")


def _split_weight(architecture: Architecture, stored: Any) -> tuple[Any, ...]:
    columns = stored.reshape(architecture.embedding, 3, architecture.heads, architecture.projection)
    return tuple(columns[:, part].transpose(1, 2, 0) for part in range(3))


def _join_weight(architecture: Architecture, *parts: Any) -> Any:
    return jnp.concatenate([part.transpose(2, 0, 1).reshape(architecture.embedding, -1) for part in parts], axis=1)


def _split_bias(architecture: Architecture, stored: Any) -> tuple[Any, ...]:
    return tuple(stored.reshape(3, architecture.heads, architecture.projection))


def _join_bias(_: Architecture, *parts: Any) -> Any:
    return jnp.concatenate([part.reshape(-1) for part in parts])


def _output(key: str, weight: str) -> Rule:
    def split(architecture: Architecture, stored: Any) -> tuple[Any, ...]:
        return (stored.T.reshape(-1, architecture.heads, architecture.projection),)

    return Rule(key, (weight,), split, lambda _, used: used.reshape(used.shape[0], -1).T)


RULES = (
    plain("transformer.wte.weight", "W_E"),
    plain("transformer.wpe.weight", "W_pos"),
    plain(f"{_BLOCK}ln_1.weight", f"{_TO}ln_attn.w"),
    plain(f"{_BLOCK}ln_1.bias", f"{_TO}ln_attn.b"),
    Rule(f"{_BLOCK}attn.c_attn.weight", _QKV, _split_weight, _join_weight),
    Rule(f"{_BLOCK}attn.c_attn.bias", tuple(f"{_TO}b_{name}" for name in "QKV"), _split_bias, _join_bias),
    _output(f"{_BLOCK}attn.c_proj.weight", f"{_TO}W_O"),
    plain(f"{_BLOCK}attn.c_proj.bias", f"{_TO}b_O"),
    plain(f"{_BLOCK}ln_2.weight", f"{_TO}ln_mlp.w"),
    plain(f"{_BLOCK}ln_2.bias", f"{_TO}ln_mlp.b"),
    transposed(f"{_BLOCK}mlp.c_fc.weight", f"{_TO}W_in"),
    plain(f"{_BLOCK}mlp.c_fc.bias", f"{_TO}b_in"),
    transposed(f"{_BLOCK}mlp.c_proj.weight", f"{_TO}W_out"),
    plain(f"{_BLOCK}mlp.c_proj.bias", f"{_TO}b_out"),
    plain("transformer.ln_f.weight", "ln_final.w"),
    plain("transformer.ln_f.bias", "ln_final.b"),
    plain("lm_head.weight", "W_U"),
)


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a GPT-2 checkpoint."""
    embedding, heads = config.number("n_embd"), config.number("n_head")
    config.expect("scale_attn_by_inverse_layer_idx", False)
    config.get("n_ctx")
    return Architecture(
        family="",
        vocabulary=config.number("vocab_size"),
        embedding=embedding,
        layers=config.number("n_layer"),
        heads=heads,
        kv_heads=heads,
        projection=embedding // heads,
        neurons=config.number("n_inner", 4 * embedding),
        context=config.number("n_positions", 1024),
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=config.activation("activation_function", "gelu_new"),
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied=config.flag("tie_word_embeddings", True),
        attention_scale=(embedding // heads) ** -0.5 if config.flag("scale_attn_weights", True) else 1.0,
    )


FAMILY = Family(read=read, rules=RULES, prefix="transformer.", ignored=r"\.attn\.(masked_)?bias$")

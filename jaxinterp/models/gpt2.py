"""GPT-2 checkpoints: learned positions, layer norms, one fused projection stored [inputs, outputs]."""

from __future__ import annotations

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.convert import PART, Rule, plain, transposed
from jaxinterp.models.families import Family

_BLOCK = "transformer.h.{layer}."
_TO = "blocks.{layer}."


def _fused(key: str, kind: str) -> Rule:
    """All queries, then all keys, then all values; inputs come first."""
    weights = tuple(f"{_TO}{kind}_{name}" for name in "QKV")
    return Rule(
        f"{_BLOCK}attn.c_attn.{key}",
        weights,
        lambda names: (*((name,) for name in names[2:]), (PART, *names[:2])),
    )


def _output(key: str, weight: str) -> Rule:
    """An output projection stored [heads * projection, embedding]."""
    return Rule(key, (weight,), lambda names: (names[1:], names[:1]))


RULES = (
    plain("transformer.wte.weight", "W_E"),
    plain("transformer.wpe.weight", "W_pos"),
    plain(f"{_BLOCK}ln_1.weight", f"{_TO}ln_attn.w"),
    plain(f"{_BLOCK}ln_1.bias", f"{_TO}ln_attn.b"),
    _fused("weight", "W"),
    _fused("bias", "b"),
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

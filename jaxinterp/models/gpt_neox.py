"""GPT-NeoX checkpoints (Pythia): parallel residual, partial rotary positions, projections fused by head."""

from __future__ import annotations

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.convert import PART, Rule, from_heads, plain
from jaxinterp.models.families import Family

_BLOCK = "gpt_neox.layers.{layer}."
_TO = "blocks.{layer}."


def _fused(key: str, kind: str) -> Rule:
    """Queries, keys and values of a head stand one after the other, head by head."""
    weights = tuple(f"{_TO}{kind}_{name}" for name in "QKV")
    return Rule(
        f"{_BLOCK}attention.query_key_value.{key}",
        weights,
        lambda names: ((names[0], PART, names[1]), *((name,) for name in names[2:])),
    )


RULES = (
    plain("gpt_neox.embed_in.weight", "W_E"),
    plain(f"{_BLOCK}input_layernorm.weight", f"{_TO}ln_attn.w"),
    plain(f"{_BLOCK}input_layernorm.bias", f"{_TO}ln_attn.b"),
    _fused("weight", "W"),
    _fused("bias", "b"),
    from_heads(f"{_BLOCK}attention.dense.weight", f"{_TO}W_O"),
    plain(f"{_BLOCK}attention.dense.bias", f"{_TO}b_O"),
    plain(f"{_BLOCK}post_attention_layernorm.weight", f"{_TO}ln_mlp.w"),
    plain(f"{_BLOCK}post_attention_layernorm.bias", f"{_TO}ln_mlp.b"),
    plain(f"{_BLOCK}mlp.dense_h_to_4h.weight", f"{_TO}W_in"),
    plain(f"{_BLOCK}mlp.dense_h_to_4h.bias", f"{_TO}b_in"),
    plain(f"{_BLOCK}mlp.dense_4h_to_h.weight", f"{_TO}W_out"),
    plain(f"{_BLOCK}mlp.dense_4h_to_h.bias", f"{_TO}b_out"),
    plain("gpt_neox.final_layer_norm.weight", "ln_final.w"),
    plain("gpt_neox.final_layer_norm.bias", "ln_final.b"),
    plain("lm_head.weight", "W_U"),
)


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a GPT-NeoX checkpoint."""
    embedding, heads = config.number("hidden_size"), config.number("num_attention_heads")
    layers, projection = config.number("num_hidden_layers"), embedding // heads
    share = config.get("rotary_pct", 0.25)
    base = float(config.get("rotary_emb_base", 10000.0))
    rope = Rope(theta=base, rotary=int(projection * share))
    if config.get("rope_parameters") or config.get("rope_scaling"):
        rope = config.rope(projection, theta=base)
    bias = config.flag("attention_bias", True)
    return Architecture(
        family="",
        vocabulary=config.number("vocab_size"),
        embedding=embedding,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        projection=projection,
        neurons=config.number("intermediate_size"),
        context=config.number("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        activation=config.activation("hidden_act", "gelu"),
        gated=False,
        parallel=config.flag("use_parallel_residual", True),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        tied=config.flag("tie_word_embeddings", False),
        attention_scale=projection**-0.5,
        ropes=(rope,) * layers,
    )


FAMILY = Family(
    read=read,
    rules=RULES,
    prefix="gpt_neox.",
    ignored=r"(\.attention\.(masked_)?bias|rotary_emb\.inv_freq)$",
    aliases={"embed_out.weight": "lm_head.weight"},
)

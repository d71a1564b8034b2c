"""Tiny random models of every family as transformers builds them: what our own are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

EMBEDDING, LAYERS, HEADS, NEURONS, VOCABULARY, CONTEXT = 32, 3, 4, 48, 101, 64

_SIZES: dict[str, Any] = {
    "hidden_size": EMBEDDING,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
_GEMMA: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "sliding_window": 6,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"


def tiny_configs() -> list[tuple[str, transformers.PreTrainedConfig]]:
    """Configurations that between them set every switch a family has.

    Returns:
        Pairs (name starting with our family's name, configuration).
    """
    return [
        ("llama-gqa-untied", _llama(num_key_value_heads=2, tie_word_embeddings=False)),
        ("llama-mqa-tied-head-dim", _llama(num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)),
        ("llama-mha-biases", _llama(attention_bias=True, mlp_bias=True, vocab_size=97)),
        ("llama-llama3-rope", _llama(rope_parameters=_LLAMA3, num_key_value_heads=2)),
        ("llama-linear-rope", _llama(rope_parameters=_LINEAR, rms_norm_eps=1e-3)),
        ("llama-mistral-window", _mistral(sliding_window=7)),
        ("llama-mistral-no-window", _mistral(sliding_window=None, head_dim=16)),
        ("qwen2-gqa-tied", _qwen2(num_key_value_heads=2, tie_word_embeddings=True)),
        ("qwen2-mha-untied-theta", _qwen2(rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
        ("qwen2-windows", _qwen2(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
        ("qwen3-gqa-tied", _qwen3(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
        ("qwen3-biases-untied", _qwen3(attention_bias=True, head_dim=8)),
        ("gemma2-caps-windows", _gemma2(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
        ("gemma2-no-caps-bias", _gemma2(attention_bias=True, num_key_value_heads=1, query_pre_attn_scalar=8)),
        ("gemma3-mixed-ropes", _gemma3()),
        ("gemma3-linear-global-rope", _gemma3(global_rope=_LINEAR | {"rope_theta": 1e6}, final_logit_softcapping=3.0)),
        ("gemma3-mqa-untied", _gemma3(num_key_value_heads=1, tie_word_embeddings=False, vocab_size=97)),
        ("gpt2-tied", _gpt2()),
        ("gpt2-untied-inner-relu", _gpt2(tie_word_embeddings=False, n_inner=40, activation_function="relu")),
        ("gpt2-unscaled", _gpt2(scale_attn_weights=False, layer_norm_epsilon=1e-3)),
        ("gpt_neox-quarter-rotary-parallel", _gpt_neox(rotary_pct=0.25)),
        ("gpt_neox-half-rotary-serial", _gpt_neox(rotary_pct=0.5, use_parallel_residual=False)),
        ("gpt_neox-full-rotary-tied", _gpt_neox(rotary_pct=1.0, tie_word_embeddings=True, layer_norm_eps=1e-3)),
        ("gpt_neox-no-attention-bias", _gpt_neox(rotary_pct=0.25, attention_bias=False, hidden_act="gelu_new")),
    ]


def build(config: transformers.PreTrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """Makes a float32 model with every parameter random, so that none can be dropped unseen.

    Args:
        config: Its configuration.
        seed: Of the parameters. Biases are N(0, 0.1), norm weights 1 + N(0, 0.1) (Gemma: N(0, 0.1)).

    Returns:
        The model, with eager attention, for evaluation.
    """
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    identity = 0.0 if config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(identity + 0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model.eval()


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Writes a model as a Hugging Face folder with safetensors.

    Args:
        model: What `build` returned.
        folder: Where to; made if missing.

    Returns:
        `folder`.
    """
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def logits(model: transformers.PreTrainedModel, tokens: Any) -> Any:
    """Logits of unpadded texts.

    Args:
        model: What `build` returned.
        tokens: Token ids, `[batch, seq]`.

    Returns:
        numpy float32 `[batch, seq, vocabulary]`.
    """
    with torch.no_grad():
        return model(torch.as_tensor(tokens)).logits.numpy()


def edit_config(folder: Path, remove: tuple[str, ...] = (), **values: Any) -> None:
    """Changes keys of a saved model's `config.json` in place.

    Args:
        folder: What `save` returned.
        remove: Keys to take out.
        **values: Keys to set.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove} | values))


def _config(kind: str, settings: dict[str, Any]) -> transformers.PreTrainedConfig:
    return transformers.AutoConfig.for_model(kind, **settings)


def _llama(**changes: Any) -> transformers.PreTrainedConfig:
    return _config("llama", _SIZES | changes)


def _mistral(**changes: Any) -> transformers.PreTrainedConfig:
    return _config("mistral", _SIZES | {"num_key_value_heads": 2} | changes)


def _qwen2(**changes: Any) -> transformers.PreTrainedConfig:
    return _config("qwen2", _SIZES | {"num_key_value_heads": HEADS} | changes)


def _qwen3(**changes: Any) -> transformers.PreTrainedConfig:
    return _config("qwen3", _SIZES | {"num_key_value_heads": HEADS} | changes)


def _gemma2(**changes: Any) -> transformers.PreTrainedConfig:
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    return _config("gemma2", _SIZES | _GEMMA | caps | changes)


def _gemma3(global_rope: dict[str, Any] | None = None, **changes: Any) -> transformers.PreTrainedConfig:
    ropes = {
        _SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        _FULL: global_rope or {"rope_type": "default", "rope_theta": 1e6},
    }
    kinds = {"layer_types": [_SLIDING, _FULL, _SLIDING], "rope_parameters": ropes}
    return _config("gemma3_text", _SIZES | _GEMMA | kinds | changes)


def _gpt2(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {"n_embd": EMBEDDING, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
    return _config("gpt2", sizes | {"bos_token_id": 0, "eos_token_id": 0} | changes)


def _gpt_neox(rotary_pct: float, **changes: Any) -> transformers.PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": rotary_pct}
    heads = {"num_attention_heads": 2}  # of 16 dimensions, so that a quarter of one still has two pairs to rotate
    return _config("gpt_neox", _SIZES | heads | {"rope_parameters": rope} | changes)

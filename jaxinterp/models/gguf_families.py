"""What each GGUF architecture calls its settings and tensors, as Hugging Face names.

One entry of `FAMILIES` per architecture. Keys and tensors that have no place are refused, all at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, precomputed by llama.cpp's converter for Llama 3.1 and later."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Family:
    """One GGUF architecture.

    Attributes:
        names: GGUF tensor name without its suffix -> Hugging Face's; `{}` stands for the layer.
        config: Builds the Hugging Face configuration from the settings.
        interleaved: Rotary pairs of query and key rows are interleaved in the file (llama).
        norms_plus_one: Norm weights are stored with one added (Gemma).
        transposed: The matrices of Hugging Face's checkpoint are `[in, out]` (GPT-2).
    """

    names: Mapping[str, str]
    config: Callable[[_Settings], dict[str, Any]]
    interleaved: bool = False
    norms_plus_one: bool = False
    transposed: bool = False


class _Settings:
    """The metadata under the architecture's prefix; remembers what was asked for."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], shapes: Shapes, factors: np.ndarray | None) -> None:
        self.path, self.metadata, self.shapes, self.factors = path, metadata, shapes, factors
        self.architecture = metadata["general.architecture"]
        self.understood = {f"{self.architecture}.tensor_data_layout"}

    def get(self, key: str, default: Any = None) -> Any:
        key = f"{self.architecture}.{key}"
        self.understood.add(key)
        return self.metadata.get(key, default)

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.path} lacks the key '{self.architecture}.{key}': convert the model again")
        return value

    def rows(self, tensor: str) -> int:
        if tensor not in self.shapes:
            raise ValueError(f"{self.path} lacks the tensor {tensor!r}: convert the model again")
        return self.shapes[tensor][0]

    def layers(self) -> int:
        present = {name.split(".")[1] for name in self.shapes if name.startswith("blk.")}
        if self["block_count"] != len(present):
            raise ValueError(
                f"{self.path} says '{self.architecture}.block_count' is {self['block_count']}, but it has "
                f"{len(present)} blocks: fetch it again"
            )
        return len(present)

    def tokens(self) -> dict[str, Any]:
        """Special token ids; the end of a turn, where it differs, also ends a text."""
        ids = {name: self.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "padding")}
        ends = list(dict.fromkeys(end for end in (ids["eos"], ids["eot"]) if end is not None))
        eos = ends if len(ends) > 1 else ends[0] if ends else None
        return {"bos_token_id": ids["bos"], "eos_token_id": eos, "pad_token_id": ids["padding"]}


def _decoder(settings: _Settings, model_type: str, architecture: str) -> dict[str, Any]:
    """What every family with rotary positions and a gated MLP has."""
    heads, rows = settings["attention.head_count"], settings.rows("blk.0.attn_q.weight")
    if heads <= 0 or rows % heads:
        raise ValueError(
            f"{settings.path} says it has {heads} heads, but its query matrix has {rows} rows: fetch it again"
        )
    head_dim = rows // heads
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if settings.get(key, head_dim) != head_dim:
            raise ValueError(
                f"{settings.path} says '{settings.architecture}.{key}' is {settings.get(key)}, but its query matrix "
                f"makes heads of {head_dim}: such heads are not supported, use another model"
            )
    settings.understood.add(f"{settings.architecture}.vocab_size")
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": settings.rows("token_embd.weight"),
        "hidden_size": settings["embedding_length"],
        "intermediate_size": settings["feed_forward_length"],
        "num_hidden_layers": settings.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": settings["context_length"],
        "rms_norm_eps": settings["attention.layer_norm_rms_epsilon"],
        "rope_theta": settings.get("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(settings),
        "tie_word_embeddings": "output.weight" not in settings.shapes,
        **settings.tokens(),
    }


def _rope_scaling(settings: _Settings) -> dict[str, Any] | None:
    kind = settings.get("rope.scaling.type", "none")
    factor = settings.get("rope.scaling.factor", 1.0)
    for key in ("original_context_length", "finetuned"):
        settings.understood.add(f"{settings.architecture}.rope.scaling.{key}")
    if settings.factors is not None:
        return _llama3_scaling(settings, settings.factors)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise ValueError(f"{settings.path} uses rotary scaling {kind!r}, which is not supported: use another model")
    return None


def _llama3_scaling(settings: _Settings, factors: np.ndarray) -> dict[str, Any]:
    r"""The Llama 3 rule whose divisors `factors` are.

    The file holds, for every rotary frequency, 1 (short wavelengths), the rule's factor (long ones) or a blend;
    the rule is accepted when it gives the file's numbers back.
    """
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": round(float(factors.max()), 3)}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    exponents = np.arange(len(factors)) / len(factors)
    turns = 8192 * settings.get("rope.freq_base", 10000.0) ** -exponents / (2 * math.pi)
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    if not np.allclose(factors, 1 / ((1 - smooth) / scaling["factor"] + smooth), rtol=1e-4):
        raise ValueError(
            f"{settings.path}: the divisors in {ROPE_FACTORS!r} are not those of Llama 3's rule: load the safetensors "
            "of this model instead"
        )
    return scaling


def _llama(settings: _Settings) -> dict[str, Any]:
    biases = {
        "attention_bias": "blk.0.attn_q.bias" in settings.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in settings.shapes,
    }
    return _decoder(settings, "llama", "LlamaForCausalLM") | {"hidden_act": "silu"} | biases


def _qwen2(settings: _Settings) -> dict[str, Any]:
    return _decoder(settings, "qwen2", "Qwen2ForCausalLM") | {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(settings: _Settings) -> dict[str, Any]:
    config = _decoder(settings, "qwen3", "Qwen3ForCausalLM")
    return config | {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def _gemma(settings: _Settings, config: dict[str, Any], period: int, largest: int) -> dict[str, Any]:
    """What both Gemmas have: every `period`-th layer sees everything; the `largest` scales scores by its width."""
    layers = config["num_hidden_layers"]
    pattern = settings.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, int):
        pattern = [bool((layer + 1) % pattern) for layer in range(layers)]
    width = config["hidden_size"] // config["num_attention_heads"] if layers == largest else config["head_dim"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": width,
        "sliding_window": settings["attention.sliding_window"],
        "layer_types": ["sliding_attention" if local else "full_attention" for local in pattern[:layers]],
    }


def _gemma2(settings: _Settings) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": settings.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": settings.get("final_logit_softcapping", 30.0),
    }
    return _gemma(settings, _decoder(settings, "gemma2", "Gemma2ForCausalLM"), period=2, largest=46) | caps


def _gemma3(settings: _Settings) -> dict[str, Any]:
    config = _gemma(settings, _decoder(settings, "gemma3_text", "Gemma3ForCausalLM"), period=6, largest=62)
    return config | {
        "rope_local_base_freq": settings.get("rope.freq_base_swa", 10000.0),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": settings.get("final_logit_softcapping"),
    }


def _gpt2(settings: _Settings) -> dict[str, Any]:
    settings.understood |= {"gpt2.vocab_size", "gpt2.context_length"}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": settings.rows("token_embd.weight"),
        "n_positions": settings.rows("position_embd.weight"),
        "n_embd": settings["embedding_length"],
        "n_layer": settings.layers(),
        "n_head": settings["attention.head_count"],
        "n_inner": settings["feed_forward_length"],
        "layer_norm_epsilon": settings["attention.layer_norm_epsilon"],
        "activation_function": "gelu_new",
        "tie_word_embeddings": "output.weight" not in settings.shapes,
        **settings.tokens(),
    }


_ATTENTION = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_PRE_NORM = _ATTENTION | {"blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm"}
_QK_NORM = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_BOTH_NORMS = _ATTENTION | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}

FAMILIES: dict[str, Family] = {
    "llama": Family(_PRE_NORM, _llama, interleaved=True),
    "qwen2": Family(_PRE_NORM, _qwen2),
    "qwen3": Family(_PRE_NORM | _QK_NORM, _qwen3),
    "gemma2": Family(_BOTH_NORMS, _gemma2, norms_plus_one=True),
    "gemma3": Family(_BOTH_NORMS | _QK_NORM, _gemma3, norms_plus_one=True),
    "gpt2": Family(_GPT2, _gpt2, transposed=True),
}
"""GGUF architecture -> its names and settings."""


def config(path: Path, metadata: Mapping[str, Any], shapes: Shapes, factors: np.ndarray | None) -> dict[str, Any]:
    """Builds the Hugging Face configuration of a GGUF file.

    Args:
        path: The file, for messages.
        metadata: Its key-value pairs.
        shapes: Its tensors' names and shapes.
        factors: The tensor `ROPE_FACTORS`, if it has one.

    Returns:
        The keys of a `config.json`.

    Raises:
        ValueError: If the architecture is unknown, or a key is missing or not understood.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in FAMILIES:
        raise ValueError(
            f"{path} has the architecture {architecture!r}, but only {', '.join(FAMILIES)} can be read as GGUF"
        )
    settings = _Settings(path, metadata, shapes, factors)
    built = FAMILIES[architecture].config(settings)
    unknown = [key for key in metadata if key.startswith(f"{architecture}.") and key not in settings.understood]
    if unknown:
        raise ValueError(f"{path} has settings that are not understood, so it cannot be loaded faithfully: {unknown}")
    return built


def names(path: Path, metadata: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
    """Maps Hugging Face tensor names to those of a GGUF file.

    Args:
        path: The file, for messages.
        metadata: Its key-value pairs.
        shapes: Its tensors' names and shapes.

    Returns:
        Hugging Face name -> name in the file.

    Raises:
        ValueError: If a tensor has no place in the architecture.
    """
    architecture = metadata["general.architecture"]
    table = FAMILIES[architecture].names
    mapped: dict[str, str] = {}
    unknown: list[str] = []
    for name in shapes:
        stem, _, suffix = name.rpartition(".")
        layer = re.match(r"blk\.(\d+)\.", stem)
        place = table.get(re.sub(r"^blk\.\d+\.", "blk.{}.", stem))
        if place is not None and suffix in ("weight", "bias"):
            mapped[f"{place.format(layer[1]) if layer else place}.{suffix}"] = name
        elif name != ROPE_FACTORS or not FAMILIES[architecture].interleaved:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{path} has tensors that have no place in a {architecture} model: {', '.join(unknown)}")
    return mapped

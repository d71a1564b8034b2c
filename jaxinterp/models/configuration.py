"""Reading a Hugging Face `config.json`: every key is either understood or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinterp.models.architecture import Activation, Rope

_WITHOUT_EFFECT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "embd_pdrop",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "reorder_and_upcast_attn",
        "repetition_penalty",
        "resid_pdrop",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)
"""Keys that say nothing about what an unmodified forward pass computes."""

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class ConfigReader:
    """A config whose keys are ticked off as they are read.

    Args:
        config: Contents of `config.json`.
        where: The file, for error sentences.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; a missing or null one gives `default`."""
        self._read.add(key)
        value = self.config.get(key)
        return default if value is None else value

    def optional(self, key: str, default: Any) -> Any:
        """The value of a key for which null means "none", and only a missing one gives `default`."""
        self._read.add(key)
        return self.config.get(key, default)

    def number(self, key: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            ValueError: The key is missing or holds something else.
        """
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            found = "missing" if value is None else f"{value!r}"
            raise ValueError(f"{self.where}: {key} is {found}; it must be a positive whole number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: {key} is {value!r}; it must be true or false")
        return value

    def activation(self, key: str, default: str) -> Activation:
        """The MLP's nonlinearity."""
        name = self.get(key, default)
        if name not in _ACTIVATIONS:
            raise ValueError(f"{self.where}: {key} {name!r} is not one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuses a setting whose other values are not implemented."""
        value = self.config.get(key, allowed[0])
        self._read.add(key)
        if value not in allowed:
            raise ValueError(f"{self.where}: {key} = {value!r} is not supported; only {allowed[0]!r} is")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id, a list of them, or none."""
        value = self.get(key)
        if value is None:
            return ()
        return tuple(value) if isinstance(value, Sequence) else (value,)

    def refuse_rest(self) -> None:
        """Refuses the config if it has keys that nothing has read.

        Raises:
            ValueError: Naming all of them.
        """
        unknown = sorted(set(self.config) - self._read - _WITHOUT_EFFECT)
        if unknown:
            raise ValueError(
                f"{self.where}: unknown config key{'s' * (len(unknown) > 1)} {', '.join(unknown)}; "
                "they may change what the model computes, so remove them only if you know that they do not"
            )

    def rope(self, projection: int, kind: str | None = None, theta: float = 10000.0) -> Rope:
        """Rotary positions, from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`.

        Args:
            projection: Width of one head.
            kind: Layer type, for configs that keep separate parameters for each.
            theta: Base if the config names none.

        Returns:
            The rotary positions of such a block.

        Raises:
            ValueError: A scaling that is not implemented, or an unknown parameter.
        """
        old_theta = self.get("rope_theta", theta)
        old = dict(self.get("rope_scaling") or {})
        parameters = dict(self.get("rope_parameters") or old)
        if kind is not None and isinstance(parameters.get(kind), Mapping):
            parameters = dict(parameters[kind])
        name = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
        parameters.pop("type", None)
        base = float(parameters.pop("rope_theta", old_theta))
        share = parameters.pop("partial_rotary_factor", None)
        share = self.get("partial_rotary_factor", 1.0) if share is None else share
        settings: dict[str, Any] = {}
        if name == "linear":
            settings = {"scaling": "linear", "factor": float(parameters.pop("factor"))}
        elif name == "llama3":
            settings = {
                "scaling": "llama3",
                "factor": float(parameters.pop("factor")),
                "low_frequency_factor": float(parameters.pop("low_freq_factor")),
                "high_frequency_factor": float(parameters.pop("high_freq_factor")),
                "original_context": int(parameters.pop("original_max_position_embeddings")),
            }
        elif name != "default":
            raise ValueError(f"{self.where}: rope type {name!r} is not supported; only default, linear and llama3 are")
        if parameters:
            raise ValueError(f"{self.where}: unknown rope parameters {', '.join(sorted(parameters))}")
        return Rope(theta=base, rotary=int(projection * float(share)), **settings)

    def layer_types(self, layers: int, default: Sequence[str]) -> list[str]:
        """Kind of attention in every block."""
        kinds = list(self.get("layer_types", default))
        if len(kinds) != layers:
            raise ValueError(f"{self.where}: layer_types has {len(kinds)} entries for {layers} layers")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise ValueError(f"{self.where}: layer type {kind!r} is not supported")
        return kinds

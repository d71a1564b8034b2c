"""The families of models, and how a checkpoint finds its own."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.convert import Rule

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
}
"""Hugging Face `model_type` -> the module of `jaxinterp.models` that reads it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to a family of checkpoints.

    Attributes:
        read: Config -> architecture.
        rules: The key table.
        prefix: What the names of all tensors but the unembedding begin with; older checkpoints may lack it.
        ignored: Pattern of stored tensors that carry no weight.
        aliases: Older tensor names -> the names in the table.
    """

    read: Callable[[ConfigReader], Architecture]
    rules: tuple[Rule, ...]
    prefix: str
    ignored: str = r"rotary_emb\.inv_freq$"
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def renaming(self, keys: list[str], architecture: Architecture) -> Callable[[str], str | None]:
        """How stored names map to the table's.

        Args:
            keys: All stored names.
            architecture: What the model is made of.

        Returns:
            Stored name -> name in the table, or `None` to leave the tensor aside.
        """
        prefixed = any(key.startswith(self.prefix) for key in keys)
        unembedding = {"lm_head.weight", *self.aliases}

        def rename(key: str) -> str | None:
            if re.search(self.ignored, key):
                return None
            if key in unembedding:
                return None if architecture.tied else self.aliases.get(key, key)
            return key if prefixed else self.prefix + key

        return rename


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of a checkpoint.

    Args:
        config: Contents of `config.json`.
        where: The file, for the error sentence.

    Returns:
        The family.

    Raises:
        ValueError: The architecture is unknown.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{where}: model_type {kind!r} is not supported; the families are {', '.join(FAMILIES)}")
    return importlib.import_module(f"jaxinterp.models.{FAMILIES[kind]}").FAMILY


def read_architecture(config: Mapping[str, Any], where: str) -> tuple[Family, Architecture]:
    """Reads a config.

    Args:
        config: Contents of `config.json`.
        where: The file, for error sentences.

    Returns:
        The family, and what the model is made of.

    Raises:
        ValueError: Unknown architecture, unknown keys, or unsupported settings.
    """
    family = find_family(config, where)
    reader = ConfigReader(config, where)
    architecture = family.read(reader)
    bos = reader.token_ids("bos_token_id")
    reader.refuse_rest()
    named = dataclasses.replace(
        architecture, bos=bos[0] if bos else None, eos=reader.token_ids("eos_token_id"), family=config["model_type"]
    )
    return family, named

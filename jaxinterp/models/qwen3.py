"""Qwen 3 checkpoints: Qwen 2's layout with normalised queries and keys instead of biases."""

from __future__ import annotations

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.configuration import ConfigReader
from jaxinterp.models.families import Family
from jaxinterp.models.llama import RULES
from jaxinterp.models.qwen2 import read_qwen


def read(config: ConfigReader) -> Architecture:
    """Reads the config of a Qwen 3 checkpoint."""
    bias = config.flag("attention_bias", False)
    return Architecture(**read_qwen(config, projection=128), qk_norm=True, qkv_bias=bias, output_bias=bias)


FAMILY = Family(read=read, rules=RULES, prefix="model.")

"""Low-rank edits on disk, in the layout of the PEFT library: `adapter_model.safetensors` and `adapter_config.json`."""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxinterp import artefacts
from jaxinterp.interventions.lora import Factors, add_factors, require_low_rank
from jaxinterp.interventions.lora_layout import is_transposed, join_terms, matrix_rules, split_term, stored_shape
from jaxinterp.models import families
from jaxinterp.models.checkpoint import read_tensors
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.low_rank import LowRank

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_ENDINGS = {"A": ".lora_A.weight", "B": ".lora_B.weight"}

_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
"""Settings that change nothing once an adapter is trained; where it acts is what its tensors are called."""

_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to draw the first numbers that leave the base model's weights alone."""


def save_lora(model: LanguageModel, folder: str | Path) -> None:
    """Writes the low-rank edits of a model as an adapter that PEFT reads too.

    Args:
        model: A model with such edits; its weights and its other edits are not written.
        folder: Where to; an adapter that it holds is replaced.

    Raises:
        ValueError: There are no such edits, a weight has several, or the folder holds something else.
    """
    found, architecture = require_low_rank(model), model.architecture
    stacked = [name for name, weight in found.items() if isinstance(weight.base, LowRank)]
    if stacked:
        raise ValueError(f"{stacked[0]} has several low-rank edits; save each before the next is made, or merge them")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _CONFIG).exists():
        raise ValueError(f"{folder} is not empty and holds no adapter; choose another folder")
    rules = matrix_rules(_find_family(model).rules, architecture)
    terms = {name: _factors_of(weight) for name, weight in found.items()}
    stored = {
        module: join_terms(rule, architecture, terms)
        for module, rule in rules.items()
        if any(name in terms for name in rule.weights)
    }
    config = _config(model, stored, any(is_transposed(rules[module], architecture) for module in stored))
    tensors = {
        f"{_PREFIX}{module}{_ENDINGS[part]}": array
        for module, term in stored.items()
        for part, array in (("A", term.down), ("B", term.up))
    }
    folder.mkdir(parents=True, exist_ok=True)
    with artefacts.replacing(folder / _WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    artefacts.write_json(config, folder / _CONFIG)


def load_lora(model: LanguageModel, folder: str | Path, any_base: bool = False) -> LanguageModel:
    """Puts a saved adapter, by `ji.save_lora` or PEFT, beside the weights of its base model.

    Args:
        model: The model; it stays as it is.
        folder: With `adapter_config.json` and `adapter_model.safetensors`.
        any_base: Whether the adapter may name another base model than this one, as when a model of the hub was loaded
            from a folder.

    Returns:
        The edited model.

    Raises:
        ValueError: The files are not what they should be, hold more than low-rank edits of block matrices, or belong to
            another base model.
    """
    folder = Path(folder)
    config = _read_config(folder / _CONFIG)
    named, own = config.get("base_model_name_or_path"), _base(model)[0]
    if named and named != own and not any_base:
        raise ValueError(
            f"{folder} is an adapter of {named}, but this model is {own}; load that one, or pass any_base=True if the "
            "weights are the same"
        )
    return add_factors(model, _read_factors(model, folder, config))


def _read_factors(model: LanguageModel, folder: Path, config: Mapping[str, Any]) -> dict[str, Factors]:
    if not (folder / _WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {_WEIGHTS}; pickled adapters are not read, save it as safetensors")
    found: dict[str, dict[str, np.ndarray]] = {}
    problems = []
    for key, array in read_tensors(folder / _WEIGHTS).items():
        part = next((part for part, ending in _ENDINGS.items() if key.endswith(ending)), None)
        if part is None or not key.startswith(_PREFIX):
            problems.append(f"{key} is no factor of a low-rank edit")
        else:
            found.setdefault(key.removeprefix(_PREFIX).removesuffix(_ENDINGS[part]), {})[part] = array
    family, architecture = _find_family(model), model.architecture
    rules = matrix_rules(family.rules, architecture)
    rename = family.renaming([f"{module}.weight" for module in found], architecture)
    factors: dict[str, Factors] = {}
    for module, parts in found.items():
        rule = rules.get((rename(f"{module}.weight") or "").removesuffix(".weight"))
        rank = _setting(module, config, "rank_pattern", "r")
        outs, ins = (0, 0) if rule is None else stored_shape(rule, architecture)
        wrong = _misfits(module, parts, {"A": (rank, ins), "B": (outs, rank)})
        if rule is None or wrong:
            problems += wrong if rule is not None else [f"the model has no block matrix {module}"]
            continue
        alpha = _setting(module, config, "alpha_pattern", "lora_alpha")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        factors |= split_term(rule, architecture, Factors(parts["A"], parts["B"], scale))
    if problems or not factors:
        shown = "; ".join(problems[:6]) or "it holds no tensors"
        raise ValueError(f"{folder / _WEIGHTS} does not fit {model.source}: {shown}; load the base model that it is of")
    return factors


def _misfits(module: str, parts: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, int]]) -> list[str]:
    return [
        f"lora_{part} of {module} is missing"
        if part not in parts
        else f"lora_{part} of {module} has shape {list(parts[part].shape)} instead of {list(shape)}"
        for part, shape in wanted.items()
        if part not in parts or parts[part].shape != shape
    ]


def _config(model: LanguageModel, stored: Mapping[str, Factors], transposed: bool) -> dict[str, Any]:
    """The settings that PEFT needs: the commonest rank and alpha, and which modules differ."""
    settings = {module: (len(term.down), round(term.scale * len(term.down), 6)) for module, term in stored.items()}
    rank, alpha = collections.Counter(settings.values()).most_common(1)[0][0]
    kinds = collections.Counter(_kind(module) for module in stored)
    everywhere = set(kinds.values()) == {model.architecture.layers}
    name, revision = _base(model)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(kinds) if everywhere else sorted(stored),
        "rank_pattern": {module: own for module, (own, _) in settings.items() if own != rank},
        "alpha_pattern": {module: own for module, (_, own) in settings.items() if own != alpha},
    }


def _read_config(file: Path) -> dict[str, Any]:
    config = artefacts.read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{file} is not the config of a LoRA adapter; its peft_type must be LORA")
    patterns = {key: config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    if not all(isinstance(pattern, dict) for pattern in patterns.values()):
        raise ValueError(f"{file}: rank_pattern and alpha_pattern must map modules to numbers")
    problems = [key for key, value in config.items() if value and key not in _WITHOUT_EFFECT | _READ]
    problems += ["bias"] if config.get("bias", "none") != "none" else []
    problems += ["init_lora_weights"] if config.get("init_lora_weights") not in _PLAIN_STARTS else []
    if problems:
        shown = ", ".join(f"{key} = {config[key]!r}" for key in problems)
        raise ValueError(f"{file}: {shown} is not supported; merge the adapter with PEFT and load the merged model")
    ranks = [config.get("r"), *patterns["rank_pattern"].values()]
    alphas = [config.get("lora_alpha"), *patterns["alpha_pattern"].values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise ValueError(f"{file}: ranks must be whole numbers from 1 on, here they are {ranks}")
    if not all(isinstance(alpha, int | float) and math.isfinite(alpha) for alpha in alphas):
        raise ValueError(f"{file}: alphas must be numbers, here they are {alphas}")
    unusual = [key for pattern in patterns.values() for key in pattern if not re.fullmatch(r"\^?[\w.]+", key)]
    if unusual:
        raise ValueError(f"{file}: the pattern {unusual[0]!r} is not supported; write the modules' names instead")
    return config | patterns


def _setting(module: str, config: Mapping[str, Any], pattern: str, default: str) -> Any:
    for key, value in config[pattern].items():
        name = key.removeprefix("^")
        if module == name or (name == key and module.endswith(f".{name}")):
            return value
    return config[default]


def _factors_of(weight: LowRank) -> Factors:
    down, up, scale = (np.asarray(array.data_array) for array in (weight.down, weight.up, weight.scale))
    return Factors(down, up, float(scale))


def _find_family(model: LanguageModel) -> families.Family:
    return families.find_family(json.loads(model.config), model.source)


def _base(model: LanguageModel) -> tuple[str, str | None]:
    """What PEFT calls the model, and its revision on the hub."""
    if not model.source.startswith("hf:"):
        return model.source, None
    name, _, revision = model.source.removeprefix("hf:").partition("@")
    return name, revision or None


def _kind(module: str) -> str:
    """A module's name without its block."""
    return re.split(r"\.\d+\.", module, maxsplit=1)[-1]

"""Models without numbers: the whole tree of an architecture, with a shape where each weight would be.

Edits and reads attach to such a tree as to any other, and `jax.eval_shape` runs it. So a `config.json` of a few lines
says what a model of any size asks for, on a machine that could not hold it.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from jaxinterp.models import decoder, families
from jaxinterp.models.language_model import LanguageModel

_PREFIX = "shape:"


def names() -> list[str]:
    """Names of the architectures that are shipped with the package, as in `shape:qwen2.5-3b`."""
    return sorted(file.stem for file in _shipped().glob("*.json"))


def load_shapes(source: str | Path, dtype: Any = "float32") -> LanguageModel:
    """Builds the tree of a model from its config alone.

    Args:
        source: `shape:name` for one of `names()`, a Hugging Face `config.json`, or a folder that holds one.
        dtype: Dtype of every weight.

    Returns:
        A model whose weights are `jax.ShapeDtypeStruct`, without a tokenizer. It can be edited and looked at; it runs
        under `jax.eval_shape` only.

    Raises:
        ValueError: There is no such config, or it is not one of a family that is read here.

    Examples:
        >>> model = load_shapes("shape:r1-distill-qwen-14b", "bfloat16")
        >>> model.weights()["blocks.47.W_gate"]
        ShapeDtypeStruct(shape=(13824, 5120), dtype=bfloat16)
    """
    asked = decoder.check_dtype(dtype)
    path = _find(str(source))
    config = _read(path)
    _, architecture = families.read_architecture(config, str(path))
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(sizes.values()), asked) for name, sizes in architecture.weights().items()
    }
    body = jax.eval_shape(functools.partial(decoder.build, architecture), shapes)
    return LanguageModel(body, architecture, json.dumps(config, sort_keys=True), None, str(source))


def _find(source: str) -> Path:
    if source.startswith(_PREFIX):
        name = source.removeprefix(_PREFIX)
        if name not in names():
            known = ", ".join(names())
            raise ValueError(f"there is no architecture {name!r}: there are {known}, or give the path of a config.json")
        return _shipped() / f"{name}.json"
    path = Path(source).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}: give a config.json, a folder with one, or {_PREFIX}NAME with one of the names "
            f"{', '.join(names())}"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): give the config.json of a model") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not the keys of a model's config.json")
    return config


def _shipped() -> Path:
    return Path(str(resources.files("jaxinterp") / "data" / "architectures"))

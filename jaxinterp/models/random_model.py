"""Models of realistic shapes with random weights, for timing where no trained weights can be had."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxinterp.models import families
from jaxinterp.models.checkpoint import INDEX
from jaxinterp.models.convert import expand

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **_LLAMA,
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rope_scaling": {**_ROPE, "factor": 32.0},
        "tie_word_embeddings": False,
        "vocab_size": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "1b": {
        **_LLAMA,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "rope_scaling": {**_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "8b": {
        **_LLAMA,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "rope_scaling": {**_ROPE, "factor": 8.0},
        "tie_word_embeddings": False,
    },
}
"""Name -> Hugging Face config: a few layers, and the shapes of Llama 3.2 1B and of Llama 3.1 8B."""

_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_BLOCK = 2**22


def write_random_model(folder: str | Path, shape: str = "tiny", dtype: str = "float32", seed: int = 0) -> None:
    r"""Writes a model with random weights as a Hugging Face folder without a tokenizer, a file for each tensor.

    Matrices and embeddings are normal with standard deviation $1 / \sqrt{n}$ for $n$ inputs (the width of the stream
    for embeddings), norms are 1. A tensor is drawn on all cores and written before the next one, so that memory peaks
    at a few times the largest of them: 1 GB for the 8B shape in bfloat16, which takes two minutes of one core.

    Args:
        folder: Where to; it appears whole or not at all.
        shape: A key of `SHAPES`.
        dtype: Dtype on disk: "float32", "float16" or "bfloat16".
        seed: Of the weights, which are the same on any number of cores.

    Raises:
        ValueError: There is no such shape or dtype, or the folder holds something.

    Examples:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_random_model(f"{place}/model", "tiny", "bfloat16")
        ...     len(list(Path(place).glob("model/*.safetensors")))
        39
    """
    for name, value, known in (("shape", shape, SHAPES), ("dtype", dtype, _DTYPES)):
        if value not in known:
            raise ValueError(f"there is no {name} {value!r}; the {name}s are {', '.join(known)}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(partial, SHAPES[shape] | {"dtype": dtype}, _DTYPES[dtype], seed)
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, config: dict[str, Any], dtype: np.dtype, seed: int) -> None:
    tensors = dict(_tensor_shapes(config))
    files = {key: f"model-{place:05}-of-{len(tensors):05}.safetensors" for place, key in enumerate(tensors, start=1)}
    for place, (key, shape) in enumerate(tensors.items()):
        save_file({key: _draw(shape, dtype, seed, place)}, folder / files[key], metadata={"format": "pt"})
    size = dtype.itemsize * sum(math.prod(shape) for shape in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def _tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the stored tensors, in the order of the key table."""
    family, architecture = families.read_architecture(config, "random model")
    shapes = architecture.weights()

    for rule in expand(family.rules, architecture):
        yield rule.key, rule.stored_shape(shapes[rule.weights[0]])


def _draw(shape: tuple[int, ...], dtype: np.dtype, seed: int, place: int) -> np.ndarray:
    """A matrix [outputs, inputs] of random numbers, or a norm's ones."""
    if len(shape) == 1:
        return np.ones(shape, dtype)
    drawn = np.empty(shape, dtype)
    rows, scale = max(1, _BLOCK // shape[1]), np.float32(shape[1] ** -0.5)

    def fill(first: int) -> None:
        block = drawn[first : first + rows]
        block[:] = scale * np.random.default_rng([seed, place, first]).standard_normal(block.shape, np.float32)

    with ThreadPoolExecutor() as threads:
        list(threads.map(fill, range(0, shape[0], rows)))
    return drawn

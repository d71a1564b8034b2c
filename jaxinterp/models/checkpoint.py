"""Weights on disk: Hugging Face folders and GGUF files behind one protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxinterp.gguf import BLOCK_ELEMENTS, refuse_nonfinite
from jaxinterp.models.gguf import GgufCheckpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")


class Checkpoint(Protocol):
    """A checkpoint that can be read one tensor at a time.

    Attributes:
        path: The folder or file.
        config: The keys of the Hugging Face `config.json`.
    """

    path: Path
    config: dict[str, Any]

    def keys(self) -> list[str]:
        """Hugging Face names of the tensors."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor in Hugging Face orientation."""
        ...

    def read(self, key: str) -> np.ndarray:
        """Reads one tensor as an owned, finite float32 array in Hugging Face orientation."""
        ...

    def read_part(self, key: str, part: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """Reads a block of one tensor, one slice for each dimension, as an owned, finite array of some dtype."""
        ...


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Opens a checkpoint; the weights stay on disk until they are read.

    Args:
        path: A folder with `config.json` and safetensors (one file, or shards with their index), or a GGUF file.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If something is missing, damaged, or in a format that is not read.
    """
    path = Path(path)
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a folder with config.json and safetensors, or a .gguf file")
    if path.suffix != ".gguf":
        raise ValueError(f"{path} is neither a folder nor a .gguf file: give the folder that holds config.json")
    return GgufCheckpoint(path)


class SafetensorsCheckpoint:
    """A Hugging Face folder.

    Args:
        path: The folder.

    Raises:
        ValueError: If `config.json`, the weights or a shard is missing, or a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = _read_object(path / "config.json")
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file, wanted in _weight_files(path).items():
            present = _read_shapes(file)
            absent = sorted(wanted - present.keys()) if wanted is not None else []
            if absent:
                raise ValueError(f"{path / INDEX} places {absent} in {file.name}, which lacks them: fetch both again")
            for key in present if wanted is None else wanted:
                self._files[key], self._shapes[key] = file, present[key]

    def keys(self) -> list[str]:
        """Hugging Face names of the tensors."""
        return list(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        self._file(key)
        return self._shapes[key]

    def read(self, key: str) -> np.ndarray:
        """Reads one tensor.

        The file is mapped only for the duration of the call, so that its pages do not count towards peak memory.

        Args:
            key: Hugging Face name.

        Returns:
            An owned float32 array.

        Raises:
            ValueError: If there is no such tensor, it is not floating point, or it holds a NaN or an infinity.
        """
        return _read_tensor(self._file(key), key, self._shapes[key])

    def read_part(self, key: str, part: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """Reads a block of one tensor; no more than it is brought into memory.

        Args:
            key: Hugging Face name.
            part: One slice with a start and a stop for each dimension.
            dtype: Of the result.

        Returns:
            An owned array.

        Raises:
            ValueError: As in `read`.
        """
        return _read_block(self._file(key), key, part, dtype)

    def _file(self, key: str) -> Path:
        if key not in self._files:
            raise ValueError(f"{self.path} has no tensor {key!r}: it has {len(self._files)}, see `keys()`")
        return self._files[key]


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of one safetensors file.

    Args:
        file: The file.

    Returns:
        Name -> owned float32 array.

    Raises:
        ValueError: If the file is damaged, or a tensor is not floating point or holds a NaN or an infinity.
    """
    return {key: _read_tensor(file, key, shape) for key, shape in _read_shapes(file).items()}


def _read_tensor(file: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    return _read_block(file, key, tuple(slice(0, count) for count in shape), np.float32)


def _read_block(file: Path, key: str, part: tuple[slice, ...], dtype: Any) -> np.ndarray:
    out = np.empty([cut.stop - cut.start for cut in part], dtype)
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(out.shape[1:])))
    with _open(file) as tensors:
        stored = tensors.get_slice(key)
        if stored.get_dtype() not in _FLOATS:
            raise ValueError(f"{file}: tensor {key!r} is stored as {stored.get_dtype()}, not as one of {_FLOATS}")
        if not part:
            out[...] = tensors.get_tensor(key)
            refuse_nonfinite(out, key, file)
        for start in range(0, len(out) if part else 0, step):
            stop = min(start + step, len(out))
            block = stored[(slice(part[0].start + start, part[0].start + stop), *part[1:])]
            refuse_nonfinite(block, key, file)
            out[start:stop] = block
    return out


def _weight_files(folder: Path) -> Mapping[Path, set[str] | None]:
    """The files that hold weights -> the tensors that the index places there (`None`: all)."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if not (folder / INDEX).is_file():
        pickled = sorted(file.name for file in folder.glob("*.bin")) + sorted(
            file.name for file in folder.glob("*.pt*")
        )
        if pickled:
            raise ValueError(
                f"{folder} holds only pickled weights ({pickled[0]}), which are never loaded: convert them to "
                "model.safetensors with `save_pretrained(..., safe_serialization=True)`"
            )
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}: add the weights as safetensors")
    index = _read_object(folder / INDEX)
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise ValueError(f"{folder / INDEX} has no 'weight_map' from tensors to file names: fetch it again")
    files: dict[Path, set[str] | None] = {}
    for name in sorted(set(placed.values())):
        if Path(name).name != name or "\\" in name or name in (".", ".."):
            raise ValueError(f"{folder / INDEX} names {name!r}, which leaves the folder: use a checkpoint you trust")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks the shard {name} that {INDEX} names: fetch it again")
        files[folder / name] = {key for key, file in placed.items() if file == name}
    return files


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}: give a complete Hugging Face folder")
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({str(error).rstrip('.')}): fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__} instead of a JSON object: fetch it again")
    return value


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with _open(file) as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118


def _open(file: Path) -> safe_open:
    try:
        return safe_open(str(file), framework="numpy")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        with file.open("rb") as start:
            if start.read(24).startswith(b"version https://git-lfs"):
                raise ValueError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull`") from error
        raise ValueError(f"{file} is truncated or corrupted ({reason}): fetch it again") from error

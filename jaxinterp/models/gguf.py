"""Models in GGUF files, seen as Hugging Face checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.gguf import read_header
from jaxinterp.models import gguf_families


class GgufCheckpoint:
    """A GGUF file seen as a Hugging Face checkpoint: its names, its orientation, its configuration.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is damaged, its architecture is unknown, or a key or tensor has no place in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = read_header(path)
        shapes = {name: info.shape for name, info in self.file.tensors.items()}
        factors = None
        if gguf_families.ROPE_FACTORS in shapes:
            factors = np.concatenate([block for _, block in self.file.rows(gguf_families.ROPE_FACTORS)])
        self.config: dict[str, Any] = gguf_families.config(path, self.file.metadata, shapes, factors)
        self._whole: tuple[str, np.ndarray] | None = None
        self._names = gguf_families.names(path, self.file.metadata, shapes)
        self._layout = gguf_families.FAMILIES[self.file.metadata["general.architecture"]]

    def keys(self) -> list[str]:
        """Hugging Face names of the tensors."""
        return list(self._names)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor in Hugging Face orientation."""
        shape = self.file.tensors[self._name(key)].shape
        return shape[::-1] if self._transposed(key) else shape

    def read(self, key: str) -> np.ndarray:
        """Reads one tensor.

        Args:
            key: Hugging Face name.

        Returns:
            An owned float32 array in Hugging Face orientation.

        Raises:
            ValueError: If there is no such tensor or it holds a NaN or an infinity.
        """
        name = self._name(key)
        heads = self._interleaved_heads(name)
        out = np.empty(self.shape(key), np.float32)
        rows = out.T if self._transposed(key) else out
        if heads and rows.shape[0] % (2 * heads):
            raise ValueError(f"{self.path}: tensor {name!r} has {rows.shape[0]} rows for {heads} heads: fetch it again")
        for start, block in self.file.rows(name, step=rows.shape[0] // heads if heads else None):
            if heads:
                block = block.reshape(-1, 2, *block.shape[1:]).swapaxes(0, 1).reshape(block.shape)
            rows[start : start + len(block)] = block
        if self._layout.norms_plus_one and name.endswith("norm.weight"):
            out -= 1
        return out

    def read_part(self, key: str, part: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """Reads a block of one tensor; the whole tensor stays in memory until one of another is read.

        Args:
            key: Hugging Face name.
            part: One slice for each dimension.
            dtype: Of the result.

        Returns:
            An owned array.

        Raises:
            ValueError: As in `read`.
        """
        if self._whole is None or self._whole[0] != key:
            self._whole = None
            self._whole = key, self.read(key)
        return self._whole[1][part].astype(dtype)

    def _name(self, key: str) -> str:
        if key not in self._names:
            raise ValueError(f"{self.path} has no tensor {key!r}: it has {len(self._names)}, see `keys()`")
        return self._names[key]

    def _transposed(self, key: str) -> bool:
        return self._layout.transposed and key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))

    def _interleaved_heads(self, name: str) -> int | None:
        """How many heads have their rotary pairs interleaved in this tensor, as llama.cpp stores them."""
        if not self._layout.interleaved:
            return None
        part = name.split(".")[-2]
        return self.config.get({"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(part, ""))

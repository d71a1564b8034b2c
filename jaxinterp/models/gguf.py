"""GGUF files: the header, and tensors dequantised in blocks of rows.

The header is parsed here, with every length checked against the file, because a corrupted file must become a sentence
and because a vocabulary of a quarter of a million strings should not cost seconds. The arithmetic of the
quantised types is that of the `gguf` package.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from jaxinterp.models import gguf_families

BLOCK_ELEMENTS = 1 << 18
"""Elements converted at a time: temporaries stay at a few megabytes."""

READABLE = (
    *(Kind.F32, Kind.F16, Kind.BF16),
    *(Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
)
"""Tensor types that can be read."""

_SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Attributes:
        shape: Sizes, slowest axis first (the reverse of how the file writes them).
        kind: How its numbers are stored.
        offset: First byte, from the start of the file.
        row_bytes: Bytes of one row (one step along the first axis; one element of a vector).
    """

    shape: tuple[int, ...]
    kind: Kind
    offset: int
    row_bytes: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header has been read and checked.

    Attributes:
        path: The file.
        metadata: Its key-value pairs.
        tensors: Tensor name, as in the file -> where it lies.
    """

    path: Path
    metadata: dict[str, Any] = dataclasses.field(repr=False)
    tensors: dict[str, TensorInfo] = dataclasses.field(repr=False)

    def rows(self, name: str, step: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Dequantises a tensor in blocks of rows.

        Args:
            name: Tensor name as in the file.
            step: Rows in a block; by default as many as make about `BLOCK_ELEMENTS` elements.

        Yields:
            The index of the first row, and float32 rows `[step, *rest of the shape]`.

        Raises:
            ValueError: If a number is not finite, or the file ends early.
        """
        info = self.tensors[name]
        count, rest = info.shape[0], info.shape[1:]
        step = step or max(1, BLOCK_ELEMENTS // math.prod(rest))
        with self.path.open("rb", buffering=0) as file:
            file.seek(info.offset)
            for start in range(0, count, step):
                rows = min(step, count - start)
                stored = np.fromfile(file, np.uint8, rows * info.row_bytes)
                if stored.size != rows * info.row_bytes:
                    raise ValueError(f"{self.path} ends inside tensor {name!r}: download it again")
                with np.errstate(invalid="ignore", over="ignore"):
                    block = gguf.dequantize(stored.reshape(1, -1), info.kind).reshape(rows, *rest)
                refuse_nonfinite(block, name, self.path)
                yield start, block


def refuse_nonfinite(block: np.ndarray, key: str, path: Path) -> None:
    """Raises ValueError, naming the tensor and the file, if a number in `block` is NaN or infinite."""
    if not np.isfinite(block).all():
        raise ValueError(f"{path}: tensor {key!r} holds NaN or infinite numbers: the file is damaged, fetch it again")


def read_header(path: Path) -> GgufFile:
    """Reads and checks the header of a GGUF file.

    Args:
        path: The file.

    Returns:
        The file, ready to read tensors from.

    Raises:
        ValueError: If it is not GGUF version 2 or 3, is truncated or corrupted, is one of several splits, or holds a
            tensor type that cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _HeaderReader(path, file, size)
        if reader.take(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file (it does not start with 'GGUF'): fetch it again")
        version, tensor_count, pair_count = reader.unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF version {version}, but only 2 and 3 (little-endian) are read: convert it")
        reader.expect(pair_count, 12)
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = reader.string()
            metadata[key] = reader.value(key)
        if metadata.get("split.count", 1) > 1:
            raise ValueError(f"{path} is one of {metadata['split.count']} splits: merge them with `llama-gguf-split`")
        reader.expect(tensor_count, 24)
        entries = [reader.tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise reader.corrupted(f"general.alignment is {alignment!r}")
        start = math.ceil(file.tell() / alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in entries:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        row = math.prod(shape[1:])
        if name in tensors or offset % alignment or row % block or shape[-1] % block:
            raise reader.corrupted(f"the entry of tensor {name!r} is inconsistent")
        tensors[name] = TensorInfo(shape, kind, start + offset, row // block * block_bytes)
        if start + offset + shape[0] * tensors[name].row_bytes > size:
            raise ValueError(f"{path} is truncated: it ends before tensor {name!r} does: fetch it again")
    return GgufFile(path, metadata, tensors)


class _HeaderReader:
    """Reads the header's values in order; every length is checked against what is left of the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def corrupted(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is corrupted ({reason}): fetch it again")

    def expect(self, count: int, least_bytes: int) -> None:
        if count * least_bytes > self.size - self.file.tell():
            raise ValueError(f"{self.path} is truncated or corrupted (its header runs past the end): fetch it again")

    def take(self, count: int) -> bytes:
        taken = self.file.read(count) if count <= self.size else b""
        if len(taken) != count:
            self.expect(self.size + 1, 1)
        return taken

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.corrupted("a string in its header is not UTF-8") from error

    def value(self, key: str) -> Any:
        (kind,) = self.unpack("<I")
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise self.corrupted(f"{key!r} has the unknown type {kind}")
        item, count = self.unpack("<IQ")
        if item == _STRING:
            self.expect(count, 8)
            return [self.string() for _ in range(count)]
        if item not in _SCALARS:
            raise self.corrupted(f"{key!r} is a list of the unknown type {item}")
        layout = _SCALARS[item]
        self.expect(count, struct.calcsize(layout))
        return np.frombuffer(self.take(count * struct.calcsize(layout)), layout).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], Kind, int]:
        name = self.string()
        (dimensions,) = self.unpack("<I")
        if not 1 <= dimensions <= 4:
            raise self.corrupted(f"tensor {name!r} has {dimensions} axes")
        *sizes, kind, offset = self.unpack(f"<{dimensions}QIQ")
        if 0 in sizes:
            raise self.corrupted(f"tensor {name!r} is empty")
        if kind not in READABLE:
            known = Kind(kind).name if kind in list(Kind) else kind
            readable = ", ".join(readable.name for readable in READABLE)
            raise ValueError(f"{self.path}: tensor {name!r} is stored as {known}: requantise it to one of {readable}")
        return name, tuple(reversed(sizes)), Kind(kind), offset


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
        self._names = gguf_families.names(path, self.file.metadata, shapes)
        self._layout = gguf_families.FAMILIES[self.file.metadata["general.architecture"]]

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's own key-value pairs (the tokenizer's among them)."""
        return self.file.metadata

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

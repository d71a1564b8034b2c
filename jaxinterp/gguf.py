"""GGUF files: the metadata, where the tensors lie, and tensors dequantised in blocks of rows.

The header is parsed here, with every length checked against the file, because a corrupted file must become a sentence
and because a vocabulary of a quarter of a million strings should not cost seconds. The arithmetic of the
quantised types is that of the `gguf` package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

BLOCK_ELEMENTS = 1 << 18
"""Elements converted at a time: temporaries stay at a few megabytes."""

READABLE = (
    *(Kind.F32, Kind.F16, Kind.BF16),
    *(Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
)
"""Tensor types that can be read."""

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
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


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads the key-value pairs of a GGUF file; no tensor is looked at.

    Args:
        path: The file.

    Returns:
        Values by key: numbers, booleans, strings, and lists of one of them.

    Raises:
        ValueError: If it is no file, not GGUF version 2 or 3, or its metadata is truncated or corrupted.
    """
    with _opened(Path(path)) as reader:
        return reader.metadata()


def read_header(path: Path) -> GgufFile:
    """Reads and checks the header of a GGUF file.

    Args:
        path: The file.

    Returns:
        The file, ready to read tensors from.

    Raises:
        ValueError: As `read_metadata`; also if the file ends before its tensors do, is one of several splits, or holds
            a tensor type that cannot be read.
    """
    with _opened(path) as reader:
        metadata = reader.metadata()
        splits = metadata.get("split.count", 1)
        if not isinstance(splits, int) or splits > 1:
            raise ValueError(f"{path} is one of {splits} splits: merge them with `llama-gguf-split`")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise reader.corrupted(f"general.alignment is {alignment!r}")
        return GgufFile(path, metadata, reader.tensors(alignment))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_HeaderReader]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a .gguf file")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is not a GGUF file (it does not start with 'GGUF'): fetch it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _HeaderReader(path, data)


class _HeaderReader:
    """Reads the header's values in order; every length is checked against what is left of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.position = len(_MAGIC)
        (version,) = self.unpack("<I")
        if version not in _VERSIONS:
            raise ValueError(f"{path} is GGUF version {version}, but only 2 and 3 (little-endian) are read: convert it")
        self.tensor_count, self.pair_count = self.unpack("<QQ")

    def metadata(self) -> dict[str, Any]:
        self.expect(self.pair_count, 12)
        found: dict[str, Any] = {}
        for _ in range(self.pair_count):
            (key,) = self.strings(1)
            found[key] = self.value(key)
        return found

    def value(self, key: str) -> Any:
        (kind,) = self.unpack("<I")
        if kind == _STRING:
            return self.strings(1)[0]
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise self.corrupted(f"{key!r} has the unknown type {kind}")
        item, count = self.unpack("<IQ")
        if item == _STRING:
            return self.strings(count)
        if item not in _SCALARS:
            raise self.corrupted(f"{key!r} is a list of the unknown type {item}")
        layout = _SCALARS[item]
        return np.frombuffer(self.take(count * struct.calcsize(layout)), layout).tolist()

    def tensors(self, alignment: int) -> dict[str, TensorInfo]:
        """Where the tensors lie, which is after the last entry, the start of each a multiple of `alignment`."""
        self.expect(self.tensor_count, 24)
        entries = [self.tensor() for _ in range(self.tensor_count)]
        start = math.ceil(self.position / alignment) * alignment
        found: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in entries:
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            row = math.prod(shape[1:])
            if name in found or offset % alignment or row % block or shape[-1] % block:
                raise self.corrupted(f"the entry of tensor {name!r} is inconsistent")
            found[name] = TensorInfo(shape, kind, start + offset, row // block * block_bytes)
            if start + offset + shape[0] * found[name].row_bytes > self.size:
                raise ValueError(f"{self.path} is truncated: it ends before tensor {name!r} does: fetch it again")
        return found

    def tensor(self) -> tuple[str, tuple[int, ...], Kind, int]:
        (name,) = self.strings(1)
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

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def take(self, count: int) -> bytes:
        self.expect(count, 1)
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def strings(self, count: int) -> list[str]:
        """The next `count` strings; a vocabulary is nearly all of a header, so its loop calls as little as it can."""
        self.expect(count, 8)
        data, size, position = self.data, self.size, self.position
        length_at = struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            start = position + 8
            if start > size or (position := start + length_at(data, position)[0]) > size:
                raise self.cut_short()
            found.append(data[start:position])
        self.position = position
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError as error:
            raise self.corrupted("a string in its header is not UTF-8") from error

    def expect(self, count: int, least_bytes: int) -> None:
        if count * least_bytes > self.size - self.position:
            raise self.cut_short()

    def cut_short(self) -> ValueError:
        return ValueError(f"{self.path} is truncated or corrupted (its header runs past the end): fetch it again")

    def corrupted(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is corrupted ({reason}): fetch it again")

"""Captures on disk, read lazily: a folder that `jaxinterp.activations.stream` wrote."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxinterp import artefacts, axes
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.taps import Address, describe

MANIFEST = "manifest.json"
TOKENS, LENGTHS = "tokens", "lengths"
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "bfloat16", "float16")}

_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I32": "int32"}


def array_name(site: str, layer: int | None) -> str:
    """What an array is called in a shard.

    Examples:
        >>> array_name("resid_post", 3), array_name("ln_final", None)
        ('resid_post.3', 'ln_final')
    """
    return site if layer is None else f"{site}.{layer}"


@dataclasses.dataclass(frozen=True)
class Stream:
    """Captured activations on disk. Arrays are memory maps: what is not looked at is not read.

    Attributes:
        folder: Where they are.
        manifest: What `stream` noted: model, sites, dtype, positions, shards, and whether it is complete.
    """

    folder: Path
    manifest: dict[str, Any]

    def __len__(self) -> int:
        """Number of texts."""
        return self.manifest["rows"]

    @functools.cached_property
    def addresses(self) -> dict[Address, dict[str, int | None]]:
        """What was read: address -> axes of one text's array and their sizes, `None` where the text decides."""
        return {(array["site"], array["layer"]): array["axes"] for array in self.manifest["arrays"]}

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int [row]."""
        return np.concatenate([self._arrays(number)[LENGTHS] for number in range(len(self.manifest["shards"]))])

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of a text, int [seq]."""
        number, inside = self._find(row)
        first, end = self._starts(number)[inside : inside + 2]
        return self._arrays(number)[TOKENS][first:end]

    def read(self, row: int, site: str, layer: int | None = None) -> np.ndarray:
        """The array of one text, without padding.

        Args:
            row: Number of the text.
            site: Name of the site.
            layer: Block index, `None` for sites that stand once.

        Returns:
            The site's axes without batch, and without seq if only last positions were kept; a memory map.

        Raises:
            KeyError: The site was not captured.
            IndexError: There is no such text.
        """
        sizes = self._axes(site, layer)
        number, inside = self._find(row)
        array, starts = self._arrays(number)[array_name(site, layer)], self._starts(number)
        if axes.KV_SEQ not in sizes:
            return array[inside, ...] if self._last else array[starts[inside] : starts[inside + 1]]
        lengths = np.diff(starts)
        heads = sizes[axes.HEAD] or 1
        counts = heads * lengths * (1 if self._last else lengths)
        first = int(counts[:inside].sum())
        length = int(lengths[inside])
        shape = (heads, length) if self._last else (heads, length, length)
        return array[first : first + int(counts[inside])].reshape(shape)

    def matrices(self, site: str, layer: int | None = None) -> Iterator[np.ndarray]:
        """All tokens of each shard in turn, for fits that take one pass over a corpus.

        Yields:
            [token, ...] (or [row, ...] if only last positions were kept), memory maps in the order of the texts.
        """
        if axes.KV_SEQ in self._axes(site, layer):
            raise ValueError(f"{site} has a square of numbers for each text, not a row for each token; use `read`")
        for number in range(len(self.manifest["shards"])):
            yield self._arrays(number)[array_name(site, layer)]

    def batches(self, size: int, addresses: Sequence[Address] | None = None) -> Iterator[Cache]:
        """The texts in turn, padded on the left as `run` gives them.

        Args:
            size: Texts in a batch.
            addresses: Which arrays, (site, layer); by default all.

        Yields:
            Caches; arrays are float32, 0 at padding; if only last positions were kept they have one column.
        """
        chosen = list(self.addresses if addresses is None else addresses)
        for first in range(0, len(self), size):
            yield self._join(range(first, min(first + size, len(self))), chosen)

    def _join(self, rows: range, addresses: list[Address]) -> Cache:
        lengths = self.lengths[rows.start : rows.stop]
        width = int(lengths.max())
        mask = np.arange(width) >= width - lengths[:, None]
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = np.concatenate([self.tokens(row) for row in rows])
        arrays = {}
        for site, layer in addresses:
            parts = [self._with_seq(self.read(row, site, layer), site) for row in rows]
            names = [name for name in axes.SITES[site][0] if name != axes.BATCH]
            sizes = {axes.SEQ: 1 if self._last else width, axes.KV_SEQ: width}
            shape = [sizes[name] if name in sizes else parts[0].shape[axis] for axis, name in enumerate(names)]
            whole = np.zeros((len(parts), *shape), np.float32)
            for place, part in zip(whole, parts, strict=True):
                place[tuple(slice(-size, None) for size in part.shape)] = part
            arrays[site, layer] = whole
        if self._last and all(axes.KV_SEQ not in axes.SITES[site][0] for site, _ in arrays):
            tokens, mask = tokens[:, -1:], mask[:, -1:]
        return Cache(arrays, tokens, mask)

    def _with_seq(self, array: np.ndarray, site: str) -> np.ndarray:
        return np.expand_dims(array, axes.SITES[site][0].index(axes.SEQ) - 1) if self._last else array

    @property
    def _last(self) -> bool:
        return self.manifest["positions"] == "last"

    def _axes(self, site: str, layer: int | None) -> dict[str, int | None]:
        if (site, layer) not in self.addresses:
            raise KeyError(f"{(site, layer)} was not captured; {self.folder} holds {describe(self.addresses)}")
        return self.addresses[site, layer]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return [shard["rows"][1] for shard in self.manifest["shards"]]

    def _find(self, row: int) -> tuple[int, int]:
        """Shard of a text, and its place there."""
        if not 0 <= row < len(self):
            raise IndexError(f"there is no text {row}; {self.folder} holds texts 0..{len(self) - 1}")
        number = bisect.bisect_right(self._ends, row)
        return number, row - self.manifest["shards"][number]["rows"][0]

    @functools.cached_property
    def _maps(self) -> dict[int, dict[str, np.ndarray]]:
        return {}

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._maps:
            self._maps[number] = map_arrays(self.folder / self.manifest["shards"][number]["file"])
        return self._maps[number]

    def _starts(self, number: int) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self._arrays(number)[LENGTHS])])


def open_stream(folder: str | Path, verify: bool = False) -> Stream:
    """Opens captures for reading.

    Args:
        folder: What `stream` wrote, complete or not; of an unfinished one the finished shards can be read.
        verify: Whether to compare every shard with its digest, which reads all of them.

    Returns:
        The captures.

    Raises:
        ValueError: There are none, or a shard is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if (
            not path.is_file()
            or path.stat().st_size != shard["bytes"]
            or (verify and file_digest(path) != shard["sha256"])
        ):
            raise ValueError(
                f"{path} is missing or damaged; run `stream` again with the same arguments to make it anew"
            )
    return Stream(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of captures."""
    manifest = artefacts.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not str(manifest.get("format", "")).startswith("jaxinterp stream"):
        raise ValueError(f"{folder / MANIFEST} is not that of captured activations; choose another folder")
    names = [str(shard["file"]) for shard in manifest["shards"]]
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{folder / MANIFEST} names files outside its folder; it is not one that `stream` wrote")
    return manifest


def file_digest(path: Path) -> str | None:
    """The sha256 of a file, `None` if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as memory maps; bfloat16 too, which safetensors does not give to NumPy.

    Args:
        path: The file.

    Returns:
        Name -> read-only array.

    Raises:
        ValueError: The file is not a whole safetensors file.
    """
    whole = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    if start > len(whole):
        raise ValueError(f"{path}: not a whole safetensors file; make it again.")
    header: dict[str, Any] = json.loads(whole[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, about in header.items():
        dtype = np.dtype(getattr(ml_dtypes, _STORED[about["dtype"]], _STORED[about["dtype"]]))
        first, end = (start + offset for offset in about["data_offsets"])
        if end > len(whole) or end - first != dtype.itemsize * math.prod(about["shape"]):
            raise ValueError(f"{path}: not a whole safetensors file; make it again.")
        arrays[name] = whole[first:end].view(dtype).reshape(about["shape"])
    return arrays

"""The neighbourhood of every token of a vocabulary, measured block by block and kept on disk.

A folder holds one safetensors file for each block of tokens and a `manifest.json` that says which table and settings
they belong to. A block counts once the manifest names it with its digest, so a run that is killed goes on with the
blocks that are missing. Blocks do not depend on each other: each of several devices takes every n-th one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import logging
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp import artefacts
from jaxinterp.activations.shards import file_digest
from jaxinterp.analysis import neighbourhoods, neighbours
from jaxinterp.analysis.intrinsic_dimension import local_dimension
from jaxinterp.analysis.neighbour_search import Metric, Pool
from jaxinterp.analysis.token_progress import TokenProgress

MANIFEST = "manifest.json"
_FORMAT = "jaxinterp neighbourhoods 1"
_LOG = logging.getLogger(__name__)
_MEMORY = 2**28
_CACHED = 2**24
"""Bytes that a CPU's caches hold about: neighbourhoods are twice as fast in batches of that size."""
_AXES = {
    "tokens": ["token"],
    "neighbours": ["token", "neighbour"],
    "distances": ["token", "neighbour"],
    "weights": ["token", "neighbour"],
    "errors": ["token"],
    "components": ["token"],
    "participation": ["token"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured of each token."""

    neighbours: int = 10
    """Neighbours from which it is rebuilt."""
    dimension_neighbours: int = 100
    """Neighbours whose intrinsic dimension is found; 0 for none."""
    metric: Metric = "cosine"
    """Distance by which neighbours are nearest."""
    threshold: float = 0.95
    """Share of the neighbours' variance that the components explain."""
    regularisation: float = 1e-3
    """Of the weights, as a share of the trace of the neighbourhood's Gram matrix."""

    @property
    def most(self) -> int:
        """Neighbours that are looked for."""
        return max(self.neighbours, self.dimension_neighbours)


def measure_vocabulary(
    table: np.ndarray,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    source: str = "",
    tokens: np.ndarray | None = None,
    block: int = 2048,
    blocks: int | None = None,
    devices: Sequence[Any] | None = None,
    memory: int = _MEMORY,
    progress: bool = True,
) -> dict[str, Any]:
    """Finds the nearest neighbours of every token, the weights that rebuild it, and its intrinsic dimension.

    Each device holds two copies of the table, and three while it lays them out.

    Args:
        table: Rows of the tokens, float32 [token, embedding]; on the CPU it is used where it lies.
        folder: Where to; made if missing. What an earlier run with the same table and settings left is kept.
        settings: What is measured.
        source: Where the table is from, for the manifest.
        tokens: Ids of the tokens, int [token]; by default their places in the table. Neighbours are named by them.
        block: Tokens in a file; an earlier run's may have been others.
        blocks: The most blocks that are measured now; by default all that are missing.
        devices: Those that share the work; by default all of the present process.
        memory: Bytes that a device may take besides the copies of the table and the results of a block.
        progress: Whether to show how far it is, the rate and what remains, on stderr.

    Returns:
        The manifest; `complete` says whether any block is missing.

    Raises:
        ValueError: There are not that many neighbours, a row has no direction, the folder holds something else, or the
            disk has too little room.
    """
    settings, folder = settings or Settings(), Path(folder)
    rows = np.ascontiguousarray(table, np.float32)
    ids = np.arange(len(rows)) if tokens is None else np.asarray(tokens)
    _check(rows, ids, settings, block)
    header = {
        "format": _FORMAT,
        "table": {"source": source, "shape": list(rows.shape), "sha256": _table_digest(rows, ids)},
        "settings": dataclasses.asdict(settings),
        "provenance": artefacts.provenance(dataclasses.asdict(settings), [source]),
    }
    done = _begin(folder, header)
    missing = list(_gaps(done, len(rows), block))
    held, now = len(rows) - _count(missing), missing[:blocks]
    if done and progress:
        _LOG.info("going on: %d of %d tokens are there, in %d blocks", held, len(rows), len(done))
    _refuse_little_room(folder, _count(now) * (8 * settings.most + 4 * settings.neighbours + 20))
    run = _Run(rows, ids, settings, folder, header, done, memory)
    chosen = list(jax.local_devices() if devices is None else devices)
    with TokenProgress("neighbourhoods", len(rows), held, shown=progress) as bar:
        run.measure(now, chosen, bar.advance)
    return run.write_manifest()


def read_vocabulary(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `measure_vocabulary` wrote.

    Args:
        folder: Where it is.

    Returns:
        Name -> array of all tokens: `tokens` (ids), `neighbours` (ids) and `distances` [token, k], nearest first,
        `weights` of the first of them, `errors` (distance to the rebuilt row as a share of the row's length),
        `components` and `participation` (intrinsic dimension); and the manifest.

    Raises:
        ValueError: It holds nothing of the kind, not all tokens, or a damaged block.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    blocks = sorted(manifest["blocks"], key=lambda entry: entry["rows"])
    if not manifest["complete"]:
        held, total = _count(entry["rows"] for entry in blocks), manifest["table"]["shape"][0]
        raise ValueError(f"{folder} holds {held} of {total} tokens; run the same command again to go on")
    for entry in blocks:
        if file_digest(folder / entry["file"]) != entry["sha256"]:
            raise ValueError(f"{folder / entry['file']} is missing or damaged; run the same command again to make it")
    parts = [artefacts.read_arrays(folder / entry["file"])[0] for entry in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, manifest


@dataclasses.dataclass
class _Run:
    """One call's work: what the devices share, and the blocks that are done."""

    table: np.ndarray
    ids: np.ndarray
    settings: Settings
    folder: Path
    header: dict[str, Any]
    done: list[dict[str, Any]]
    memory: int

    def __post_init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def measure(self, missing: list[tuple[int, int]], devices: list[Any], advance: Any) -> None:
        shares = [(device, missing[place :: len(devices)]) for place, device in enumerate(devices)]
        with concurrent.futures.ThreadPoolExecutor(len(devices)) as threads:
            try:
                work = [threads.submit(self._on_device, *share, advance) for share in shares if share[1]]
                for ended in concurrent.futures.as_completed(work):
                    ended.result()
            finally:
                self._stopped.set()  # after an error or Ctrl-C the others end with the block they are at

    def _on_device(self, device: Any, share: list[tuple[int, int]], advance: Any) -> None:
        with jax.default_device(device):
            rows, metric, most = jax.device_put(self.table, device), self.settings.metric, self.settings.most
            pool = neighbours.lay_out(rows, metric, most, memory=self.memory)
            for first, end in share:
                if self._stopped.is_set():
                    return
                self._keep(first, end, self._measure_block(pool, np.arange(first, end)))
                advance(end - first)

    def _measure_block(self, pool: Pool, rows: np.ndarray) -> dict[str, np.ndarray]:
        asked, memory = self.settings, self.memory
        near, distances = neighbours.search(pool, rows, asked.most, asked.metric, memory=memory)
        own = near[:, : asked.neighbours]
        weights = neighbours.rebuild(pool.vectors, rows, own, asked.regularisation, memory=memory)
        errors = neighbourhoods.reconstruction_errors(self.table, rows, own, weights)
        arrays = {"tokens": self.ids[rows].astype(np.int32), "neighbours": self.ids[near].astype(np.int32)}
        arrays |= {"distances": distances, "weights": weights, "errors": errors.astype(np.float32)}
        if asked.dimension_neighbours:
            around = near[:, : asked.dimension_neighbours]
            table: Any = pool.vectors
            within = min(memory, _CACHED) if jax.default_backend() == "cpu" else memory
            found = local_dimension(table, around, threshold=asked.threshold, memory=within)
            arrays |= {"components": found.components, "participation": found.participation}
        return arrays

    def _keep(self, first: int, end: int, arrays: dict[str, np.ndarray]) -> None:
        path = self.folder / f"tokens-{first:07d}-{end:07d}.safetensors"
        axes = {name: _AXES[name] for name in arrays}
        artefacts.write_arrays(arrays, path, axes, self.header["provenance"])
        entry = {"file": path.name, "sha256": file_digest(path), "rows": [first, end]}
        with self._lock:
            self.done.append(entry)
            self.write_manifest()

    def write_manifest(self) -> dict[str, Any]:
        complete = _count(entry["rows"] for entry in self.done) == len(self.table)
        manifest = self.header | {"complete": complete, "blocks": self.done}
        artefacts.write_json(manifest, self.folder / MANIFEST)
        return manifest


def _check(rows: np.ndarray, ids: np.ndarray, settings: Settings, block: int) -> None:
    if rows.ndim != 2 or ids.shape != rows.shape[:1]:
        raise ValueError(
            f"the table has shape {rows.shape} and {ids.shape} ids; pass [token, embedding] and an id each"
        )
    if settings.neighbours < 1 or settings.dimension_neighbours < 0 or settings.dimension_neighbours == 1:
        raise ValueError(
            f"neighbours is {settings.neighbours} and dimension_neighbours {settings.dimension_neighbours}; pass at "
            "least 1 and, for a dimension, at least 2"
        )
    if settings.most >= len(rows):
        raise ValueError(
            f"{settings.most} neighbours are asked for, but each token has {len(rows) - 1} others; ask for fewer"
        )
    if block < 1:
        raise ValueError(f"block is {block}; pass the tokens of a file, at least 1")


def _table_digest(rows: np.ndarray, ids: np.ndarray) -> str:
    digest = hashlib.sha256(rows.reshape(-1).view(np.uint8).data)
    digest.update(ids.astype(np.int64).data)
    return digest.hexdigest()


def _begin(folder: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole blocks that an earlier run left in the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if not (folder / MANIFEST).exists():
        foreign = [file.name for file in folder.glob("*")] if folder.exists() else []
        if foreign:
            raise ValueError(f"{folder} holds {foreign[0]} but no {MANIFEST}; choose an empty folder")
        return []
    manifest = _read_manifest(folder)
    if manifest["table"]["sha256"] != header["table"]["sha256"]:
        raise ValueError(f"{folder} holds neighbourhoods of another table ({manifest['table']}); choose another folder")
    for name, value in header["settings"].items():
        if manifest["settings"].get(name) != value:
            raise ValueError(
                f"{folder} was written with {name} {manifest['settings'].get(name)}, not {value}; choose another folder"
            )
    for leftover in folder.glob(".*.partial"):
        leftover.unlink()
    return [entry for entry in manifest["blocks"] if file_digest(folder / entry["file"]) == entry["sha256"]]


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = artefacts.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{folder / MANIFEST} is not that of a vocabulary's neighbourhoods; choose another folder")
    if any(Path(str(entry["file"])).name != entry["file"] for entry in manifest["blocks"]):
        raise ValueError(f"{folder / MANIFEST} names files outside its folder; it was not written here")
    return manifest


def _gaps(done: list[dict[str, Any]], n: int, block: int) -> Iterator[tuple[int, int]]:
    """What is missing between the blocks that are done, cut to blocks: first row and the one after the last."""
    place = 0
    for first, end in [*sorted(tuple(entry["rows"]) for entry in done), (n, n)]:
        for start in range(place, first, block):
            yield start, min(start + block, first)
        place = max(place, end)


def _count(blocks: Iterable[Sequence[int]]) -> int:
    return sum(end - first for first, end in blocks)


def _refuse_little_room(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"the neighbourhoods take {size / 2**30:.2f} GiB, more than the {free / 2**30:.2f} GiB free at {folder}; "
            "ask for fewer neighbours or choose another disk"
        )

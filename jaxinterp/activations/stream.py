"""Streaming captures: the activations of a corpus larger than memory, as shards on disk.

A folder holds one safetensors file for each batch of texts and a `manifest.json` that says which texts, sites and model
they belong to. A shard counts once the manifest names it with its digest, so a run that is killed goes on after its
last whole shard. `jaxinterp.activations.shards` reads the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp import artefacts, axes
from jaxinterp.activations.memory import available, bytes_fixed, bytes_per_row, bytes_read, rows_that_fit
from jaxinterp.activations.run import bucket, prepare, run
from jaxinterp.activations.shards import (
    DTYPES,
    LENGTHS,
    MANIFEST,
    TOKENS,
    Stream,
    array_name,
    file_digest,
    open_stream,
    read_manifest,
)
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel.placement import mesh_of
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address, edited_taps

Text = str | Sequence[int]

_MOST_ROWS = 64
_COPIES = 3
"""A batch's reads stand in memory as they are read, without their padding, and as the bytes that are written."""


def stream(
    model: LanguageModel,
    texts: Iterable[Text],
    sites: Sequence[Site] | Site,
    folder: str | Path,
    *,
    batch_size: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    positions: Literal["all", "last"] = "all",
    resume: bool = True,
    memory: int | None = None,
) -> Stream:
    """Runs a model over a corpus and writes what passes its taps to disk.

    Args:
        model: The model, edited or not.
        texts: Texts, or rows of token ids; a list, or an iterator that gives the same ones when it is made again.
        sites: What to read.
        folder: Where to; made if missing.
        batch_size: Texts in a forward pass, which are a shard; by default as many as `memory` allows, 64 at most.
        dtype: Dtype on disk.
        positions: `"all"` tokens of each text, or the `"last"` one alone. Nothing is padded on disk.
        resume: Whether to go on where an earlier run with the same arguments ended; `batch_size` and `memory` may be
            others.
        memory: Bytes that a batch may take besides the weights, by the bound of `bytes_per_row`; by default half of
            what is available.

    Returns:
        The folder, opened for reading.

    Raises:
        ValueError: The folder holds something else, or the captures of another model, other sites or other texts; a
            text is too long for the memory; the disk has too little room; or a number does not fit the dtype.
    """
    chosen = (sites,) if isinstance(sites, Site) else tuple(sites)
    folder = Path(folder)
    _check(model, chosen, batch_size, dtype, positions)
    mesh = mesh_of(model.body)
    if mesh is not None and mesh.is_multi_process:
        raise ValueError("captures are written by one process; load the model on a mesh of this host's devices")
    header = {
        "format": "jaxinterp stream 1",
        "model": {"source": model.source, "digest": model_digest(model)},
        "sites": [str(site) for site in chosen],
        "dtype": dtype,
        "positions": positions,
        "arrays": _describe(model, chosen),
    }
    shards = _begin(folder, header, resume)
    rows = _token_rows(model, texts)
    total = len(texts) if isinstance(texts, Sequence) else None
    known = _skip_finished(rows, shards, folder)
    limit = available() // 2 if memory is None else memory
    ahead = list(itertools.islice(rows, _MOST_ROWS if total is None else None))
    if ahead and known["complete"]:
        raise ValueError(f"{folder} is complete with {known['rows']} texts, but more were given; choose another folder")
    if not known["complete"]:
        if batch_size is None and ahead:
            per_row = _row_cost(model, chosen, max(map(len, ahead)))
            batch_size = rows_that_fit(per_row, limit, _MOST_ROWS, bytes_fixed(model.architecture))
        _refuse_full_disk(model, chosen, ahead, folder, dtype, positions)
        rows = itertools.chain(ahead, rows)
        while batch := list(itertools.islice(rows, batch_size)):
            shards.append(
                _write_shard(model, chosen, batch, folder, len(shards), shards, limit, dtype=dtype, positions=positions)
            )
            _write_manifest(folder, header, shards, complete=False)
        if not shards:
            raise ValueError("there are no texts; pass at least one text or row of token ids")
        _write_manifest(folder, header, shards, complete=True)
    return open_stream(folder)


def model_digest(model: LanguageModel) -> str:
    """A digest of everything that a model's activations depend on: architecture, weights, edits and tokenizer."""
    digest = hashlib.sha256(repr(model.architecture).encode())
    digest.update(b"" if model.tokenizer is None else model.tokenizer.digest.encode())
    for address, tap in edited_taps(model.body).items():
        digest.update(repr((address, [type(edit).__name__ for edit in tap.edits])).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.body):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check(model: LanguageModel, sites: tuple[Site, ...], batch_size: int | None, dtype: str, positions: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if positions not in ("all", "last"):
        raise ValueError(f"positions must be 'all' or 'last', not {positions!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if not sites:
        raise ValueError("no site was given; pass one such as ji.resid_post(3)")
    addresses = [address for site in sites for address in site.addresses(model.body)]
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise ValueError(f"{twice[0][0]} of layer {twice[0][1]} is asked for twice; join the two selectors")


def _describe(model: LanguageModel, sites: tuple[Site, ...]) -> list[dict[str, Any]]:
    """Each array's address, and its axes besides batch with their sizes; `None` where the text decides."""
    sizes: dict[str, int | None] = dict(model.architecture.axis_sizes())
    arrays = []
    for site in sites:
        here = sizes | ({site.axis: len(site.indices)} if site.axis else {})
        for name, layer in site.addresses(model.body):
            named = {axis: here.get(axis) for axis in axes.SITES[name][0][1:]}
            arrays.append({"site": name, "layer": layer, "axes": named, "indices": list(site.indices)})
    return arrays


def _token_rows(model: LanguageModel, texts: Iterable[Text]) -> Iterator[list[int]]:
    for number, text in enumerate(texts):
        if len(text) == 0:
            raise ValueError(f"text {number} is empty; leave it out")
        tokens, mask = prepare(model, [text] if isinstance(text, str) else [list(text)])
        yield tokens[0][mask[0]].tolist()


def _digest_rows(rows: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def _begin(folder: Path, header: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The finished shards that an earlier run left in the folder, whole ones only."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if not (folder / MANIFEST).exists():
        foreign = [file.name for file in folder.glob("*")] if folder.exists() else []
        if foreign:
            raise ValueError(f"{folder} holds {foreign[0]} but no {MANIFEST}; choose an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        _write_manifest(folder, header, [], complete=False)
        return []
    if not resume:
        raise ValueError(f"{folder} holds captures already; pass resume=True to go on, or choose another folder")
    manifest = read_manifest(folder)
    for key, what in (("model", "another model"), ("sites", "other sites"), ("arrays", "other sites")):
        if manifest[key] != header[key]:
            raise ValueError(f"{folder} holds captures of {what} ({manifest[key]}); choose another folder")
    for key in ("format", "dtype", "positions"):
        if manifest[key] != header[key]:
            raise ValueError(f"{folder} was written with {key} {manifest[key]!r}, not {header[key]!r}; choose another")
    for leftover in folder.glob(".*.partial"):
        leftover.unlink()
    finished = list(
        itertools.takewhile(lambda shard: file_digest(folder / shard["file"]) == shard["sha256"], manifest["shards"])
    )
    if len(finished) < len(manifest["shards"]) or not manifest["complete"]:
        _write_manifest(folder, header, finished, complete=False)
    return finished


def _skip_finished(rows: Iterator[list[int]], shards: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    for shard in shards:
        first, end = shard["rows"]
        texts = list(itertools.islice(rows, end - first))
        if len(texts) < end - first or _digest_rows(texts) != shard["inputs"]:
            raise ValueError(f"{folder} holds captures of other texts (from text {first} on); choose another folder")
    return {"complete": read_manifest(folder)["complete"], "rows": shards[-1]["rows"][1] if shards else 0}


def _row_cost(model: LanguageModel, sites: tuple[Site, ...], longest: int) -> int:
    """Bytes that each row of a batch takes while it is run and written."""
    limit = model.architecture.context if model.architecture.learned_positions else None
    seq = bucket(longest, limit)
    itemsize = jax.tree_util.tree_leaves(model.body)[0].dtype.itemsize
    copies = (_COPIES - 1) * bytes_read(model.architecture, sites, seq)
    return bytes_per_row(model.architecture, sites, seq=seq, logits=None, itemsize=itemsize) + copies


def _write_shard(
    model: LanguageModel,
    sites: tuple[Site, ...],
    batch: list[list[int]],
    folder: Path,
    number: int,
    before: list[dict[str, Any]],
    memory: int,
    *,
    dtype: str,
    positions: str,
) -> dict[str, Any]:
    longest = max(map(len, batch))
    cost = _row_cost(model, sites, longest) * len(batch) + bytes_fixed(model.architecture)
    if cost > memory:
        raise ValueError(
            f"{len(batch)} texts of up to {longest} tokens would take {cost / 2**30:.2f} GiB, more than the "
            f"{memory / 2**30:.2f} GiB they may; run it again with a smaller batch_size, or read fewer sites"
        )
    _, cache = run(model, batch, sites=sites, logits=None)
    lengths = cache.mask.sum(axis=1)
    arrays: dict[str, np.ndarray] = {
        TOKENS: cache.tokens[cache.mask].astype(np.int32),
        LENGTHS: lengths.astype(np.int32),
    }
    names = {TOKENS: ["token"], LENGTHS: ["row"]}
    for address in cache:
        arrays[array_name(*address)] = _narrow(_without_padding(cache, address, positions), dtype, address)
        names[array_name(*address)] = _stored_axes(address[0], positions)
    path = folder / f"shard-{number:06d}.safetensors"
    _refuse_little_room(folder, sum(array.nbytes for array in arrays.values()), "the next shard takes")
    artefacts.write_arrays(arrays, path, names, {"sites": [str(site) for site in sites], "model": model.source})
    first = before[-1]["rows"][1] if before else 0
    return {
        "file": path.name,
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "rows": [first, first + len(batch)],
        "tokens": int(lengths.sum()),
        "inputs": _digest_rows(batch),
    }


def _stored_axes(site: str, positions: str) -> list[str]:
    names = axes.SITES[site][0]
    if axes.KV_SEQ in names:
        return ["entry"]
    rest = [name for name in names if name not in (axes.BATCH, axes.SEQ)]
    return ["token" if positions == "all" else "row", *rest]


def _without_padding(cache: Cache, address: Address, positions: str) -> np.ndarray:
    """One site of a batch: [token, ...], [row, ...], or for attention all numbers of one row after another."""
    array, names = cache[address], axes.SITES[address[0]][0]
    last = positions == "last"
    if axes.KV_SEQ not in names:
        return array[:, -1] if last else array[cache.mask]
    parts = []
    for row, length in zip(array, cache.mask.sum(axis=1), strict=True):
        parts.append(row[:, -1 if last else slice(-length, None), -length:].ravel())
    return np.concatenate(parts)


def _narrow(array: np.ndarray, dtype: str, address: Address) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = array.astype(DTYPES[dtype])
    if dtype == "float16" and not np.isfinite(narrow).all():
        most = np.abs(array).max()
        raise ValueError(f"{address[0]} of layer {address[1]} reaches {most:.3g}, too much for float16; use bfloat16")
    return narrow


def _refuse_full_disk(
    model: LanguageModel, sites: tuple[Site, ...], rows: list[list[int]], folder: Path, dtype: str, positions: str
) -> None:
    """Sums up what the texts at hand will take, to the byte but for headers."""
    size, total = DTYPES[dtype].itemsize, 0
    for seq, count in zip(*np.unique([len(row) for row in rows], return_counts=True), strict=True):
        per_text = bytes_read(model.architecture, sites, int(seq), size)
        total += int(count) * (per_text // (int(seq) if positions == "last" else 1))
    _refuse_little_room(folder, total, f"the captures of {len(rows)} texts take")


def _refuse_little_room(folder: Path, size: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{what} {size / 2**30:.2f} GiB, more than the {free / 2**30:.2f} GiB free at {folder}; "
            "read fewer sites or positions, use bfloat16, or choose another disk"
        )


def _write_manifest(folder: Path, header: dict[str, Any], shards: list[dict[str, Any]], *, complete: bool) -> None:
    totals = {"rows": shards[-1]["rows"][1] if shards else 0, "tokens": sum(shard["tokens"] for shard in shards)}
    value = (
        header | totals | {"complete": complete, "provenance": artefacts.provenance(models=[header["model"]["source"]])}
    )
    artefacts.write_json(value | {"shards": shards}, folder / MANIFEST)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the renames too
    finally:
        os.close(handle)

"""Finished blocks of a sweep on disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.activations.metrics import Measure, OfLogits
from jaxinterp.activations.plan import Base, Route
from jaxinterp.activations.schedule import Block
from jaxinterp.activations.stages import Texts
from jaxinterp.artefacts import read_arrays, read_json, write_arrays, write_json
from jaxinterp.parallel.placement import fetch, first_process

_NAME = "sweep.json"
_AXES = {"cells": ["cell"], "rows": ["prompt"], "values": ["cell", "prompt"], "clean": ["prompt"]}


class Ledger:
    """A folder that holds the blocks of one sweep.

    Attributes:
        folder: Where.
    """

    def __init__(self, folder: str | Path, digest: str) -> None:
        self.folder, self._digest = Path(folder), digest
        if (self.folder / _NAME).exists():
            found = read_json(self.folder / _NAME).get("digest")
            if found != digest:
                raise ValueError(
                    f"{self.folder} holds blocks of another sweep (other weights, texts, edits or metric); "
                    "give this one a folder of its own, or delete that one"
                )
        elif first_process():
            write_json({"digest": digest}, self.folder / _NAME)

    def blocks(self) -> Iterator[Block]:
        """The blocks that were finished.

        Raises:
            ValueError: A file is damaged, or of another sweep.
        """
        for path in sorted(self.folder.glob("block-*.safetensors")):
            arrays, about = read_arrays(path)
            if about.get("digest", self._digest) != self._digest:
                raise ValueError(f"{path} is a block of another sweep; give this one a folder of its own")
            yield Block(arrays["cells"], arrays["rows"], arrays["values"], arrays["clean"])

    def add(self, block: Block) -> None:
        """Keeps a block; it is on disk as a whole or not at all."""
        name = f"block-{block.cells[0]:07}-{block.rows[0]:07}.safetensors"
        arrays = {"cells": block.cells, "rows": block.rows, "values": block.values, "clean": block.clean}
        write_arrays(arrays, self.folder / name, axes=_AXES, provenance={"digest": self._digest})


def digest_of(
    base: Base, labels: Sequence[Mapping[str, Any]], routes: Sequence[Route], texts: Texts, measure: Measure
) -> str:
    """A hash of all that a sweep's values depend on.

    Args:
        base: The unedited model.
        labels: Of the cells.
        routes: Of the cells.
        texts: The texts.
        measure: The metric.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: The metric is a function that a later process could not tell from another.
    """
    if isinstance(measure, OfLogits):
        raise ValueError("a function of yours cannot be recognised by a later process; without folder= it can be swept")
    total = hashlib.sha256(repr((type(measure), str(jax.tree_util.tree_structure(base.body)))).encode())
    parts = [(route.stage, route.entry, route.edited) for route in routes]
    shared: dict[int, bytes] = {}
    for leaf in jax.tree_util.tree_leaves((base.body, texts, measure)):
        total.update(shared.setdefault(id(leaf), _bytes(leaf)))
    for label, part in zip(labels, parts, strict=True):
        leaves, structure = jax.tree_util.tree_flatten(part)
        total.update(repr((sorted(label.items()), str(structure))).encode())
        for leaf in leaves:
            total.update(shared[id(leaf)] if id(leaf) in shared else _bytes(leaf))
    return total.hexdigest()


def _bytes(leaf: Any) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(fetch(leaf)).tobytes()).digest()

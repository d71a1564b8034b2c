"""Training on several devices: each takes a part of every batch, and may hold a part of every weight.

A mesh has two axes. A batch is split over both. What lasts from step to step, weights and the optimiser's numbers, is
split along the `embedding` axis over `fsdp` and whole along `data`. A step gathers the weights once, in the numbers of
its passes, so that a device holds 12 bytes of every `fsdp`-th weight and 2 (bfloat16) or 4 of the others. So `data`
saves time, and `fsdp` saves time and memory. What comes out is the same up to rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxinterp import axes
from jaxinterp.models.architecture import Architecture

DATA, FSDP = "data", "fsdp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices take part in training."""

    data: int = 1
    """Groups of devices that hold whole copies of the weights."""
    fsdp: int = 1
    """Devices in a group, among which the weights are split."""

    @property
    def size(self) -> int:
        """Devices that take part."""
        return self.data * self.fsdp


def make(mesh: Mesh, architecture: Architecture, rows: int) -> jax.sharding.Mesh:
    """Lays devices out.

    Args:
        mesh: How many there are along each axis.
        architecture: What the model is made of.
        rows: Rows in a batch.

    Returns:
        The mesh of JAX, with the axes `data` and `fsdp`.

    Raises:
        ValueError: There are not so many devices, or they do not divide the batch or the width.
    """
    found, faults = jax.devices(), []
    if min(mesh.data, mesh.fsdp) < 1:
        faults.append(f"data ({mesh.data}) and fsdp ({mesh.fsdp}) have to be at least 1")
    elif mesh.size > len(found):
        faults.append(f"data x fsdp = {mesh.size} devices are asked for, and there are {len(found)}; lower one of them")
    elif rows % mesh.size:
        faults.append(f"{rows} rows of a batch do not divide among {mesh.size} devices; take a multiple of {mesh.size}")
    if mesh.fsdp > 1 and architecture.embedding % mesh.fsdp:
        faults.append(f"the width {architecture.embedding} does not divide among {mesh.fsdp} devices of fsdp")
    if faults:
        raise ValueError(f"mesh: {'; '.join(faults)}")
    return jax.sharding.Mesh(np.array(found[: mesh.size]).reshape(mesh.data, mesh.fsdp), (DATA, FSDP))


def batch_sharding(devices: jax.sharding.Mesh) -> NamedSharding:
    """How a batch is split: its rows, over all devices."""
    return NamedSharding(devices, PartitionSpec((DATA, FSDP)))


def everywhere(devices: jax.sharding.Mesh) -> NamedSharding:
    """What is whole on every device."""
    return NamedSharding(devices, PartitionSpec())


def shardings(devices: jax.sharding.Mesh, architecture: Architecture, state: Any) -> Any:
    """How a decoder's weights are split, and everything that has a number for each of them.

    Args:
        devices: The mesh.
        architecture: What the decoder is made of.
        state: A tree of arrays whose paths end with those of a decoder's weights, such as the weights themselves or an
            optimiser's state. Arrays with another end are whole on every device.

    Returns:
        A tree of shardings.
    """
    blocks = {f"blocks.{name}": ("layer", *sizes) for name, sizes in architecture.block_weights().items()}
    known = blocks | {
        f"table.{name}": (*sizes,) for name, sizes in architecture.weights().items() if "blocks." not in name
    }

    def place(path: Any, array: Any) -> NamedSharding:
        words = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        named = next((names for end, names in known.items() if words.endswith(end)), ())
        split = [FSDP if name == axes.EMBEDDING else None for name in named]
        return NamedSharding(devices, PartitionSpec(*(split if len(split) == array.ndim else ())))

    return jax.tree_util.tree_map_with_path(place, state)

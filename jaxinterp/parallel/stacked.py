"""Training on a mesh: where stacked weights, an optimiser's numbers and batches go.

A batch is divided over `data`, `fsdp` and `sweep`. What lasts from step to step, weights and the optimiser's numbers,
is divided as in any model, over `fsdp` and `tensor`, and whole along the others. A step gathers the weights along
`fsdp` once, in the numbers of its passes, so that a device holds 12 bytes of every `fsdp`-th weight and 2 (bfloat16) or
4 of the others, all of that divided by `tensor`. So `data` saves time, `fsdp` and `tensor` save time and memory. What
comes out is the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp.models.architecture import Architecture
from jaxinterp.parallel import mesh as meshes
from jaxinterp.parallel.rules import check, spec

_LAYER = "layer"


def lay_out(mesh: meshes.Mesh, architecture: Architecture, rows: int) -> Mesh:
    """Lays devices out for training.

    Args:
        mesh: How many there are along each axis.
        architecture: What the model is made of.
        rows: Rows in a batch.

    Returns:
        The mesh of JAX.

    Raises:
        ValueError: There are not so many devices, or they do not divide the batch or the model.
    """
    laid_out = mesh.arrange()
    check(architecture, laid_out)
    if rows % mesh.rows:
        raise ValueError(
            f"mesh: {rows} rows of a batch do not divide among {mesh.rows} groups of devices; "
            f"take a multiple of {mesh.rows}"
        )
    return laid_out


def shardings(mesh: Mesh, architecture: Architecture, state: Any, gathered: bool = False) -> Any:
    """How a decoder's weights are divided, and everything that has a number for each of them.

    Args:
        mesh: The mesh.
        architecture: What the decoder is made of.
        state: A tree of arrays whose paths end with those of a decoder's weights, such as the weights themselves or an
            optimiser's state. Arrays with another end are whole on every device.
        gathered: Whether they are as a step takes them, whole along `fsdp`.

    Returns:
        A tree of shardings.
    """
    blocks = {f"blocks.{name}": (_LAYER, *sizes) for name, sizes in architecture.block_weights().items()}
    known = blocks | {
        f"table.{name}": (*sizes,) for name, sizes in architecture.weights().items() if "blocks." not in name
    }

    def place(path: Any, array: Any) -> NamedSharding:
        words = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        names = next((names for end, names in known.items() if words.endswith(end)), ())
        if len(names) != array.ndim:
            return NamedSharding(mesh, PartitionSpec())
        over = [None if gathered and axis == meshes.FSDP else axis for axis in spec(names, architecture, mesh)]
        return NamedSharding(mesh, PartitionSpec(*over))

    return jax.tree_util.tree_map_with_path(place, state)

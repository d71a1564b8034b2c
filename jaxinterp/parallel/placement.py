"""Arrays and models that go onto a mesh, and come back as NumPy arrays.

A model on a mesh says so itself: its weights know where they are. All processes of the mesh run it together, each the
same calls in the same order.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from penzai import pz

from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel import mesh as meshes
from jaxinterp.parallel.rules import weight_shardings

Tree = TypeVar("Tree")


def shard(model: LanguageModel, mesh: meshes.Layout) -> LanguageModel:
    """Puts a model onto a mesh.

    Its weights are divided as `jaxinterp.parallel.rules` says; the numbers of its edits are whole on every device. The
    model is run, edited, swept and generated with as before, with the same results up to rounding. To read weights
    from disk straight into their places, see `jaxinterp.load_sharded`.

    Args:
        model: The model, edited or not; or one without numbers, as `load_shapes` makes it, which then says where each
            of its arrays would be.
        mesh: A line such as `"data=2,tensor=4"`, a `Mesh`, or a mesh of JAX, such as `Mesh.arrange` lays out over the
            devices of a topology.

    Returns:
        The model on the mesh.

    Raises:
        ValueError: There are not so many devices, or the model does not divide over them.
    """
    laid_out = meshes.arrange(mesh)
    known = weight_shardings(model.architecture, laid_out)

    def place(node: Any) -> Any:
        if not isinstance(node, pz.ParameterValue):
            return put(node, everywhere(laid_out))
        array = put(node.value.data_array, known[node.label])
        return dataclasses.replace(node, value=dataclasses.replace(node.value, data_array=array))

    is_weight = lambda node: isinstance(node, pz.ParameterValue)  # noqa: E731
    return model.with_body(jax.tree_util.tree_map(place, model.body, is_leaf=is_weight))


def everywhere(mesh: Mesh) -> NamedSharding:
    """What is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(array: Any, sharding: NamedSharding) -> Any:
    """Puts one array onto a mesh.

    Args:
        array: An array that every process has whole, one on a mesh, or a shape.
        sharding: Where to.

    Returns:
        The array there, or the shape that says so.
    """
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that a tree's arrays are on, `None` if they are on none with the axes of this project."""
    for leaf in jax.tree_util.tree_leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and set(sharding.mesh.axis_names) == set(meshes.AXES):
            return sharding.mesh  # pyright: ignore[reportReturnType]  # arrays are on no abstract mesh
    return None


def rows_over(mesh: Mesh | None) -> int:
    """Among how many groups of devices the rows of a batch are divided: batches have to be a multiple of it."""
    return 1 if mesh is None else int(np.prod([mesh.shape[name] for name in meshes.ROWS]))


def put_rows(tree: Tree, mesh: Mesh | None, over: tuple[str, ...] = meshes.ROWS) -> Tree:
    """Puts a batch onto a mesh, its rows divided.

    Args:
        tree: Arrays [row, ...] that every process has whole.
        mesh: The mesh; `None` leaves everything where it is.
        over: The mesh axes that the rows are divided over; their sizes' product divides the rows.

    Returns:
        The batch.
    """
    if mesh is None:
        return tree
    place = NamedSharding(mesh, PartitionSpec(over))
    return jax.tree_util.tree_map(lambda array: put(array, place), tree)


def fetch(array: Any) -> np.ndarray:
    """The whole of an array, in every process that has a part of it.

    Args:
        array: Any array; one that is divided among processes is gathered, which all of them have to ask for.

    Returns:
        A NumPy array.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        assert isinstance(array.sharding, NamedSharding), "arrays of several processes are on a mesh"
        array = _gather(array.sharding.mesh)(array)
    return np.asarray(array)


@functools.lru_cache(maxsize=64)
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=everywhere(mesh))


def to_one_device(tree: Tree) -> Tree:
    """A tree on the default device of this process, which all processes of its mesh ask for together."""

    def one(array: Any) -> Any:
        device = jax.local_devices()[0]
        return jax.device_put(array if array.is_fully_addressable else fetch(array), device)

    return jax.tree_util.tree_map(one, tree)


def restrict(tree: Tree, part: Mesh) -> Tree:
    """The copy of a tree that a part of its mesh holds; nothing is moved.

    Args:
        tree: Arrays on a mesh, whole in each of its `groups`. Others are returned as they are.
        part: One of the groups, with a device of this process.

    Returns:
        The tree on that part.
    """

    def one(array: Any) -> Any:
        if mesh_of(array) is None:
            return array
        here = {piece.device: piece.data for piece in array.addressable_shards}
        sharding = NamedSharding(part, array.sharding.spec)
        pieces = [here[device] for device in sharding.addressable_devices_indices_map(array.shape)]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)

    return jax.tree_util.tree_map(one, tree)


def agree(array: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """What any process of a mesh knows, in all of them.

    Args:
        array: Floating-point numbers, NaN where this process knows nothing.
        mesh: The mesh; all its processes ask for this together.

    Returns:
        The array with what the first process that knows says, NaN where none does.
    """
    known = np.asarray(array)
    for other in every(array, mesh):
        known = np.where(np.isnan(known), other, known)
    return known


def least(numbers: tuple[int, ...], mesh: Mesh | None) -> tuple[int, ...]:
    """The least of each number among the processes of a mesh, so that all of them do the same.

    Args:
        numbers: Whole numbers below 2**31.
        mesh: The mesh; all its processes ask for this together.

    Returns:
        As many numbers.
    """
    given = np.minimum(numbers, np.iinfo(np.int32).max).astype(np.int32)
    return tuple(int(number) for number in every(given, mesh).min(axis=0))


def every(array: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """An array of each process, [process, ...]."""
    if mesh is None or not mesh.is_multi_process:
        return np.asarray(array)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(array)))


def whole_sharding(array: jax.Array) -> Any:
    """Where an array is, with all of it on every device there."""
    mesh = mesh_of(array)
    return array.sharding if mesh is None else everywhere(mesh)


def first_process() -> bool:
    """Whether this is the process that writes: the only one, or the first of several."""
    return jax.process_index() == 0

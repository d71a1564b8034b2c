"""Programs to count: models and arrays without numbers, over the devices of a slice.

Blocks of a model are alike, and a tree of eighty of them takes the compiler half an hour. So programs that go through
all blocks are compiled with two and with three, and each further block adds what the third one did.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp.activations.stages import Texts
from jaxinterp.analysis.plans.compiler import Cost
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel import mesh as meshes
from jaxinterp.parallel.placement import shard

FEW = 2
"""Blocks of the smaller of two programs that are compiled."""

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
    """A program of a workload.

    Attributes:
        name: What it does.
        times: How often a chip runs it.
        cost: Of one run.
        whole: Whether it is given all weights, so that they count within its memory.
    """

    name: str
    times: float
    cost: Cost
    whole: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked for.

    Attributes:
        rows: Texts.
        seq: Tokens in each.
        new: Tokens that are generated.
        memory: GiB of a chip.
    """

    rows: int
    seq: int
    new: int
    memory: float


def of_all_blocks(costs: Callable[[int], Sequence[Cost]], model: LanguageModel) -> list[Cost]:
    """The costs of programs that go through all blocks of a model, from those of two shallow ones.

    Args:
        costs: Number of blocks -> costs.
        model: Without numbers.

    Returns:
        The costs with all blocks.
    """
    layers = model.architecture.layers
    if layers <= FEW + 1:
        return list(costs(layers))
    pairs = zip(costs(FEW), costs(FEW + 1), strict=True)
    return [more.continued(few, layers - FEW - 1) for few, more in pairs]


def first_blocks(model: LanguageModel, depth: int) -> LanguageModel:
    """The model with some of its blocks."""
    body, a = cast("Decoder", model.body), model.architecture
    few = dataclasses.replace(a, layers=depth, ropes=a.ropes[:depth], windows=a.windows[:depth])
    return dataclasses.replace(model, body=dataclasses.replace(body, blocks=body.blocks[:depth]), architecture=few)


def placed(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    """The model's shapes on a mesh, those of its edits too."""
    shapes = jax.tree_util.tree_map(shape_of, model.body)
    return shard(dataclasses.replace(model, body=shapes), mesh)


def weights_held(model: LanguageModel, mesh: Mesh) -> int:
    """Bytes of weights on each chip."""
    leaves = jax.tree_util.tree_leaves(placed(model, mesh).body)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def shape_of(leaf: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """An array's shape, somewhere."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def texts_over(rows: int, seq: int, mesh: Mesh) -> Texts:
    """Texts whose rows are divided over all groups of chips."""
    return Texts(over_rows((rows, seq), jnp.int32, mesh), over_rows((rows, seq), jnp.bool_, mesh))


def over_rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Any:
    """An array whose first axis is divided over all groups of chips."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(meshes.ROWS)))


def on_every_chip(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Any:
    """An array that is whole on every chip."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

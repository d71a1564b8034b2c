"""Which weight is divided along which mesh axis: one rule for each axis name, the same for every family.

Heads, MLP units and the vocabulary go over `tensor`, the width of the residual stream over `fsdp`. So each device
holds whole heads with their queries, keys, values and outputs, and a block communicates twice: behind attention and
behind the MLP.

Under grouped-query attention there are fewer key-value heads than query heads. Where `tensor` divides them they are
divided; where there are too few, `tensor` is a multiple of their number and every device holds all of them. A
vocabulary that does not divide is whole on every device; heads, units and width have to divide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp import axes
from jaxinterp.models.architecture import Architecture
from jaxinterp.parallel.mesh import FSDP, TENSOR

RULES: Mapping[str, str] = {
    axes.HEAD: TENSOR,
    axes.KV_HEAD: TENSOR,
    axes.NEURONS: TENSOR,
    axes.VOCABULARY: TENSOR,
    axes.EMBEDDING: FSDP,
}
"""Axis name -> the mesh axis that it is divided over. Other axes are whole everywhere."""

_MAY_BE_WHOLE = (axes.KV_HEAD, axes.VOCABULARY)


def check(architecture: Architecture, mesh: Mesh) -> None:
    """Refuses a mesh that a model does not divide over.

    Args:
        architecture: What the model is made of.
        mesh: A mesh with the axes of `jaxinterp.parallel.mesh.AXES`.

    Raises:
        ValueError: An axis that has to divide does not; the sentence names all of them.
    """
    sizes = architecture.axis_sizes()
    faults = [
        f"{sizes[name]} of {name} do not divide among {mesh.shape[over]} devices of {over}"
        for name, over in RULES.items()
        if name not in _MAY_BE_WHOLE and sizes[name] % mesh.shape[over]
    ]
    tensor = mesh.shape[TENSOR]
    if architecture.kv_heads % tensor and tensor % architecture.kv_heads:
        faults.append(
            f"{architecture.kv_heads} of {axes.KV_HEAD} neither divide among {tensor} devices of {TENSOR} nor divide "
            "their number"
        )
    if faults:
        raise ValueError(f"mesh: {'; '.join(faults)}; take a divisor")


def spec(names: Sequence[str], architecture: Architecture, mesh: Mesh) -> PartitionSpec:
    """How an array with named axes is divided.

    Args:
        names: Its axes, in order; names without a rule are whole.
        architecture: What the model is made of.
        mesh: The mesh.

    Returns:
        One entry for each axis.
    """
    sizes = architecture.axis_sizes()

    def over(name: str) -> str | None:
        found = RULES.get(name)
        return None if found is None or sizes[name] % mesh.shape[found] else found

    return PartitionSpec(*map(over, names))


def weight_shardings(architecture: Architecture, mesh: Mesh) -> dict[str, NamedSharding]:
    """How every weight of a model is divided.

    Args:
        architecture: What the model is made of.
        mesh: The mesh.

    Returns:
        Canonical name -> sharding.

    Raises:
        ValueError: The model does not divide over the mesh.
    """
    check(architecture, mesh)
    return {
        name: NamedSharding(mesh, spec(tuple(sizes), architecture, mesh))
        for name, sizes in architecture.weights().items()
    }

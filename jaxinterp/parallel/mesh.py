"""A mesh of devices from one line of config, such as `data=2,tensor=4`.

A mesh has four axes, and every device stands at one place along each of them:

* `tensor`: devices that share the heads, the MLP's units and the vocabulary of one model;
* `fsdp`: devices that share the width of each weight, and the rows of a batch; a training step brings the weights
  together for its passes, other passes leave them where they are and share the width of the residual stream too;
* `data`: groups with a whole model each, which share the rows of a batch;
* `sweep`: groups with a whole model each, which share the cells of a sweep, and the rows of a batch elsewhere.

Neighbours along `tensor` talk most, so they are next to each other, on one host where that is possible.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils

SWEEP, DATA, FSDP, TENSOR = "sweep", "data", "fsdp", "tensor"
AXES = (SWEEP, DATA, FSDP, TENSOR)
"""Names of the mesh axes, the slowest first."""

ROWS = (SWEEP, DATA, FSDP)
"""The axes that the rows of a batch are divided over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices take part, and as what.

    Examples:
        >>> Mesh.of("data=2,tensor=4").size
        8
        >>> str(Mesh(data=2, tensor=4))
        'data=2,tensor=4'
    """

    data: int = 1
    """Groups that hold a whole model each and share the rows of a batch."""
    fsdp: int = 1
    """Devices among which the width of each weight is divided; they share the rows of a batch too."""
    tensor: int = 1
    """Devices among which heads, MLP units and vocabulary are divided."""
    sweep: int = 1
    """Groups that hold a whole model each and share the cells of a sweep."""

    @classmethod
    def of(cls, value: Mesh | str | None) -> Mesh:
        """Reads a mesh.

        Args:
            value: A mesh, a line such as `"data=2,tensor=4"`, or `None` for one device.

        Returns:
            The mesh.

        Raises:
            ValueError: The line names another axis, or something that is no positive whole number.
        """
        if isinstance(value, Mesh):
            return value
        sizes: dict[str, int] = {}
        for part in (value or "").replace(",", " ").split():
            name, _, number = part.partition("=")
            if name not in AXES or not number.isdecimal() or int(number) < 1 or name in sizes:
                raise ValueError(
                    f'mesh "{value}": {part} is not understood; give each of {", ".join(AXES)} at most once, as in '
                    "data=2,tensor=4"
                )
            sizes[name] = int(number)
        return cls(**sizes)

    def __str__(self) -> str:
        sizes = {name: getattr(self, name) for name in (DATA, FSDP, TENSOR, SWEEP)}
        return ",".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "data=1"

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes, in the order of `AXES`."""
        return tuple(getattr(self, name) for name in AXES)

    @property
    def size(self) -> int:
        """Devices that take part."""
        return int(np.prod(self.shape))

    @property
    def rows(self) -> int:
        """Among how many devices, or groups of them, the rows of a batch are divided."""
        return self.size // self.tensor

    def arrange(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """Lays devices out.

        Args:
            devices: The devices, or those of a topology to compile for; by default all there are, in all processes.

        Returns:
            The mesh of JAX, with the axes `AXES`.

        Raises:
            ValueError: There are not so many devices, or some of several processes would have none.
        """
        found = jax.devices() if devices is None else list(devices)
        if min(self.shape) < 1:
            raise ValueError(f"mesh: every axis has to be at least 1, not {self.shape} for {AXES}")
        if self.size > len(found):
            raise ValueError(
                f"mesh {self}: {self.size} devices are asked for, and there are {len(found)}; lower one axis, or, to "
                f"try it out on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count={self.size}"
            )
        if len({device.process_index for device in found}) > 1 and self.size != len(found):
            raise ValueError(
                f"mesh {self}: it takes {self.size} of {len(found)} devices of several processes; take all of them"
            )
        if found[0].platform == "tpu" and self.size == len(found):
            grid = mesh_utils.create_device_mesh(self.shape, found)
        else:
            grid = np.array(found[: self.size]).reshape(self.shape)
        return jax.sharding.Mesh(grid, AXES)


Layout: TypeAlias = jax.sharding.Mesh | Mesh | str | None
"""What functions that place arrays take: a mesh of JAX that `Mesh.arrange` made, or what it is made of."""


def arrange(mesh: Layout) -> jax.sharding.Mesh:
    """The mesh of JAX for a mesh or a line.

    Raises:
        ValueError: See `Mesh`; or a mesh of JAX lacks an axis.
    """
    if not isinstance(mesh, jax.sharding.Mesh):
        return Mesh.of(mesh).arrange()
    if set(mesh.axis_names) != set(AXES):
        raise ValueError(f"a mesh has the axes {', '.join(AXES)}, not {', '.join(map(str, mesh.axis_names))}")
    return mesh


def groups(mesh: jax.sharding.Mesh) -> list[list[jax.sharding.Mesh]]:
    """The parts of a mesh that hold a whole model each, as meshes of their own.

    Args:
        mesh: A mesh with the axes `AXES`.

    Returns:
        A mesh with `sweep` and `data` of 1 for each place along `sweep`, and there for each place along `data`.
    """
    return [
        [jax.sharding.Mesh(devices[None, None], mesh.axis_names) for devices in row]
        for row in np.moveaxis(mesh.devices, [mesh.axis_names.index(name) for name in AXES], range(len(AXES)))
    ]
